#include "adapter/product.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace ingot {
namespace {

// How factors and base fit together.
struct Fit {
  Matrix block;  // one matrix of the base, as stored
  std::uint64_t in = 0, out = 0;
  std::uint64_t rank = 0;                                      // of one expert
  std::uint64_t outputs = 0;                                   // that the factors have
  std::uint64_t count = 0;                                     // that change
  std::vector<std::pair<std::uint64_t, std::uint64_t>> pairs;  // block of the base, expert
};

bool is_plain(const Cut& cut) {
  return cut.from == 0 && cut.step == 1 && cut.at == 0 && cut.pace == 1 && cut.count == 0;
}

void need(const Located& base, const Effect& effect, Piece piece, std::uint64_t count) {
  const Located& found = part(base, effect, piece);
  if (found.info.count() != count) misfit(base, effect, found, fmt::format("{} elements", count));
}

// Which expert's factors change which block.
void pair(const Located& base, const Effect& effect, std::uint64_t blocks, bool experts, Fit& f) {
  const Cut& cut = effect.cut;
  const auto stop = [&](const std::string& what) {
    fail(Code::shape, fmt::format("{}: {} of shape {} {}", effect.adapter, base.info.name,
                                  base.info.shape.text(), what));
  };
  if (cut.block && *cut.block >= blocks) stop(fmt::format("has no block {}", *cut.block));
  if (cut.expert && *cut.expert >= cut.experts) {
    stop(fmt::format("is to get expert {}, the factors have {}", *cut.expert, cut.experts));
  }
  if (cut.expert || cut.block || !experts) {
    if (!cut.expert && cut.experts != 1) stop(fmt::format("cannot take {} experts", cut.experts));
    if (!cut.block && blocks != 1) stop(fmt::format("has {} blocks, one was expected", blocks));
    f.pairs = {{cut.block.value_or(0), cut.expert.value_or(0)}};
    return;
  }
  if (blocks != cut.experts) stop(fmt::format("does not hold {} experts", cut.experts));
  for (std::uint64_t e = 0; e < blocks; ++e) f.pairs.emplace_back(e, e);
}

Fit fit(const Located& base, const Effect& effect) {
  const bool vera = effect.family == Family::vera;
  const Located& a = part(base, effect, vera ? Piece::shared_a : Piece::a);
  const Located& b = part(base, effect, vera ? Piece::shared_b : Piece::b);
  const Shape& shape = base.info.shape;
  if (shape.rank() < 2) {
    fail(Code::shape, fmt::format("{}: {} has shape {}, a low-rank change needs a matrix",
                                  effect.adapter, base.info.name, shape.text()));
  }
  for (const Located* factor : {&a, &b}) {
    if (factor->info.shape.rank() < 2 || factor->info.count() == 0) {
      misfit(base, effect, *factor, "a matrix with elements");
    }
  }
  Fit f;
  // Factors of a convolution have as many dimensions as its weight, those of experts two.
  const bool experts =
      effect.family == Family::lora && shape.rank() == 3 && a.info.shape.rank() == 2;
  f.block = experts ? Matrix{shape[1], shape[2]} : matrix(shape);
  f.in = f.block.width;
  f.out = f.block.height;
  if (effect.layout != Layout::linear) std::swap(f.in, f.out);

  const Matrix am = matrix(a.info.shape), bm = matrix(b.info.shape);
  const Cut& cut = effect.cut;
  if (bm.width != am.height) misfit(base, effect, b, fmt::format("{} columns", am.height));
  if (cut.experts == 0 || am.height % cut.experts != 0) {
    misfit(base, effect, a, fmt::format("rows for {} experts", cut.experts));
  }
  f.rank = am.height / cut.experts;
  f.outputs = bm.height;
  pair(base, effect, experts ? shape[0] : 1, experts, f);
  if (vera) {
    if (am.width < f.in) misfit(base, effect, a, fmt::format("{} columns or more", f.in));
    if (bm.height < f.out) misfit(base, effect, b, fmt::format("{} rows or more", f.out));
    need(base, effect, Piece::lambda_d, f.rank);
    need(base, effect, Piece::lambda_b, f.out);
    f.count = f.out;
    return f;
  }
  if (am.width != f.in) misfit(base, effect, a, fmt::format("{} columns", f.in));
  if (effect.family == Family::adalora) need(base, effect, Piece::e, f.rank);
  if (is_plain(cut)) {
    if (f.outputs != f.out) misfit(base, effect, b, fmt::format("{} rows", f.out));
    f.count = f.out;
    return f;
  }
  if (cut.step == 0 || cut.pace == 0 || cut.from >= f.outputs) {
    misfit(base, effect, b, fmt::format("rows from {} on", cut.from));
  }
  f.count = cut.count != 0 ? cut.count : (f.outputs - cut.from + cut.step - 1) / cut.step;
  if (cut.from + (f.count - 1) * cut.step >= f.outputs) {
    misfit(base, effect, b,
           fmt::format("{} rows or more", cut.from + (f.count - 1) * cut.step + 1));
  }
  if (cut.at + (f.count - 1) * cut.pace >= f.out) {
    fail(Code::shape, fmt::format("{}: {} has {} outputs, the change needs {}", effect.adapter,
                                  base.info.name, f.out, cut.at + (f.count - 1) * cut.pace + 1));
  }
  return f;
}

// Factors as rank x in and out x rank, what multiplies ranks and outputs folded in with one
// rounding.
struct Pair {
  std::vector<float> a, b;
  std::uint64_t in = 0, ranks = 0;
};

Pair load_pair(const Scene& scene, const Effect& effect) {
  const bool vera = effect.family == Family::vera;
  const Located& a = part(*scene.base, effect, vera ? Piece::shared_a : Piece::a);
  const Located& b = part(*scene.base, effect, vera ? Piece::shared_b : Piece::b);
  Pair pair{load(*scene.plan, effect, a), load(*scene.plan, effect, b), matrix(a.info.shape).width,
            matrix(a.info.shape).height};
  const auto vector = [&](Piece piece) {
    return load(*scene.plan, effect, part(*scene.base, effect, piece));
  };
  const auto fold = [&](const std::vector<float>& by) {
    for (std::uint64_t k = 0; k < pair.ranks; ++k) {
      for (std::uint64_t i = 0; i < pair.in; ++i) pair.a[k * pair.in + i] *= by[k];
    }
  };
  if (effect.family == Family::adalora) fold(vector(Piece::e));
  if (vera) {
    fold(vector(Piece::lambda_d));
    const std::vector<float> by = vector(Piece::lambda_b);
    for (std::uint64_t o = 0; o < by.size(); ++o) {
      for (std::uint64_t k = 0; k < pair.ranks; ++k) pair.b[o * pair.ranks + k] *= by[o];
    }
  }
  return pair;
}

void check(const Located& base, const Effect& effect) { static_cast<void>(fit(base, effect)); }

std::uint64_t memory(const Located& base, const Effect& effect) {
  const Fit f = fit(base, effect);
  std::uint64_t loaded = 0;
  for (const Effect::Part& p : effect.parts) loaded += p.tensor.info.count();
  return sizeof(float) * (loaded + f.pairs.size() * f.rank * (f.block.height + f.block.width));
}

class Products final : public Formula<Products> {
 public:
  Products(std::vector<Low> lows, bool everywhere)
      : lows_(std::move(lows)), everywhere_(everywhere) {}

  template <class T>
  void apply(const Panel<T>& panel) const {
    for (const Low& low : lows_) low.add(panel.first, panel.values);
  }
  [[nodiscard]] const Factors* factors() const override {
    return everywhere_ ? lows_[0].factors() : nullptr;
  }

 private:
  std::vector<Low> lows_;
  bool everywhere_;
};

std::unique_ptr<Step> make(const Scene& scene, const Effect& effect) {
  // VeRA has no scaling of its own.
  const double scaling = effect.family == Family::vera ? 1 : effect.scaling;
  std::vector<Low> lows = Low::load(scene, effect, effect.weight * scaling * effect.times);
  const bool everywhere = lows.size() == 1 && lows[0].covers(scene.base->info.count());
  return std::make_unique<Products>(std::move(lows), everywhere);
}

}  // namespace

const Kit kProduct{check, memory, make, false, false};

std::vector<Low> Low::load(const Scene& scene, const Effect& effect, double scale) {
  const Fit f = fit(*scene.base, effect);
  const Pair source = load_pair(scene, effect);
  const Cut& cut = effect.cut;
  const bool transposed = effect.layout != Layout::linear;
  const std::uint64_t experts = cut.experts, rank = f.rank;
  std::vector<Low> lows(f.pairs.size());
  for (std::size_t p = 0; p < lows.size(); ++p) {
    Low& low = lows[p];
    const auto [block, expert] = f.pairs[p];
    const auto a = [&, e = expert](std::uint64_t k, std::uint64_t i) {
      return source.a[(e * rank + k) * source.in + i];
    };
    const auto b = [&, e = expert](std::uint64_t j, std::uint64_t k) {
      return source.b[(cut.from + j * cut.step) * source.ranks + k * experts + e];
    };
    low.rank_ = static_cast<std::uint32_t>(rank);
    low.scale_ = static_cast<float>(scale);
    low.fast_ = scene.plan->options.fast_product;
    low.width_ = f.block.width;
    low.top_ = block * f.block.height;
    if (transposed) {
      low.height_ = f.in;
      low.left_.resize(f.in * rank);
      low.right_.assign(rank * f.out, 0.0F);
      for (std::uint64_t k = 0; k < rank; ++k) {
        for (std::uint64_t i = 0; i < f.in; ++i) low.left_[i * rank + k] = a(k, i);
        for (std::uint64_t j = 0; j < f.count; ++j) {
          low.right_[k * f.out + cut.at + j * cut.pace] = b(j, k);
        }
      }
    } else {
      low.top_ += cut.at;
      low.height_ = (f.count - 1) * cut.pace + 1;
      low.left_.assign(low.height_ * rank, 0.0F);
      low.right_.resize(rank * f.in);
      for (std::uint64_t j = 0; j < f.count; ++j) {
        for (std::uint64_t k = 0; k < rank; ++k) low.left_[j * cut.pace * rank + k] = b(j, k);
      }
      for (std::uint64_t k = 0; k < rank; ++k) {
        for (std::uint64_t i = 0; i < f.in; ++i) low.right_[k * f.in + i] = a(k, i);
      }
    }
    if (scene.backend != nullptr) {
      low.backend_ = scene.backend;
      low.factors_ = scene.backend->stage(
          {low.right_, low.left_, low.rank_, low.width_, low.scale_, low.fast_});
    }
  }
  return lows;
}

void Low::add_staged(std::uint64_t first, std::span<float> values) const {
  const std::vector<float> before(values.begin(), values.end());
  const Factors* const products[] = {factors_.get()};
  backend_->amend(Dtype::f32, std::as_bytes(std::span(before)).data(), products, first, values);
}

}  // namespace ingot

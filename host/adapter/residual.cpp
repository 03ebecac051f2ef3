// What PiSSA and OLoRA take away from the base before they train: PEFT does it again when it loads
// such an adapter, so the change is relative to what is left.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "adapter/step.hpp"
#include "ingot/linalg.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/math/hadamard.hpp"
#include "store/values.hpp"

namespace ingot {
namespace {

using Kind = AdapterConfig::Residual;

constexpr std::uint64_t kStrip = 1024;  // rows or columns of the base in double at a time

std::uint64_t rank_of(const Located& base, const Effect& effect) {
  return matrix(part(base, effect, Piece::a).info.shape).height;
}

// The base as doubles, by runs of rows or of columns.
class Reader {
 public:
  Reader(const Plan& plan, const Located& base)
      : checkpoint_(plan.models[base.place.model].checkpoint),
        entry_(checkpoint_.entries()[base.place.entry]),
        size_(matrix(base.info.shape)) {}

  [[nodiscard]] Matrix size() const { return size_; }

  [[nodiscard]] linalg::Matrix rows(std::uint64_t first, std::uint64_t count) const {
    linalg::Matrix out(count, size_.width);
    std::vector<float> values(out.data.size());
    read_values(checkpoint_, entry_, first * size_.width, values);
    std::copy(values.begin(), values.end(), out.data.begin());
    return out;
  }
  [[nodiscard]] linalg::Matrix columns(std::uint64_t first, std::uint64_t count) const {
    linalg::Matrix out(size_.height, count);
    std::vector<float> values(count);
    for (std::uint64_t y = 0; y < size_.height; ++y) {
      read_values(checkpoint_, entry_, y * size_.width + first, values);
      std::copy(values.begin(), values.end(), out.row(y));
    }
    return out;
  }

 private:
  const Checkpoint& checkpoint_;
  const Entry& entry_;
  const Matrix size_;
};

// left * right, both by rows: what is taken away.
struct Taken {
  linalg::Matrix left, right;
};

// basis (height x n, turned: its rows are the vectors) times what it sees of W.
Taken across(const Reader& base, linalg::Matrix basis) {
  const Matrix size = base.size();
  Taken taken{linalg::Matrix(size.height, basis.rows), linalg::Matrix(basis.rows, size.width)};
  for (std::uint64_t y = 0; y < size.height; ++y) {
    for (std::size_t k = 0; k < basis.rows; ++k) taken.left.at(y, k) = basis.at(k, y);
  }
  for (std::uint64_t first = 0; first < size.width; first += kStrip) {
    const std::uint64_t count = std::min(kStrip, size.width - first);
    const linalg::Matrix seen =
        linalg::multiply(basis, linalg::As::is, base.columns(first, count), linalg::As::is);
    for (std::size_t k = 0; k < basis.rows; ++k) {
      std::copy_n(seen.row(k), count, taken.right.row(k) + first);
    }
  }
  return taken;
}

// What W has along a basis of its rows (n x width).
Taken along(const Reader& base, linalg::Matrix basis) {
  const Matrix size = base.size();
  Taken taken{linalg::Matrix(size.height, basis.rows), {}};
  for (std::uint64_t first = 0; first < size.height; first += kStrip) {
    const std::uint64_t count = std::min(kStrip, size.height - first);
    const linalg::Matrix seen =
        linalg::multiply(base.rows(first, count), linalg::As::is, basis, linalg::As::turned);
    std::copy(seen.data.begin(), seen.data.end(), taken.left.row(first));
  }
  taken.right = std::move(basis);
  return taken;
}

// The vectors of the largest values of a symmetric matrix.
linalg::Matrix largest(linalg::Matrix symmetric, std::uint64_t rank) {
  const std::size_t size = symmetric.rows;
  const linalg::Spectrum spectrum = linalg::eigen(std::move(symmetric));
  linalg::Matrix basis(rank, size);
  for (std::uint64_t k = 0; k < rank; ++k) {
    std::copy_n(spectrum.vectors.row(size - 1 - k), size, basis.row(k));
  }
  return basis;
}

// The best approximation of rank r, from the eigenvectors of the smaller Gram matrix: where the
// r-th and the next singular value are told apart at all, they are by more than what squaring costs
// in double.
Taken pissa(const Reader& base, std::uint64_t rank) {
  const Matrix size = base.size();
  const bool wide = size.width > size.height;
  const std::uint64_t order = std::min(size.width, size.height);
  const std::uint64_t length = std::max(size.width, size.height);
  linalg::Matrix gram(order, order);
  for (std::uint64_t first = 0; first < length; first += kStrip) {
    const std::uint64_t count = std::min(kStrip, length - first);
    const linalg::Matrix strip = wide ? base.columns(first, count) : base.rows(first, count);
    const linalg::Matrix part =
        wide ? linalg::multiply(strip, linalg::As::is, strip, linalg::As::turned)
             : linalg::multiply(strip, linalg::As::turned, strip, linalg::As::is);
    for (std::size_t i = 0; i < gram.data.size(); ++i) gram.data[i] += part.data[i];
  }
  linalg::Matrix basis = largest(std::move(gram), rank);
  return wide ? across(base, std::move(basis)) : along(base, std::move(basis));
}

// s Q[:, :r] R[:r] of W = Q R: s times what W has along its own first r columns.
Taken olora(const Reader& base, std::uint64_t rank, double scaling) {
  const linalg::Matrix first = base.columns(0, rank);
  linalg::Matrix turned(rank, first.rows);
  for (std::size_t y = 0; y < first.rows; ++y) {
    for (std::uint64_t k = 0; k < rank; ++k) turned.at(k, y) = first.at(y, k);
  }
  Taken taken = across(base, linalg::split(std::move(turned)).right);
  for (double& x : taken.left.data) x *= scaling;
  return taken;
}

template <math::Format format>
float rounded_as(float x) {
  using Codec = math::Codec<format>;
  return Codec::decode(Codec::encode(x, math::Overflow::saturate));
}

float rounded(Dtype dtype, float x) {
  switch (dtype) {
    case Dtype::f16:
      return rounded_as<math::Format::f16>(x);
    case Dtype::bf16:
      return rounded_as<math::Format::bf16>(x);
    case Dtype::f8_e4m3:
      return rounded_as<math::Format::e4m3>(x);
    case Dtype::f8_e5m2:
      return rounded_as<math::Format::e5m2>(x);
    default:
      return x;
  }
}

class Residual final : public Formula<Residual> {
 public:
  Residual(const Scene& scene, const Effect& effect)
      : dtype_(scene.base->info.dtype),
        width_(matrix(scene.base->info.shape).width),
        weight_(static_cast<float>(effect.weight)),
        full_(effect.weight == 1) {
    const Reader base(*scene.plan, *scene.base);
    const std::uint64_t rank = rank_of(*scene.base, effect);
    taken_ = effect.residual == Kind::pissa ? pissa(base, rank) : olora(base, rank, effect.scaling);
  }

  template <class T>
  void apply(const Panel<T>& panel) const {
    using W = Wide<T>;
    std::vector<W> sums;
    for (std::uint64_t done = 0; done < panel.values.size();) {
      const std::uint64_t y = (panel.first + done) / width_, x = (panel.first + done) % width_;
      const std::uint64_t count = std::min<std::uint64_t>(width_ - x, panel.values.size() - done);
      sums.assign(count, W(0.0));
      for (std::size_t k = 0; k < taken_.right.rows; ++k) {
        const W b = decomposed<W>(taken_.left.at(y, k));
        const double* a = taken_.right.row(k) + x;
        for (std::uint64_t i = 0; i < count; ++i) {
          sums[i] = math::term(sums[i], b, decomposed<W>(a[i]));
        }
      }
      for (std::uint64_t i = 0; i < count; ++i) {
        T& value = panel.values[done + i];
        value = blended(value, W(widen(value)) - sums[i]);
      }
      done += count;
    }
  }

 private:
  // A number of the decomposition, on which libraries agree to 2^-36 of it.
  template <class W>
  [[nodiscard]] static W decomposed(double x) {
    W number(x);
    if constexpr (!std::is_same_v<W, double>) number.slack = std::fabs(x) * 0x1p-36;
    return number;
  }

  // What PEFT keeps of the base is rounded to its type.
  [[nodiscard]] float blended(float before, double after) const {
    return math::blend(weight_, full_, before, rounded(dtype_, static_cast<float>(after)));
  }
  // The step is the first, so that what it starts from is f32. Another library may end up on the
  // other side of a half; elsewhere there is no slack.
  [[nodiscard]] Single blended(Single before, Tracked<53> after) const {
    const auto at = [&](double x) {
      return static_cast<double>(blended(static_cast<float>(before.value), x));
    };
    Single out(at(after.value));
    out.slack = std::max(std::fabs(at(after.value - after.slack) - out.value),
                         std::fabs(at(after.value + after.slack) - out.value));
    return out;
  }

  const Dtype dtype_;
  const std::uint64_t width_;
  const float weight_;
  const bool full_;
  Taken taken_;
};

void check(const Located& base, const Effect& effect) {
  const Matrix m = matrix(base.info.shape);
  const std::uint64_t rank = rank_of(base, effect);
  // PEFT gives OLoRA on a Conv1D factors that do not fit.
  const bool turned = effect.layout == Layout::transposed && effect.residual == Kind::olora;
  if (base.info.shape.rank() != 2 || effect.layout == Layout::embedding || turned ||
      effect.family != Family::lora || effect.find(Piece::magnitude) != nullptr) {
    fail(Code::usage,
         fmt::format("{}: ingot can compute what the initialisation subtracted from {} only for "
                     "plain LoRA on matrices; convert the adapter with PEFT (save_pretrained with "
                     "path_initial_model_for_weight_conversion)",
                     effect.adapter, base.info.name));
  }
  if (rank > std::min(m.height, m.width)) {
    misfit(base, effect, part(base, effect, Piece::a),
           fmt::format("at most {} rows", std::min(m.height, m.width)));
  }
}

std::uint64_t memory(const Located& base, const Effect& effect) {
  const Matrix m = matrix(base.info.shape);
  const std::uint64_t order = std::min(m.height, m.width), length = std::max(m.height, m.width);
  const std::uint64_t rank = rank_of(base, effect);
  const std::uint64_t strip = std::min(kStrip, length) * length + kStrip * rank;
  const std::uint64_t gram = effect.residual == Kind::pissa ? 5 * order * order : 3 * rank * length;
  return sizeof(double) * (gram + strip * 2 + 2 * rank * (m.height + m.width));
}

std::unique_ptr<Step> make(const Scene& scene, const Effect& effect) {
  return std::make_unique<Residual>(scene, effect);
}

}  // namespace

const Kit kResidual{check, memory, make, false, false};

}  // namespace ingot

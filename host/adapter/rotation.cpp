// OFT, BOFT and HRA: rows of the base turned or reflected.
#include "ingot/math/rotation.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "adapter/step.hpp"

namespace ingot {
namespace {

constexpr std::uint64_t kBlock = 4096;  // widest block that is turned: its matrices are dense

void check_rows(const Located& base, const Effect& effect) {
  if (base.info.shape.rank() < 2) {
    fail(Code::shape, fmt::format("{}: {} has shape {}, only rows of a matrix can be turned",
                                  effect.adapter, base.info.name, base.info.shape.text()));
  }
  if (effect.layout == Layout::transposed) {
    fail(Code::usage,
         fmt::format("{}: {} is stored by inputs, a layer for which PEFT has no {}: the adapter is "
                     "of another model",
                     effect.adapter, base.info.name, name(effect.family)));
  }
}

// Blocks of a rotation and how wide they are.
struct Blocks {
  std::uint64_t count = 0, size = 0;
};

// b such that b (b - 1) / 2 = n, or 0.
std::uint64_t side(std::uint64_t n) {
  std::uint64_t b = 2;
  while (b <= kBlock && b * (b - 1) / 2 < n) ++b;
  return b * (b - 1) / 2 == n ? b : 0;
}

Blocks oft_blocks(const Located& base, const Effect& effect) {
  check_rows(base, effect);
  const Located& r = part(base, effect, Piece::r);
  const Shape& shape = r.info.shape;
  const std::uint64_t width = matrix(base.info.shape).width;
  if (shape.rank() != 2 || side(shape[1]) == 0) {
    misfit(base, effect, r, "blocks of the upper triangle of a square");
  }
  const Blocks blocks{shape[0], side(shape[1])};
  const bool shared = effect.block_share && blocks.count == 1;
  if (shared ? width % blocks.size != 0 : blocks.count * blocks.size != width) {
    misfit(base, effect, r,
           fmt::format("blocks of {} for rows of {} elements", blocks.size, width));
  }
  if (effect.cayley_neumann && effect.terms == 0) {
    fail(Code::usage, fmt::format("{}: a series of 0 terms is not a rotation", effect.adapter));
  }
  return blocks;
}

Blocks boft_blocks(const Located& base, const Effect& effect) {
  check_rows(base, effect);
  const Located &r = part(base, effect, Piece::r), &s = part(base, effect, Piece::s);
  const Shape& shape = r.info.shape;
  const Matrix m = matrix(base.info.shape);
  if (shape.rank() != 4 || shape[2] != shape[3] || shape[2] == 0 || shape[2] > kBlock ||
      shape[1] != m.width / shape[2] || m.width % shape[2] != 0) {
    misfit(base, effect, r, fmt::format("square blocks for rows of {} elements", m.width));
  }
  if (s.info.count() != m.height) misfit(base, effect, s, fmt::format("{} elements", m.height));
  const std::uint64_t stages = shape[0];
  Blocks blocks{shape[1], shape[2]};
  for (std::uint64_t stage = 1; stage < stages; ++stage) {
    if (blocks.count % 2 != 0 || shape[2] % 2 != 0 || 2 * blocks.size > kBlock) {
      misfit(base, effect, r,
             fmt::format("stages that pair even blocks up to {} elements", kBlock));
    }
    blocks = {blocks.count / 2, 2 * blocks.size};
  }
  if (stages == 0) misfit(base, effect, r, "at least one stage");
  return blocks;
}

void check_oft(const Located& base, const Effect& effect) {
  static_cast<void>(oft_blocks(base, effect));
}
void check_boft(const Located& base, const Effect& effect) {
  static_cast<void>(boft_blocks(base, effect));
}
void check_hra(const Located& base, const Effect& effect) {
  check_rows(base, effect);
  const Located& u = part(base, effect, Piece::u);
  const std::uint64_t width = matrix(base.info.shape).width;
  if (u.info.shape.rank() != 2 || u.info.shape[0] != width || u.info.count() == 0) {
    misfit(base, effect, u, fmt::format("{} rows", width));
  }
}

std::uint64_t memory_of(const Effect& effect, std::uint64_t coefficients) {
  std::uint64_t bytes = coefficients * sizeof(double);
  for (const Effect::Part& p : effect.parts) bytes += p.tensor.info.count() * sizeof(float);
  return bytes;
}
std::uint64_t memory_oft(const Located& base, const Effect& effect) {
  const Blocks b = oft_blocks(base, effect);
  return memory_of(effect, (b.count + 4) * b.size * b.size);
}
std::uint64_t memory_boft(const Located& base, const Effect& effect) {
  const Blocks b = boft_blocks(base, effect);
  return memory_of(effect, (b.count + 4) * b.size * b.size);
}
std::uint64_t memory_hra(const Located& base, const Effect& effect) {
  return memory_of(effect, 2 * part(base, effect, Piece::u).info.count());
}

// Blocks of a row times square matrices, then the row times a factor of its own.
class Rotation final : public Formula<Rotation> {
 public:
  Rotation(const Scene& scene, const Effect& effect, Blocks blocks, std::vector<double> matrices,
           std::vector<float> factors)
      : width_(matrix(scene.base->info.shape).width),
        blocks_(blocks),
        across_(effect.layout == Layout::embedding),
        weight_(static_cast<float>(effect.weight)),
        full_(effect.weight == 1),
        matrices_(std::move(matrices)),
        factors_(std::move(factors)) {}

  template <class T>
  void apply(const Panel<T>& panel) const {
    using W = Wide<T>;
    const std::uint64_t size = blocks_.size;
    std::vector<W> row(size);
    for (std::uint64_t at = 0; at < panel.values.size(); at += size) {
      const std::uint64_t index = panel.first + at, block = index % width_ / size % blocks_.count;
      const double* matrix = matrices_.data() + block * size * size;
      const std::span<T> values = panel.values.subspan(at, size);
      for (std::uint64_t j = 0; j < size; ++j) row[j] = W(widen(values[j]));
      for (std::uint64_t i = 0; i < size; ++i) {
        W sum = across_ ? math::turned(row.data(), matrix + i, size, static_cast<int>(size))
                        : math::turned(row.data(), matrix + i * size, 1, static_cast<int>(size));
        if (!factors_.empty()) sum = sum * W(static_cast<double>(factors_[index / width_]));
        values[i] = math::blend(T(weight_), full_, values[i], narrow(sum));
      }
    }
  }

 private:
  const std::uint64_t width_;
  const Blocks blocks_;
  const bool across_;  // W blockdiag(R) instead of W blockdiag(R)^T
  const float weight_;
  const bool full_;
  const std::vector<double> matrices_;
  const std::vector<float> factors_;  // of rows; empty: none
};

std::unique_ptr<Step> make_oft(const Scene& scene, const Effect& effect) {
  const Blocks blocks = oft_blocks(*scene.base, effect);
  const std::vector<float> values = load(*scene.plan, effect, part(*scene.base, effect, Piece::r));
  const std::uint64_t b = blocks.size, entries = b * (b - 1) / 2;
  const double most = effect.eps / std::sqrt(static_cast<double>(blocks.count));
  std::vector<double> matrices(blocks.count * b * b), q(b * b), room(2 * b * b);
  for (std::uint64_t block = 0; block < blocks.count; ++block) {
    const float* upper = values.data() + block * entries;
    double squares = 0;
    for (std::uint64_t i = 0, e = 0; i < b; ++i) {
      q[i * b + i] = 0;
      for (std::uint64_t j = i + 1; j < b; ++j, ++e) {
        q[i * b + j] = static_cast<double>(upper[e]);
        q[j * b + i] = -q[i * b + j];
        squares += 2 * q[i * b + j] * q[i * b + j];
      }
    }
    const double norm = std::sqrt(squares);
    if (effect.constrained && norm > most) {
      for (double& x : q) x *= most / norm;
    }
    double* const r = matrices.data() + block * b * b;
    if (effect.cayley_neumann) {
      math::cayley_series(q.data(), r, static_cast<int>(b), effect.terms, room.data());
    } else {
      math::cayley(q.data(), r, static_cast<int>(b), room.data());
    }
  }
  return std::make_unique<Rotation>(scene, effect, blocks, std::move(matrices),
                                    std::vector<float>());
}

// Stage `stage` of a butterfly turns blocks of `b` made of half blocks 2^stage apart. Where it
// takes element `i` of a span of whole groups from: the place in the blocks as stored.
std::uint64_t gathered(std::uint64_t i, std::uint64_t b, std::uint64_t stage) {
  const std::uint64_t half = b / 2, pairs = std::uint64_t{1} << stage, group = b * pairs;
  if (stage == 0) return i;
  const std::uint64_t part = i % group / half;
  return i / group * group + (part < pairs ? 2 * part : 2 * (part - pairs) + 1) * half + i % half;
}

// The stages multiplied out: each group that they mix is a block of its own.
std::unique_ptr<Step> make_boft(const Scene& scene, const Effect& effect) {
  const Blocks blocks = boft_blocks(*scene.base, effect);
  const Located& stored = part(*scene.base, effect, Piece::r);
  const std::vector<float> values = load(*scene.plan, effect, stored);
  const std::uint64_t stages = stored.info.shape[0], b = stored.info.shape[2], g = blocks.size;
  std::vector<double> matrices(blocks.count * g * g), q(b * b), room(2 * b * b), turn(b * g),
      rotation(b * b);
  std::vector<std::uint64_t> places(b);
  for (std::uint64_t block = 0; block < blocks.count; ++block) {
    double* const product = matrices.data() + block * g * g;
    for (std::uint64_t i = 0; i < g; ++i) product[i * (g + 1)] = 1;
    for (std::uint64_t stage = 0; stage < stages; ++stage) {
      for (std::uint64_t part = 0; part < g / b; ++part) {
        const float* r = values.data() + ((stage * blocks.count + block) * (g / b) + part) * b * b;
        for (std::uint64_t i = 0; i < b; ++i) {
          for (std::uint64_t j = 0; j < b; ++j) {
            q[i * b + j] =
                (static_cast<double>(r[i * b + j]) - static_cast<double>(r[j * b + i])) / 2;
          }
        }
        math::cayley(q.data(), rotation.data(), static_cast<int>(b), room.data());
        for (std::uint64_t i = 0; i < g; ++i) {
          const std::uint64_t at = gathered(i, b, stage);
          if (at / b == part) places[at % b] = i;
        }
        // Rows `places` of the product so far become the rotation times themselves.
        for (std::uint64_t i = 0; i < b; ++i) {
          for (std::uint64_t c = 0; c < g; ++c) {
            double sum = 0;
            for (std::uint64_t j = 0; j < b; ++j) {
              sum += rotation[i * b + j] * product[places[j] * g + c];
            }
            turn[i * g + c] = sum;
          }
        }
        for (std::uint64_t i = 0; i < b; ++i) {
          std::copy_n(turn.data() + i * g, g, product + places[i] * g);
        }
      }
    }
  }
  return std::make_unique<Rotation>(scene, effect, blocks, std::move(matrices),
                                    load(*scene.plan, effect, part(*scene.base, effect, Piece::s)));
}

// Householder reflections, one after the other.
class Reflections final : public Formula<Reflections> {
 public:
  Reflections(const Scene& scene, const Effect& effect)
      : width_(matrix(scene.base->info.shape).width),
        weight_(static_cast<float>(effect.weight)),
        full_(effect.weight == 1) {
    const Located& u = part(*scene.base, effect, Piece::u);
    const std::vector<float> values = load(*scene.plan, effect, u);
    const std::uint64_t rank = u.info.shape[1];
    vectors_.resize(values.size());
    for (std::uint64_t k = 0; k < rank; ++k) {
      double* const v = vectors_.data() + k * width_;
      for (std::uint64_t i = 0; i < width_; ++i) v[i] = static_cast<double>(values[i * rank + k]);
      const double before = std::sqrt(math::dot<double>(v, v, width_));
      // Twice: once leaves errors of the size of what cancels.
      for (int round = 0; effect.orthonormal && round < 2; ++round) {
        for (std::uint64_t j = 0; j < k; ++j) {
          const double* const other = vectors_.data() + j * width_;
          const double along = math::dot<double>(v, other, width_);
          for (std::uint64_t i = 0; i < width_; ++i) v[i] -= along * other[i];
        }
      }
      const double length = std::sqrt(math::dot<double>(v, v, width_));
      if (!(length > before * 1e-7)) {
        fail(Code::format,
             fmt::format("{}: column {} of {} has no direction{}", effect.adapter, k, u.info.name,
                         effect.orthonormal ? " beside the columns before it" : ""));
      }
      for (std::uint64_t i = 0; i < width_; ++i) v[i] /= length;
    }
  }

  template <class T>
  void apply(const Panel<T>& panel) const {
    using W = Wide<T>;
    std::vector<W> row(width_);
    for (std::uint64_t at = 0; at < panel.values.size(); at += width_) {
      const std::span<T> values = panel.values.subspan(at, width_);
      for (std::uint64_t i = 0; i < width_; ++i) row[i] = W(widen(values[i]));
      for (std::uint64_t k = 0; k < vectors_.size(); k += width_) {
        math::reflect(row.data(), vectors_.data() + k, width_);
      }
      for (std::uint64_t i = 0; i < width_; ++i) {
        values[i] = math::blend(T(weight_), full_, values[i], narrow(row[i]));
      }
    }
  }

 private:
  const std::uint64_t width_;
  const float weight_;
  const bool full_;
  std::vector<double> vectors_;  // of length 1, one after the other
};

std::unique_ptr<Step> make_hra(const Scene& scene, const Effect& effect) {
  return std::make_unique<Reflections>(scene, effect);
}

}  // namespace

const Kit kOft{check_oft, memory_oft, make_oft, true, false};
const Kit kBoft{check_boft, memory_boft, make_boft, true, false};
const Kit kHra{check_hra, memory_hra, make_hra, true, false};

}  // namespace ingot

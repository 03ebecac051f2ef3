#include "adapter/kept.hpp"

#include <algorithm>
#include <cmath>
#include <span>

#include "ingot/error.hpp"

namespace ingot::adapter {
namespace {

// The power of two that brings a row's largest number into [1, 2).
int exponent_of(std::span<const double> row) {
  double most = 0;
  for (const double x : row) most = std::max(most, std::fabs(x));
  return most > 0 && std::isfinite(most) ? std::ilogb(most) : 0;
}

double squares_of(std::span<const double> row) {
  double sum = 0;
  for (const double x : row) sum += x * x;
  return sum;
}

}  // namespace

// The rows of A of a matrix, then those of B.
void Kept::keep(const std::string& module, std::uint64_t expert, const linalg::Low& low, bool all) {
  Found found{0, low.b.cols, low.a.cols, {}, low.values, low.norm, low.error, all};
  found.values.resize(low.a.rows);
  for (std::size_t k = 0; k < low.a.rows; ++k) {
    const std::span a(low.a.row(k), low.a.cols), b(low.b.row(k), low.b.cols);
    found.directions.push_back({exponent_of(a), exponent_of(b), squares_of(a) * squares_of(b)});
  }
  File* file = nullptr;
  std::uint64_t at = 0;
  {
    const std::lock_guard lock(mutex_);
    if (!file_) file_ = make_();
    file = file_.get();
    at = found.offset = end_;
    end_ += low.a.rows * (found.height + found.width) * sizeof(float);
  }
  std::vector<float> values;
  for (const linalg::Matrix* side : {&low.a, &low.b}) {
    values.resize(side->cols);
    for (std::size_t k = 0; k < side->rows; ++k) {
      const Direction& direction = found.directions[k];
      const int shift = side == &low.a ? direction.a : direction.b;
      for (std::size_t i = 0; i < side->cols; ++i) {
        values[i] = static_cast<float>(std::ldexp(side->at(k, i), -shift));
      }
      const std::span<const std::byte> bytes = std::as_bytes(std::span(values));
      write_exact(*file, at, bytes);
      at += bytes.size();
    }
  }
  const std::lock_guard lock(mutex_);
  found_[{module, expert}] = std::move(found);
}

const Kept::Found* Kept::look(const std::string& module, std::uint64_t expert,
                              std::uint64_t rank) const {
  const std::lock_guard lock(mutex_);
  const auto at = found_.find({module, expert});
  if (at == found_.end()) return nullptr;
  return at->second.all || at->second.directions.size() >= rank ? &at->second : nullptr;
}

bool Kept::has(const std::string& module, std::uint64_t experts, std::uint64_t rank) const {
  for (std::uint64_t e = 0; e < experts; ++e) {
    if (look(module, e, rank) == nullptr) return false;
  }
  return true;
}

linalg::Low Kept::find(const std::string& module, std::uint64_t expert, std::uint64_t rank) const {
  const Found* found = look(module, expert, rank);
  if (found == nullptr) fail(Code::internal, module + " was not kept at this rank");
  const std::uint64_t held = found->directions.size(), count = std::min(rank, held);
  linalg::Low low{linalg::Matrix(count, found->height), linalg::Matrix(count, found->width),
                  found->values, found->norm, found->error};
  std::vector<float> values;
  std::uint64_t at = found->offset;
  for (linalg::Matrix* side : {&low.a, &low.b}) {
    values.resize(side->cols);
    const std::span<std::byte> bytes = std::as_writable_bytes(std::span(values));
    for (std::size_t k = 0; k < count; ++k) {
      const Direction& direction = found->directions[k];
      const int shift = side == &low.a ? direction.a : direction.b;
      read_exact(*file_, at + k * bytes.size(), bytes);
      for (std::size_t i = 0; i < values.size(); ++i) {
        side->at(k, i) = std::ldexp(static_cast<double>(values[i]), shift);
      }
    }
    at += held * bytes.size();
  }
  // Directions are orthogonal on both sides, so that what is left out adds up in squares.
  double squares = low.error * low.error;
  for (std::uint64_t k = count; k < held; ++k) squares += found->directions[k].squares;
  low.error = std::sqrt(squares);
  return low;
}

}  // namespace ingot::adapter

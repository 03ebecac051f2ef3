#include "measure/measure.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "ingot/error.hpp"

namespace ingot {

void Measurements::line(const math::Rule& rule, std::uint64_t index, double* line) const {
  if (lines.empty()) return;
  const math::Method& method = math::method(rule.method);
  const math::LineShape shape = math::line_shape(rule, method.lines(rule));
  for (int i = 0; i < method.line_facts; ++i) {
    line[i] = lines[static_cast<std::size_t>(i) * shape.count + shape.line(index)];
  }
}

Measuring::Measuring(const math::Rule& rule, const std::string& name, bool sparse)
    : rule_(rule),
      method_(math::method(rule.method)),
      name_(name),
      sparse_(sparse),
      passes_(static_cast<int>(method_.passes.size())),
      shape_(math::line_shape(rule, method_.lines(rule))) {
  known_.facts = method_.begin(rule);
  if (rule.elements == 0) {
    pass_ = passes_;
    return;
  }
  begin();
}

const math::PassInfo& Measuring::info() const {
  return method_.passes[static_cast<std::size_t>(pass_)];
}

bool Measuring::sampling() const noexcept {
  return selector_ && selector_->step() == Selector::Step::sample;
}

void Measuring::begin() {
  selector_.reset();
  chunks_.clear();
  for (; pass_ < passes_; ++pass_) {
    if (!info().wanted(rule_, known_.facts)) continue;
    if (info().kind != math::Pass::order) break;
    selector_ = std::make_unique<Selector>(rule_, pass_, known_.facts, sparse_);
    if (selector_->step() != Selector::Step::done) break;
    selector_.reset();
  }
  if (pass_ == passes_) return;
  if (selector_) {
    chunks_ = selector_->chunks();
    return;
  }
  const auto count = static_cast<std::uint32_t>((rule_.elements + kChunk - 1) / kChunk);
  for (std::uint32_t c = 0; c < count; ++c) chunks_.push_back(c);
  sums_ = info().sums(rule_);
  const auto sums = static_cast<std::size_t>(sums_);
  if (info().kind == math::Pass::fold) {
    tiles_.assign(sums * ((rule_.elements + math::kTile - 1) / math::kTile), 0.0);
    return;
  }
  known_.lines.resize(static_cast<std::size_t>(method_.line_facts) * shape_.count);
  next_ = 0;
  if (shape_.lines == math::Lines::columns) columns_.assign(sums * shape_.count, info().start);
}

void Measuring::visit(Backend& backend, Chunk chunk) {
  chunk.facts = &known_.facts;
  chunk.lines = known_.lines.empty() ? nullptr : known_.lines.data();
  if (selector_) {
    selector_->visit(backend, chunk);
  } else {
    fold(backend, chunk);
  }
}

void Measuring::fold(Backend& backend, const Chunk& chunk) {
  const auto count = static_cast<std::size_t>(sums_);
  if (info().kind == math::Pass::lines && shape_.lines == math::Lines::rows) {
    Sums sums(count * math::segments(chunk.first, chunk.count, shape_.width));
    backend.fold(chunk, pass_, sums);
    fold_rows(chunk, sums);
    return;
  }
  if (info().kind == math::Pass::lines) {
    Sums sums(count * shape_.count);
    backend.fold(chunk, pass_, sums);
    fold_columns(chunk, std::move(sums));
    return;
  }
  const std::size_t all = tiles_.size() / count;
  const std::size_t here = (chunk.count + math::kTile - 1) / math::kTile;
  Sums sums(count * here);
  backend.fold(chunk, pass_, sums);
  const std::size_t tile = chunk.first / math::kTile;
  for (std::size_t n = 0; n < count; ++n) {
    std::copy_n(sums.begin() + static_cast<std::ptrdiff_t>(n * here), here,
                tiles_.begin() + static_cast<std::ptrdiff_t>(n * all + tile));
  }
}

// Rows that lie within the chunk are concluded at once, so that memory holds the facts of all rows
// and the sums of few. Facts of one row are written by one thread, and no other reads them in this
// pass.
void Measuring::fold_rows(const Chunk& chunk, const Sums& sums) {
  const auto count = static_cast<std::size_t>(sums_);
  const std::size_t segments = sums.size() / count;
  std::vector<Sums> parts;
  std::size_t at = 0;
  math::each_segment(
      chunk.first, chunk.count, shape_.width,
      [&](std::uint64_t row, std::uint64_t begin, std::uint32_t length) {
        Sums& part = parts.emplace_back(count);
        for (std::size_t n = 0; n < count; ++n) part[n] = sums[n * segments + at];
        ++at;
        const std::uint64_t row_begin = row * shape_.width, row_end = row_begin + shape_.width;
        const bool cut = row_begin < chunk.first || row_end > chunk.first + chunk.count;
        if (cut) {
          const std::lock_guard lock(mutex_);
          open_[row][begin] = std::move(part);
          parts.clear();
        } else if (begin + length == row_end) {
          take_line(row, parts);
          parts.clear();
        }
      });
}

void Measuring::fold_columns(const Chunk& chunk, Sums sums) {
  const std::lock_guard lock(mutex_);
  waiting_[chunk.first / kChunk] = std::move(sums);
  while (!waiting_.empty() && waiting_.begin()->first == next_) {
    const Sums& part = waiting_.begin()->second;
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      columns_[i] = info().join(columns_[i], part[i]);
    }
    waiting_.erase(waiting_.begin());
    ++next_;
  }
}

void Measuring::take_line(std::uint64_t line, std::vector<Sums>& parts) {
  Sums totals, one(parts.size());
  for (std::size_t n = 0; n < static_cast<std::size_t>(sums_); ++n) {
    for (std::size_t p = 0; p < parts.size(); ++p) one[p] = parts[p][n];
    totals.push_back(math::combine(one.data(), one.size(), info().join, info().start));
  }
  double facts[math::kLineFacts] = {};
  info().take_line(rule_, totals.data(), facts);
  for (int i = 0; i < info().facts; ++i) {
    known_.lines[static_cast<std::size_t>(info().first_fact + i) * shape_.count + line] = facts[i];
  }
}

void Measuring::advance() {
  if (selector_) {
    selector_->advance();
    if (selector_->step() != Selector::Step::done) {
      chunks_ = selector_->chunks();
      return;
    }
    selector_->conclude(known_.facts);
  } else if (info().kind == math::Pass::fold) {
    const auto count = static_cast<std::size_t>(sums_);
    const std::size_t tiles = tiles_.size() / count;
    Sums sums(count);
    for (std::size_t n = 0; n < count; ++n) {
      sums[n] = math::combine(tiles_.data() + n * tiles, tiles, info().join, info().start);
    }
    if (const char* why = info().take(rule_, sums.data(), known_.facts)) {
      fail(Code::usage, fmt::format("{}: {}: {}", name_, method_.card.name, why));
    }
    Sums().swap(tiles_);
  } else if (shape_.lines == math::Lines::rows) {
    for (auto& [row, segments] : open_) {
      std::vector<Sums> parts;
      for (auto& [begin, sums] : segments) parts.push_back(std::move(sums));
      take_line(row, parts);
    }
    open_.clear();
  } else {
    for (std::uint64_t column = 0; column < shape_.count; ++column) {
      std::vector<Sums> part{Sums(static_cast<std::size_t>(sums_))};
      for (std::size_t n = 0; n < part[0].size(); ++n) {
        part[0][n] = columns_[n * shape_.count + column];
      }
      take_line(column, part);
    }
    Sums().swap(columns_);
  }
  ++pass_;
  begin();
}

}  // namespace ingot

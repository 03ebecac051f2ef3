// What a tensor's formula needs is measured here: the passes of its method, one after the other.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ingot/backend.hpp"
#include "ingot/methods.hpp"
#include "measure/select.hpp"

namespace ingot {

// What is known of a tensor when its formula runs.
struct Measurements {
  math::Facts facts;
  std::vector<double> lines;  // as Chunk::lines; empty where the method has no facts of lines

  // The facts of the line of an element: kLineFacts of them.
  void line(const math::Rule& rule, std::uint64_t index, double* line) const;
};

// Drives the passes of a method over one tensor, whoever holds its chunks: the caller visits the
// chunks() of the current step in any order and from any threads, then calls advance(), until
// done(). The result is a function of the elements alone.
class Measuring {
 public:
  // `sparse`: chunks cost a read each. `name` is the tensor's, for errors. Both references stay.
  Measuring(const math::Rule& rule, const std::string& name, bool sparse);

  [[nodiscard]] bool done() const noexcept { return pass_ == passes_; }
  // The chunks the current step must visit; none after the last.
  [[nodiscard]] const std::vector<std::uint32_t>& chunks() const noexcept { return chunks_; }
  // True in an order pass; true while its step looks at a few places of each chunk only.
  [[nodiscard]] bool ordering() const noexcept { return selector_ != nullptr; }
  [[nodiscard]] bool sampling() const noexcept;

  // Runs the current step on a chunk, whose facts and lines are set here. Thread-safe; each chunk
  // of chunks() once per step.
  void visit(Backend& backend, Chunk chunk);
  // All chunks of the step were visited: draws the conclusions and goes to the next step. Throws
  // Error{usage} where the method refuses the tensor.
  void advance();

  // What is known so far; all of it when done().
  [[nodiscard]] const Measurements& known() const noexcept { return known_; }

 private:
  // The sums of some segments of a row, or of one run of columns.
  using Sums = std::vector<double>;

  [[nodiscard]] const math::PassInfo& info() const;
  void begin();  // the first pass from `pass_` on that is wanted
  void fold(Backend& backend, const Chunk& chunk);
  void fold_rows(const Chunk& chunk, const Sums& sums);
  void fold_columns(const Chunk& chunk, Sums sums);
  void take_line(std::uint64_t line, std::vector<Sums>& parts);

  const math::Rule& rule_;
  const math::Method& method_;
  const std::string& name_;
  bool sparse_;
  int pass_ = 0;
  const int passes_;
  int sums_ = 0;           // of the current pass
  math::LineShape shape_;  // of lines, where the method has any
  Measurements known_;
  std::unique_ptr<Selector> selector_;
  std::vector<std::uint32_t> chunks_;
  Sums tiles_;  // by sum and tile of the whole tensor
  // Rows that chunks cut: the sums of their segments, by row and by the segment's first element.
  std::map<std::uint64_t, std::map<std::uint64_t, Sums>> open_;
  // Columns: what is added up, and what waits for the chunks before it.
  Sums columns_;
  std::map<std::uint64_t, Sums> waiting_;
  std::uint64_t next_ = 0;  // the chunk that is added next
  std::mutex mutex_;
};

}  // namespace ingot

// Decompositions that were made to choose ranks, kept in a file until their factors are written.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "ingot/linalg.hpp"
#include "ingot/store.hpp"

namespace ingot::adapter {

// By module and expert. Factors are kept in f32, each direction times a power of two, so that
// neither end of single precision takes anything from them. Thread-safe.
class Kept {
 public:
  // `make` gives an empty file to read and write, when the first result comes.
  explicit Kept(std::function<std::unique_ptr<File>()> make) : make_(std::move(make)) {}

  // `all`: the matrix has no directions beside those of `low`. Throws what the file throws.
  void keep(const std::string& module, std::uint64_t expert, const linalg::Low& low, bool all);

  // Whether of each of so many experts `rank` directions are there, or all that it has.
  [[nodiscard]] bool has(const std::string& module, std::uint64_t experts,
                         std::uint64_t rank) const;

  // The leading `rank` directions, or as many as the matrix has, and the error that these leave.
  // Only where has() is true.
  [[nodiscard]] linalg::Low find(const std::string& module, std::uint64_t expert,
                                 std::uint64_t rank) const;

 private:
  struct Direction {
    int a = 0, b = 0;    // exponents that its rows were divided by
    double squares = 0;  // of the product of its column of B and its row of A
  };
  struct Found {
    std::uint64_t offset = 0, height = 0, width = 0;
    std::vector<Direction> directions;
    std::vector<double> values;
    double norm = 0, error = 0;
    bool all = false;
  };
  [[nodiscard]] const Found* look(const std::string& module, std::uint64_t expert,
                                  std::uint64_t rank) const;

  const std::function<std::unique_ptr<File>()> make_;
  mutable std::mutex mutex_;  // guards all below; what is found stays in its place
  std::unique_ptr<File> file_;
  std::uint64_t end_ = 0;
  std::map<std::pair<std::string, std::uint64_t>, Found> found_;
};

}  // namespace ingot::adapter

// Tensors put together of parts of stored ones: every run of elements is the one that the patches
// say, however it is cut.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "ingot/store.hpp"
#include "store/header.hpp"
#include "store/values.hpp"
#include "support.hpp"

namespace ingot {
namespace {

constexpr std::uint64_t kNumbers = 400;

// A checkpoint of one tensor that holds 0, 1, 2, ... as float32.
class Patches : public ::testing::Test {
 protected:
  void SetUp() override {
    const TensorInfo info{"numbers", Dtype::f32, Shape{kNumbers}};
    std::string file = print_header({&info, 1}, {});
    for (std::uint64_t i = 0; i < kNumbers; ++i) {
      const auto number = static_cast<float>(i);
      file.append(reinterpret_cast<const char*>(&number), sizeof number);
    }
    test::write_file(folder_ / "model.safetensors", file);
  }

  // A patch from number `start` on.
  static Patch patch(std::uint64_t start, Patch::Axis plane, Patch::Axis row, Patch::Axis column) {
    return {0, start, {plane, row, column}};
  }

  // Reads every run of a tensor of these patches and compares it with their definition.
  void check(const Shape& shape, std::vector<Patch> patches) {
    Checkpoint model = Checkpoint::open(*disk_, folder_.path(), "m");
    const std::uint64_t data = model.entries()[0].offset;
    std::vector<float> truth(shape.count(), -1);
    const std::uint64_t width = shape[shape.rank() - 1];
    const std::uint64_t height = shape.rank() > 1 ? shape[shape.rank() - 2] : 1;
    for (Patch& patch : patches) {
      const auto& [e, r, c] = patch.axes;
      for (std::uint64_t i = 0; i < e.count; ++i) {
        for (std::uint64_t j = 0; j < r.count; ++j) {
          for (std::uint64_t k = 0; k < c.count; ++k) {
            const std::uint64_t at =
                ((e.begin + i * e.pace) * height + r.begin + j * r.pace) * width + c.begin +
                k * c.pace;
            ASSERT_EQ(truth[at], -1) << "two patches have one element";
            truth[at] =
                static_cast<float>(patch.offset + i * e.stride + j * r.stride + k * c.stride);
          }
        }
      }
      patch.offset = data + patch.offset * sizeof(float);
    }
    ASSERT_EQ(std::count(truth.begin(), truth.end(), -1), 0) << "an element is in no patch";
    Entry entry;
    entry.info = {"made", Dtype::f32, shape};
    entry.patches = std::move(patches);
    model.arrange({entry});
    for (std::uint64_t first = 0; first < truth.size(); ++first) {
      for (std::uint64_t count = 1; first + count <= truth.size(); ++count) {
        std::vector<float> values(count);
        read_values(model, *model.find("made"), first, values);
        ASSERT_TRUE(std::equal(values.begin(), values.end(),
                               truth.begin() + static_cast<std::ptrdiff_t>(first)))
            << first << " " << count;
      }
    }
  }

  const test::Folder folder_;
  const std::unique_ptr<Disk> disk_ = system_disk();
};

TEST_F(Patches, MatricesOneUponTheOther) {
  check({2, 4, 3},
        {patch(50, {0}, {0, 2, 1, 3}, {0, 3, 1, 1}), patch(9, {0}, {2, 2, 1, 3}, {0, 3, 1, 1}),
         patch(90, {1}, {0, 2, 1, 3}, {0, 3, 1, 1}), patch(70, {1}, {2, 2, 1, 5}, {0, 3, 1, 1})});
}

TEST_F(Patches, MatricesTransposedSideBySideAndInTurns) {
  check({2, 3, 4},
        {patch(0, {0}, {0, 3, 1, 1}, {0, 2, 1, 3}), patch(20, {0}, {0, 3, 1, 1}, {2, 2, 1, 3}),
         patch(40, {1}, {0, 3, 1, 1}, {0, 2, 2, 3}), patch(60, {1}, {0, 3, 1, 1}, {1, 2, 2, 3})});
}

TEST_F(Patches, RowsInTurns) {
  check({1, 6, 2},
        {patch(5, {0}, {0, 3, 2, 2}, {0, 2, 1, 1}), patch(30, {0}, {1, 3, 2, 2}, {0, 2, 1, 1})});
}

TEST_F(Patches, AMatrixCutOutOfATensorOfAllInEitherOrder) {
  check({3, 5}, {patch(11, {0}, {0, 3, 1, 5}, {0, 5, 1, 1})});
  check({3, 5}, {patch(11, {0}, {0, 3, 1, 1}, {0, 5, 1, 3})});
  check({3, 5}, {patch(12, {0}, {0, 3, 1, 2}, {0, 5, 1, 6})});  // every other output
  check({5}, {patch(7, {0}, {0}, {0, 5, 1, 2})});
}

TEST_F(Patches, ColumnsOfBiases) {
  check({3, 4}, {patch(1, {0}, {0}, {0, 2, 2, 1}), patch(11, {0}, {0}, {1, 2, 2, 1}),
                 patch(21, {0}, {1}, {0, 2, 2, 1}), patch(31, {0}, {1}, {1, 2, 2, 1}),
                 patch(41, {0}, {2}, {0, 2, 2, 1}), patch(51, {0}, {2}, {1, 2, 2, 1})});
}

}  // namespace
}  // namespace ingot

#include "spectra.hpp"

#include <cmath>

#include <gtest/gtest.h>

#include "adapting.hpp"

namespace ingot::tool {
namespace {

Spectra measured(const test::Folder& folder, const std::vector<std::string>& names) {
  const auto disk = system_disk();
  std::vector<Adapter> adapters;
  for (const std::string& name : names) {
    adapters.push_back(open_adapter(*disk, folder / name, name));
  }
  return measure(adapters);
}

// An output of a grouped convolution sees the ranks of its group alone: the update here is rows
// (3, 4), (6, 8) of group 0 and (0, 5), (0, 0) of group 1.
TEST(Spectra, UpdatesOfGroupedConvolutionsAreTheirGroups) {
  const test::Folder folder;
  const test::Values a{{2, 2, 1, 1}, {3, 4, 0, 5}};
  test::write_adapter(
      folder / "a", {{"fc.lora_A.weight", a}, {"fc.lora_B.weight", {{4, 1, 1, 1}, {1, 2, 1, 0}}}});
  test::write_adapter(
      folder / "b", {{"fc.lora_A.weight", a}, {"fc.lora_B.weight", {{4, 1, 1, 1}, {0, 0, -2, 0}}}});
  const Spectra spectra = measured(folder, {"a", "b"});
  EXPECT_NEAR(spectra.adapters[0].norm, std::sqrt(9 + 16 + 36 + 64 + 25), 1e-12);
  EXPECT_NEAR(spectra.adapters[1].norm, 10, 1e-12);
  ASSERT_TRUE(spectra.modules.at(0).relations.at(0));
  EXPECT_NEAR(spectra.modules[0].relations[0]->cosine, -50 / (10 * std::sqrt(150)), 1e-12);
  EXPECT_EQ(spectra.adapters[0].adapted, 4U);  // outputs by the inputs of one group
}

}  // namespace
}  // namespace ingot::tool

// Any bytes as a recipe: a Recipe, whose values can be asked for, or Error{usage}.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "ingot/error.hpp"
#include "ingot/recipe.hpp"

namespace {

// Runs `work`, which may fail in one way only.
template <class Work>
void only_usage(const Work& work) {
  try {
    work();
  } catch (const ingot::Error& e) {
    if (e.code() != ingot::Code::usage) std::abort();
  }
}

void ask(const ingot::Parameters& parameters) {
  for (const auto& [name, setting] : parameters) {
    for (const auto kind : {ingot::Kind::real, ingot::Kind::integer, ingot::Kind::boolean}) {
      for (const double t : {0.0, 0.3, 1.0}) {
        only_usage([&, &name = name, &setting = setting] {
          (void)ingot::evaluate(setting, name, "model.layers.1.mlp.up_proj.weight", t, kind, "f");
        });
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  only_usage([&] {
    const ingot::Recipe recipe = ingot::parse(text, "f", {.allow_unknown_keys = size % 2 == 1});
    const int kinds = (recipe.models.empty() ? 0 : 1) + (recipe.slices.empty() ? 0 : 1) +
                      (recipe.modules.empty() ? 0 : 1);
    if (kinds != 1 || recipe.method.empty() || ingot::models_of(recipe).empty()) std::abort();
    ask(recipe.parameters);
    for (const ingot::Source& source : recipe.models) ask(source.parameters);
  });
  return 0;
}

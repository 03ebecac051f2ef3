#include "recipe/reference.hpp"

#include <algorithm>

namespace ingot {

void split_revision(const std::string& text, ModelRef& ref) {
  const std::size_t at = text.rfind('@');
  ref.path = text.substr(0, at);
  ref.revision = at == std::string::npos ? "" : text.substr(at + 1);
}

ModelRef reference_of(const std::string& text, Mark mark) {
  ModelRef ref;
  ref.text = text;
  ref.mark = mark;
  const std::size_t plus = text.find('+');
  split_revision(text.substr(0, plus), ref);
  for (std::size_t start = plus; start != std::string::npos;) {
    const std::size_t next = text.find('+', start + 1);
    ref.adapters.push_back(
        text.substr(start + 1, next == std::string::npos ? next : next - start - 1));
    start = next;
  }
  return ref;
}

std::vector<ModelRef> models_of(const Recipe& recipe) {
  std::vector<ModelRef> models;
  const auto add = [&](const ModelRef& ref) {
    if (std::find(models.begin(), models.end(), ref) == models.end()) models.push_back(ref);
  };
  const auto add_sources = [&](const std::vector<Source>& sources) {
    for (const Source& source : sources) add(source.model);
  };
  const auto add_slices = [&](const std::vector<Slice>& slices) {
    for (const Slice& slice : slices) {
      add_sources(slice.sources);
      if (slice.base_model) add(*slice.base_model);
    }
  };
  add_sources(recipe.models);
  add_slices(recipe.slices);
  for (const Module& module : recipe.modules) {
    add_sources(module.models);
    add_slices(module.slices);
  }
  if (recipe.base_model) add(*recipe.base_model);
  return models;
}

}  // namespace ingot

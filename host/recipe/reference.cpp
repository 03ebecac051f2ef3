#include "recipe/reference.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace ingot {

void split_revision(const std::string& text, std::string& path, std::string& revision) {
  const std::size_t at = text.rfind('@');
  path = text.substr(0, at);
  revision = at == std::string::npos ? "" : text.substr(at + 1);
}

void add_adapter(ModelRef& ref, AdapterRef adapter) {
  ref.text += "+" + adapter.text;
  if (adapter.weight != 1) ref.text += fmt::format(":{}", adapter.weight);
  ref.adapters.push_back(std::move(adapter));
}

ModelRef reference_of(const std::string& text, Mark mark) {
  ModelRef ref;
  ref.mark = mark;
  const std::size_t plus = text.find('+');
  ref.text = text.substr(0, plus);
  split_revision(ref.text, ref.path, ref.revision);
  for (std::size_t start = plus; start != std::string::npos;) {
    const std::size_t next = text.find('+', start + 1);
    AdapterRef adapter;
    adapter.text = text.substr(start + 1, next == std::string::npos ? next : next - start - 1);
    split_revision(adapter.text, adapter.path, adapter.revision);
    add_adapter(ref, std::move(adapter));
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

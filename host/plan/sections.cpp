#include "plan/sections.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include <fmt/format.h>

namespace ingot::plan {
namespace {

// A hundred times what the deepest models have.
constexpr std::uint64_t kLayers = 20'000;

class Maker {
 public:
  Maker(Draft& draft, const Rules& rules)
      : draft_(draft), rules_(rules), recipe_(draft.recipe()), problems_(draft.problems) {}

  std::vector<Part> run() {
    if (!recipe_.models.empty()) {
      add_whole(kAllModules, recipe_.models, recipe_.base_model, nullptr, nullptr, "models");
    } else if (!recipe_.slices.empty()) {
      add_top_slices();
    } else {
      add_modules();
    }
    return std::move(parts_);
  }

 private:
  [[nodiscard]] std::uint64_t depth(std::uint32_t model, std::int32_t stack) const {
    return draft_.names.listings[model].counts[static_cast<std::size_t>(stack)];
  }
  [[nodiscard]] std::uint32_t index(const ModelRef& ref) const {
    return draft_.by_text.at(ref.text);
  }

  // Slices outside modules: of the only module, or of the text decoder of a model for more than
  // text. Its other modules come whole from the models of the first slice, as what stands before
  // the layers does.
  void add_top_slices() {
    const auto& known = draft_.names.modules;
    const auto text = std::find(known.begin(), known.end(), "text_decoder");
    const std::string place = draft_.place(recipe_.slices.front().mark);
    if (known.size() > 1 && text == known.end()) {
      problems_.error(
          Code::usage,
          fmt::format("{}: {} has modules {}: name one under 'modules' and put the slices there",
                      place, draft_.shown(draft_.donor), fmt::join(known, ", ")));
      return;
    }
    const auto number = static_cast<std::uint32_t>(known.size() > 1 ? text - known.begin() : 0);
    add_slices(number, recipe_.slices, nullptr, "");
    if (known.size() < 2 || parts_.empty() || parts_.back().sections.empty()) return;
    Section section = parts_.back().sections.front();
    section.whole = true;
    section.stack = kNoStack;
    section.count = section.offset = 0;
    std::set<std::uint32_t> models;
    for (Input& input : section.inputs) {
      input.first = 0;
      models.insert(input.model);
    }
    std::vector<std::string> others;
    for (std::uint32_t m = 0; m < known.size(); ++m) {
      if (m == number) continue;
      if (models.size() < section.inputs.size()) {
        problems_.error(Code::usage,
                        fmt::format("{}: the first slice has one model twice, so it is not clear "
                                    "where {} comes from: name the modules under 'modules'",
                                    place, known[m]));
        return;
      }
      if (!check_depths(section, m)) return;
      others.push_back(known[m]);
      parts_.push_back({m, {section}});
    }
    problems_.warn(Code::usage,
                   fmt::format("{}: the slices cut only the text_decoder of {}; {} come{} whole "
                               "from the models of the first slice",
                               place, draft_.shown(draft_.donor), fmt::join(others, ", "),
                               others.size() == 1 ? "s" : ""));
  }

  void add_modules() {
    const auto& known = draft_.names.modules;
    for (const Module& module : recipe_.modules) {
      const auto it = std::find(known.begin(), known.end(), module.name);
      if (it == known.end()) {
        problems_.error(
            Code::usage,
            fmt::format("{}: {} has no module '{}'; it has {}{}", draft_.place(module.mark),
                        draft_.shown(draft_.donor), module.name, fmt::join(known, ", "),
                        suggestion(module.name, known)));
        continue;
      }
      const auto number = static_cast<std::uint32_t>(it - known.begin());
      const std::string where = fmt::format("modules.{}.", module.name);
      if (!module.models.empty()) {
        add_whole(number, module.models, recipe_.base_model, nullptr, &module.parameters,
                  where + "models");
      } else {
        add_slices(number, module.slices, &module.parameters, where);
      }
    }
    for (std::uint32_t m = 0; m < known.size(); ++m) {
      const bool named = std::any_of(recipe_.modules.begin(), recipe_.modules.end(),
                                     [&](const Module& module) { return module.name == known[m]; });
      if (named) continue;
      problems_.warn(Code::usage,
                     fmt::format("{}: module '{}' of {} is not named and will not be written",
                                 recipe_.file, known[m], draft_.shown(draft_.donor)));
    }
  }

  void add_whole(std::uint32_t module, const std::vector<Source>& sources,
                 const std::optional<ModelRef>& base_model, const Parameters* of_slice,
                 const Parameters* of_module, std::string where) {
    Section section;
    section.where = std::move(where);
    for (const Source& source : sources) {
      section.inputs.push_back({index(source.model), 0, &source.parameters});
    }
    if (base_model) {
      const std::uint32_t base = index(*base_model);
      find_base(section, base);
      if (!section.base) {  // whatever the method: mergekit's rule for whole models
        section.inputs.push_back({base, 0, nullptr});
        section.base = section.inputs.size() - 1;
      }
    }
    if (!check(section, module != kAllModules) || !check_depths(section, module)) return;
    bind(section, of_slice, of_module);
    parts_.push_back({module, {}});
    parts_.back().sections.push_back(std::move(section));
  }

  bool check_depths(const Section& section, std::uint32_t module) {
    const std::uint32_t first = section.inputs.front().model;
    for (std::size_t s = 0; s < draft_.names.stacks.size(); ++s) {
      const Stack& stack = draft_.names.stacks[s];
      if (module != kAllModules && stack.module != module) continue;
      for (const Input& input : section.inputs) {
        const std::int32_t number = static_cast<std::int32_t>(s);
        if (depth(first, number) == depth(input.model, number)) continue;
        // A whole module that one of the two lacks is told of where its tensors are written.
        const std::uint32_t shallow = depth(first, number) == 0 ? first : input.model;
        if (depth(shallow, number) == 0 && draft_.names.gap(shallow, number) != nullptr) continue;
        problems_.error(
            Code::shape,
            fmt::format("{}: {}: {} has {} layers ({}), {} has {}; models that are merged whole "
                        "must have the same number of layers; use 'slices' to take some of them",
                        recipe_.file, section.where, draft_.shown(first), depth(first, number),
                        stack.prefix, draft_.shown(input.model), depth(input.model, number)));
        return false;
      }
    }
    return true;
  }

  // The stack that slices of a module mean: the donor's deepest.
  [[nodiscard]] std::int32_t main_stack(std::uint32_t module) const {
    std::int32_t best = kNoStack;
    std::uint64_t most = 0;
    for (std::size_t s = 0; s < draft_.names.stacks.size(); ++s) {
      const std::int32_t number = static_cast<std::int32_t>(s);
      if (draft_.names.stacks[s].module != module || depth(draft_.donor, number) <= most) continue;
      most = depth(draft_.donor, number);
      best = number;
    }
    return best;
  }

  void add_slices(std::uint32_t module, const std::vector<Slice>& slices,
                  const Parameters* of_module, const std::string& where) {
    const std::int32_t stack = main_stack(module);
    if (stack == kNoStack && slices.size() == 1 && without_layers(slices.front())) {
      // mergekit's way to name all of a module that has no layers.
      const Slice& slice = slices.front();
      add_whole(module, slice.sources, slice.base_model ? slice.base_model : recipe_.base_model,
                &slice.parameters, of_module,
                fmt::format("{}slices[0] (line {})", where, slice.mark.line));
      return;
    }
    if (stack == kNoStack) {
      problems_.error(Code::format,
                      fmt::format("{}: {} has no layers to slice",
                                  draft_.place(slices.front().mark), draft_.shown(draft_.donor)));
      return;
    }
    Part part{module, {}};
    std::uint64_t offset = 0;
    for (std::size_t i = 0; i < slices.size(); ++i) {
      const Slice& slice = slices[i];
      Section section;
      section.where = fmt::format("{}slices[{}] (line {})", where, i, slice.mark.line);
      section.whole = false;
      section.stack = stack;
      section.offset = offset;
      bool sound = true;
      for (const Source& source : slice.sources) sound = add_range(section, source) && sound;
      const auto& base = slice.base_model ? slice.base_model : recipe_.base_model;
      sound = sound && (!base || add_base(section, index(*base))) && check(section, true);
      if (!sound) continue;
      if (section.count == 0 && !keep_empty(section, i, slices.size())) continue;
      bind(section, &slice.parameters, of_module);
      offset += section.count;
      if (offset > kLayers) {
        problems_.error(Code::usage,
                        fmt::format("{}: {}: the output would have more than {} layers",
                                    recipe_.file, section.where, kLayers));
        break;
      }
      part.sections.push_back(std::move(section));
    }
    if (offset == 0 && !problems_.fatal()) {
      problems_.error(Code::usage,
                      fmt::format("{}: no slice holds a layer, so the output would have none; "
                                  "layer_range [0, {}] holds all that {} has",
                                  draft_.place(slices.front().mark), depth(draft_.donor, stack),
                                  draft_.shown(draft_.donor)));
      return;
    }
    parts_.push_back(std::move(part));
  }

  static bool without_layers(const Slice& slice) {
    return std::all_of(slice.sources.begin(), slice.sources.end(), [](const Source& source) {
      return source.layer_range && *source.layer_range == std::pair<std::int64_t, std::int64_t>();
    });
  }

  // A slice without layers, which mergekit takes: the first still gives what stands before the
  // layers, the last what stands behind them; between others it gives nothing.
  bool keep_empty(const Section& section, std::size_t number, std::size_t count) {
    const bool first = number == 0;
    const bool last = number + 1 == count;
    const auto& shown = draft_.shown(section.inputs.front().model);
    problems_.warn(
        Code::usage,
        fmt::format("{}: {} holds no layer: {}", recipe_.file, section.where,
                    first || last ? fmt::format("only the tensors {} the layers come from {}",
                                                first && last ? "before and after"
                                                : first       ? "before"
                                                              : "after",
                                                shown)
                                  : "it is left out"));
    return first || last;
  }

  bool add_range(Section& section, const Source& source) {
    const std::uint32_t model = index(source.model);
    const std::uint64_t layers = depth(model, section.stack);
    const auto [begin, end] = source.layer_range.value_or(
        std::pair<std::int64_t, std::int64_t>{0, static_cast<std::int64_t>(layers)});
    // The parser has seen to 0 <= begin <= end.
    if (begin != end && static_cast<std::uint64_t>(end) > layers) {
      problems_.error(
          Code::shape,
          fmt::format("{}: layer_range [{}, {}] goes beyond the last layer of {}, which has {} "
                      "layers; [0, {}] takes all of them",
                      draft_.place(source.mark), begin, end, draft_.shown(model), layers, layers));
      return false;
    }
    const std::uint64_t count = static_cast<std::uint64_t>(end - begin);
    if (!section.inputs.empty() && count != section.count) {
      problems_.error(
          Code::shape,
          fmt::format("{}: {} gives {} layers to {}, and {} gives {}; all sources of a slice must "
                      "give the same number of layers",
                      draft_.place(source.mark), draft_.shown(model), count, section.where,
                      draft_.shown(section.inputs.front().model), section.count));
      return false;
    }
    section.count = count;
    section.inputs.push_back({model, static_cast<std::uint64_t>(begin), &source.parameters});
    return true;
  }

  // True for methods that merge task vectors where there is a base.
  [[nodiscard]] static bool apart_from(math::Base base) {
    return base == math::Base::origin || base == math::Base::optional;
  }

  // A base that task vectors need and the slice does not list gives the layers that all sources
  // give.
  bool add_base(Section& section, std::uint32_t base) {
    find_base(section, base);
    if (section.base || !apart_from(rules_.method().card.base)) return true;
    const std::uint64_t first = section.inputs.front().first;
    const bool same = std::all_of(section.inputs.begin(), section.inputs.end(),
                                  [&](const Input& input) { return input.first == first; });
    if (!same || first + section.count > depth(base, section.stack)) {
      problems_.error(
          Code::usage,
          fmt::format("{}: {}: it is not clear which layers of base_model {} are meant: list it "
                      "among the sources, with a layer_range",
                      recipe_.file, section.where, draft_.shown(base)));
      return false;
    }
    section.inputs.push_back({base, first, nullptr});
    section.base = section.inputs.size() - 1;
    return true;
  }

  static void find_base(Section& section, std::uint32_t base) {
    for (std::size_t i = 0; i < section.inputs.size() && !section.base; ++i) {
      if (section.inputs[i].model == base) section.base = i;
    }
  }

  // The method's demands: base, number of models, none twice. `part` tells that the output has
  // more than this section.
  bool check(Section& section, bool part) {
    const math::Method& method = rules_.method();
    const std::string where = fmt::format("{}: {}", recipe_.file, section.where);
    std::set<std::pair<std::uint32_t, std::uint64_t>> seen;
    for (const Input& input : section.inputs) {
      if (seen.emplace(input.model, input.first).second) continue;
      problems_.error(Code::usage,
                      fmt::format("{}: {} is listed twice{}", where, draft_.shown(input.model),
                                  section.whole ? "" : " with the same layers"));
      return false;
    }
    const math::Card& card = method.card;
    const bool apart = apart_from(card.base) && section.base.has_value();
    if (part && !apart && section.inputs.size() == 1 && card.least > 1) {
      problems_.warn(Code::usage, fmt::format("{}: {} is the only model, and {} takes {}: its "
                                              "tensors are passed through unchanged",
                                              where, draft_.shown(section.inputs.front().model),
                                              card.name, card.least));
      section.alone = true;
      section.base.reset();
      return true;
    }
    if (card.base != math::Base::ignored && card.base != math::Base::optional && !section.base) {
      problems_.error(Code::usage,
                      fmt::format("{}: {} needs {}", where, card.name,
                                  recipe_.base_model ? fmt::format("base_model {} among the models",
                                                                   recipe_.base_model->text)
                                                     : "a base_model"));
      return false;
    }
    const std::size_t count = section.inputs.size() - (apart ? 1 : 0);
    if (apart && count == 0) {
      problems_.warn(
          Code::usage,
          fmt::format("{}: the base is the only model: its tensors are copied unchanged", where));
    }
    const auto least = static_cast<std::size_t>(card.least);
    const auto most = static_cast<std::size_t>(card.most);
    if (count < least || count > most) {
      const bool appended = !apart && section.base && section.inputs[*section.base].own == nullptr;
      problems_.error(Code::usage,
                      fmt::format("{}: {} takes {} model{}{}, not {}{}", where, card.name,
                                  least == most ? fmt::format("exactly {}", most)
                                                : fmt::format("{} to {}", least, most),
                                  most == 1 ? "" : "s", apart ? " beside the base" : "", count,
                                  appended ? fmt::format(" (base_model {} counts as one)",
                                                         recipe_.base_model->text)
                                           : ""));
      return false;
    }
    if (card.base == math::Base::ignored) section.base.reset();  // an input like any other
    return true;
  }

  void bind(Section& section, const Parameters* of_slice, const Parameters* of_module) const {
    std::vector<const Parameters*> own;
    for (const Input& input : section.inputs) own.push_back(input.own);
    section.binding = rules_.bind(own, std::array{of_slice, of_module, &recipe_.parameters});
  }

  Draft& draft_;
  const Rules& rules_;
  const Recipe& recipe_;
  Problems& problems_;
  std::vector<Part> parts_;
};

}  // namespace

std::vector<Part> make_parts(Draft& draft, const Rules& rules) { return Maker(draft, rules).run(); }

}  // namespace ingot::plan

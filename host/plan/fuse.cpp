// From a recipe of adapters to the jobs of one adapter.
#include "plan/fuse.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "adapter/solve.hpp"
#include "adapter/stack.hpp"
#include "base/clip.hpp"
#include "base/hash.hpp"
#include "ingot/adapter.hpp"
#include "ingot/methods.hpp"
#include "plan/card.hpp"
#include "plan/folder.hpp"
#include "plan/peft.hpp"
#include "plan/ranks.hpp"
#include "plan/repeat.hpp"
#include "plan/types.hpp"

namespace ingot::plan {
namespace {

using adapter::Campaign;
using adapter::Side;
using adapter::Site;
using adapter::Term;

// How a combination type works on the parts of a module.
enum class Way : std::uint8_t {
  factors,  // on all A's, then on all B's
  stack,    // side by side
  sum,      // decomposes the sum of updates
  dense,    // decomposes what a method makes of the updates
};

struct Type {
  const char* name;
  Way way;
  const char* method;  // of math/methods/adapter.hpp, without the vote
  bool votes;
  bool thins;
};

constexpr Type kTypes[] = {
    {"linear", Way::factors, "linear", false, false},
    {"cat", Way::stack, "", false, false},
    {"svd", Way::sum, "", false, false},
    {"ties", Way::factors, "adapter_ties", true, true},
    {"ties_svd", Way::dense, "adapter_ties", true, true},
    {"dare_linear", Way::factors, "adapter_dare_linear", false, true},
    {"dare_linear_svd", Way::dense, "adapter_dare_linear", false, true},
    {"dare_ties", Way::factors, "adapter_dare_ties", true, true},
    {"dare_ties_svd", Way::dense, "adapter_dare_ties", true, true},
    {"magnitude_prune", Way::factors, "adapter_magnitude_prune", false, true},
    {"magnitude_prune_svd", Way::dense, "adapter_magnitude_prune", false, true},
};

constexpr const char* kSvdTwice = "svd-scaling-twice";  // PEFT 0.9 to 0.20
constexpr const char* kPlainSum = "ia3-plain-sum";      // PEFT's, which forgets that 1 is no change

bool decomposes(Way way) { return way == Way::sum || way == Way::dense; }

// A module of the result and who has it.
struct Meeting {
  struct Part {
    std::uint32_t adapter = 0;
    const Adapted* module = nullptr;
  };
  std::vector<Part> parts;
  [[nodiscard]] const Adapted& first() const { return *parts.front().module; }
};

class Fusion {
 public:
  Fusion(Disk& disk, Plan& plan, Problems& problems, Measuring* measuring)
      : disk_(disk),
        plan_(plan),
        problems_(problems),
        recipe_(plan.recipe),
        reader_(reader(plan.recipe.adaptation)),
        measuring_(measuring) {}

  void run(bool whole) {
    settle_type(whole);
    const bool opened = open();
    if (type_ == nullptr || !whole) return;
    require_density();
    if (!opened) return;
    check_families();
    check_settings();
    if (problems_.fatal()) return;
    for (std::uint32_t a = 0; a < adapters_.size(); ++a) {
      for (const Adapted& module : adapters_[a].modules) {
        meetings_[name_of(module, "")].parts.push_back({a, &module});
      }
    }
    check_meetings();
    if (problems_.fatal()) return;
    if (family_ == ingot::Family::ia3) {
      for (const auto& [key, meeting] : meetings_) scale(meeting);
    } else {
      choose_ranks();
      if (problems_.fatal()) return;
      for (const auto& [key, meeting] : meetings_) combine(meeting);
    }
    carry();
    note_partial();
    check_reader();
    if (plan_.jobs.empty() && !problems_.fatal()) {
      problems_.error(Code::usage,
                      fmt::format("{}: the output would have no tensors", recipe_.file));
    }
    if (problems_.fatal()) return;
    finish();
  }

 private:
  [[nodiscard]] std::string place(Mark mark) const { return position(recipe_.file, mark); }
  [[nodiscard]] const std::string& shown(std::uint32_t a) const { return plan_.models[a].ref.text; }
  [[nodiscard]] const TensorInfo& info(std::uint32_t a, std::uint32_t entry) const {
    return plan_.models[a].checkpoint.entries()[entry].info;
  }
  [[nodiscard]] bool compat(const char* name) const {
    const auto& all = recipe_.adaptation.compat;
    return std::find(all.begin(), all.end(), name) != all.end();
  }

  // What can be said of the recipe before the adapters are known.
  void settle_type(bool whole) {
    for (const Type& type : kTypes) {
      if (recipe_.method == type.name) type_ = &type;
    }
    const Adaptation& a = recipe_.adaptation;
    if (type_ == nullptr) {
      std::vector<std::string> known;
      for (const Type& type : kTypes) known.emplace_back(type.name);
      problems_.error(Code::usage,
                      fmt::format("{}: there is no adapter_method '{}'; there are {}{}",
                                  place(recipe_.method_mark), recipe_.method,
                                  fmt::join(known, ", "), suggestion(recipe_.method, known)));
    }
    const auto idle = [&](Mark mark, const char* what) {
      problems_.error(Code::usage, fmt::format("{}: {} changes nothing for adapter_method '{}'; "
                                               "remove it",
                                               place(mark), what, recipe_.method));
    };
    if (type_ != nullptr && !a.majority_sign.empty() && !type_->votes) {
      idle(a.majority_sign_mark, "'majority_sign'");
    }
    const bool ranked = type_ == nullptr || decomposes(type_->way);
    if (!ranked && (a.rank > 0 || a.automatic)) idle(a.rank_mark, "'rank'");
    if (!ranked && a.energy > 0) idle(a.energy_mark, "'energy'");
    if (ranked && whole && a.energy > 0 && !a.automatic) {
      problems_.error(Code::usage,
                      fmt::format("{}: 'energy' chooses ranks: it goes with 'rank: auto'",
                                  place(a.energy_mark)));
    }
    if (ranked && whole && a.automatic && !(a.energy > 0) && a.ranks.empty()) {
      problems_.error(Code::usage, fmt::format("{}: 'rank: auto' needs 'energy', for example "
                                               "'energy: 0.99'",
                                               place(a.rank_mark)));
    }
    for (const std::string& word : a.compat) {
      if (word == kSvdTwice || word == kPlainSum) continue;
      problems_.error(Code::usage, fmt::format("{}: 'compat' is one of {}, {}, not '{}'",
                                               place(a.compat_mark), kSvdTwice, kPlainSum, word));
    }
    for (const Source& source : recipe_.models) {
      check_parameters(source.parameters, " of " + source.model.text);
    }
    check_parameters(recipe_.parameters, "");
    dtype_ = wanted_dtype(recipe_, plan_.options, problems_).value_or(Dtype::f32);
    if (recipe_.models.size() > static_cast<std::size_t>(math::kSources)) {
      problems_.error(Code::usage,
                      fmt::format("{}: {} adapters, at most {} can be merged at once", recipe_.file,
                                  recipe_.models.size(), math::kSources));
    }
  }

  // `whose`: " of a", or empty for all adapters.
  void check_parameters(const Parameters& parameters, const std::string& whose) {
    for (const auto& [name, setting] : parameters) {
      const bool density = name == "density";
      if (name != "weight" && !density) {
        problems_.error(
            Code::usage,
            fmt::format("{}: recipes of adapters have no parameter '{}'; they have "
                        "weight and density{}",
                        place(setting.mark), name, suggestion(name, {"weight", "density"})));
        continue;
      }
      if (density && type_ != nullptr && !type_->thins) {
        problems_.error(Code::usage,
                        fmt::format("{}: 'density' changes nothing for adapter_method '{}'; "
                                    "remove it",
                                    place(setting.mark), recipe_.method));
        continue;
      }
      for (const Condition& condition : setting.conditions)
        check_value(condition.value, name, whose);
    }
  }

  void check_value(const Value& value, const std::string& name, const std::string& whose) {
    const auto refuse = [&](const std::string& text) {
      problems_.error(Code::usage, text);
      evaluable_ = false;
    };
    if (value.gradient) {
      refuse(
          fmt::format("{}: '{}' is a list of values over layers, which recipes of adapters do "
                      "not allow; give conditions with filters",
                      place(value.mark), name));
      return;
    }
    try {
      const double x = points_of(value, name, Kind::real, recipe_.file).front();
      if (name == "weight" && !(std::fabs(x) <= math::kLargest)) {
        refuse(fmt::format("{}: 'weight'{} is {}; a finite number is expected", place(value.mark),
                           whose, x));
      } else if (name == "density" && !(x > 0 && x <= 1)) {
        refuse(fmt::format("{}: 'density'{} is {}; above 0 and at most 1 is expected",
                           place(value.mark), whose, x));
      }
    } catch (const Error& e) {
      refuse(e.message());
    }
  }

  // Densities that no level of the recipe has.
  void require_density() {
    if (!type_->thins || recipe_.parameters.contains("density")) return;
    std::string names;
    for (const Source& source : recipe_.models) {
      if (source.parameters.contains("density")) continue;
      names += (names.empty() ? "" : ", ") + source.model.text;
    }
    if (names.empty()) return;
    miss_density(names);
    evaluable_ = false;
  }

  // `where`: adapters, or a module of one.
  void miss_density(const std::string& where) {
    problems_.error_like("density", Code::usage,
                         fmt::format("{}: adapter_method '{}' needs 'density', the share of "
                                     "elements to keep, and none is given for {}",
                                     recipe_.file, recipe_.method, where));
  }

  bool open() {
    bool all = true;
    std::vector<Listed> listed;
    for (const Source& source : recipe_.models) {
      try {
        const ModelRef ref = settle(disk_, source.model, plan_.options.root);
        if (!ref.adapters.empty()) {
          fail(Code::usage,
               fmt::format("{}: '{}' names a model with an adapter where an adapter is "
                           "expected",
                           place(source.model.mark), source.model.text));
        }
        std::string folder = resolve(disk_, ref, plan_.options.root);
        Adapter opened = with_advice(disk_, folder, [&] {
          return open_adapter(disk_, folder, ref.text,
                              {.allow_unknown = plan_.options.allow_unknown_keys,
                               .allow_extra = plan_.options.ignore_extra_weights});
        });
        for (const std::string& warning : opened.warnings) {
          problems_.warn(Code::format, warning);
        }
        plan_.waived.unknown_keys = plan_.waived.unknown_keys || opened.config.waived;
        plan_.waived.extra_weights = plan_.waived.extra_weights || opened.extra;
        listed.push_back({folder, ref.text});
        plan_.models.push_back({ref, std::move(folder), std::move(opened.checkpoint)});
        adapters_.push_back(std::move(opened));
      } catch (Error& e) {
        e.add(
            fmt::format("reading adapter '{}' of {}", source.model.text, place(source.model.mark)));
        problems_.error(e.code(), e.what());
        all = false;
      }
    }
    warn_repeated(listed, recipe_.file, problems_);
    for (std::uint32_t a = 0; all && a < adapters_.size(); ++a) {
      for (const Idle& idle : adapters_[a].idle) {
        plan_.unused.push_back({a, idle.entry, idle.reason});
      }
      for (const Entry& entry : plan_.models[a].checkpoint.entries()) {
        plan_.bytes_in += entry.info.bytes();
      }
    }
    return all && !adapters_.empty();
  }

  void check_families() {
    family_ = ingot::Family::none;
    for (const Adapter& a : adapters_) {
      if (a.config.family != ingot::Family::none) family_ = a.config.family;
    }
    std::string dora;
    for (std::uint32_t a = 0; a < adapters_.size(); ++a) {
      const AdapterConfig& config = adapters_[a].config;
      if (config.family != ingot::Family::none && config.family != family_) {
        problems_.error(Code::usage,
                        fmt::format("{} is {}, another adapter is {}: only adapters of the same "
                                    "type can be merged; bake each into the base and extract one "
                                    "LoRA from the result (ingot bake, ingot extract)",
                                    shown(a), config.type, name(family_)));
        return;
      }
      if (config.family != ingot::Family::lora && config.family != ingot::Family::ia3 &&
          config.family != ingot::Family::none) {
        problems_.error(
            Code::usage,
            fmt::format("{} is {}, whose factors do not add up to an adapter of its "
                        "kind; bake it into the base and extract a LoRA from the result "
                        "(ingot bake, ingot extract)",
                        shown(a), config.type));
      }
      if (config.residual != AdapterConfig::Residual::none) {
        problems_.error(Code::usage,
                        fmt::format("{} changes the base when it is loaded (init_lora_weights), so "
                                    "its update alone is not its effect: save it with "
                                    "path_initial_model_for_weight_conversion first, or bake it",
                                    shown(a)));
      }
      if (config.dora) dora = shown(a);
      if (config.replication != adapters_.front().config.replication) {
        problems_.error(Code::usage, fmt::format("{} and {} re-stack the layers differently "
                                                 "(layer_replication): they adapt different models",
                                                 shown(0), shown(a)));
      }
    }
    const AdapterConfig& first = adapters_.front().config;
    for (std::uint32_t a = 1; a < adapters_.size(); ++a) {
      const AdapterConfig& config = adapters_[a].config;
      if (config.base != first.base || config.revision != first.revision) {
        problems_.warn_like("base", Code::usage,
                            fmt::format("{} was trained on '{}', {} on '{}': the sum is meaningful "
                                        "only if these are the same model",
                                        shown(0), first.base, shown(a), config.base));
      }
      if (config.fan_in_fan_out != first.fan_in_fan_out) {
        problems_.warn_like(
            "fan", Code::format,
            fmt::format(
                "{} and {} differ in fan_in_fan_out; PEFT uses the class of the layer instead",
                shown(0), shown(a)));
      }
    }
    if (!dora.empty() && evaluable_) {
      const bool exact = adapters_.size() == 1 &&
                         (type_->way == Way::stack || recipe_.method == "linear") &&
                         std::all_of(adapters_[0].modules.begin(), adapters_[0].modules.end(),
                                     [&](const Adapted& m) { return weight(0, m.path) == 1; });
      if (!exact) {
        problems_.error(
            Code::usage,
            fmt::format("{} is DoRA: its magnitudes divide by norms of base plus update, so a sum "
                        "of adapters cannot have its effect (one adapter alone, with weight 1, "
                        "keeps it with cat and linear); bake the adapters into the base and "
                        "extract one LoRA from the result (ingot bake, ingot extract)",
                        dora));
      }
    }
    plan_.architecture = fmt::format("{} adapter of {}", name(family_),
                                     first.base.empty() ? "an unnamed base" : first.base);
  }

  // The value of a parameter for a module, the adapter's own setting first.
  [[nodiscard]] std::optional<double> setting(std::uint32_t a, const char* name,
                                              const std::string& path) const {
    for (const Parameters* parameters : {&recipe_.models[a].parameters, &recipe_.parameters}) {
      const auto at = parameters->find(name);
      if (at == parameters->end()) continue;
      if (const auto value = evaluate(at->second, name, path, 0, Kind::real, recipe_.file)) {
        return value;
      }
    }
    return std::nullopt;
  }
  [[nodiscard]] double weight(std::uint32_t a, const std::string& path) const {
    return setting(a, "weight", path).value_or(1.0);
  }

  // Where the recipe sets an adapter's weight.
  [[nodiscard]] std::string weight_place(std::uint32_t a) const {
    for (const Parameters* parameters : {&recipe_.models[a].parameters, &recipe_.parameters}) {
      const auto at = parameters->find("weight");
      if (at != parameters->end()) return place(at->second.mark);
    }
    return recipe_.file;
  }

  void check_settings() {
    if (family_ == ingot::Family::ia3) {
      // `cat`, the default, stands for the sum itself, and so it does for vectors.
      if (recipe_.method != "linear" && recipe_.method != "cat") {
        problems_.error(Code::usage, fmt::format("{}: (IA)3 adapters are vectors and can only be "
                                                 "merged by weights: use adapter_method linear",
                                                 place(recipe_.method_mark)));
      }
      type_ = std::begin(kTypes);  // linear
    }
    if (!evaluable_) return;
    for (std::uint32_t a = 0; a < adapters_.size(); ++a) {
      for (const Adapted& module : adapters_[a].modules) {
        const double w = weight(a, module.path);
        const double s = module.scaling;
        const bool twice = decomposes(type_->way) && compat(kSvdTwice);
        if (!math::single(w) || !math::single(w * s) || (twice && !math::single(w * s * s))) {
          problems_.error_like(
              "small", Code::usage,
              fmt::format("{}: the weight of {} for {} is {}, its scaling {}: their product does "
                          "not fit into float32 (0, or 1.2e-38 to 3.4e38 in size)",
                          weight_place(a), shown(a), module.path, w, s));
        }
        if (type_->thins && !setting(a, "density", module.path)) {
          miss_density(fmt::format("{} in {}", module.path, shown(a)));
        }
      }
    }
  }

  // The tensor of a piece, with what the families here have.
  [[nodiscard]] static std::uint32_t entry_of(const Adapted& module, Piece piece) {
    return module.find(piece).value();
  }

  static std::uint64_t rest(const Shape& shape) {
    return shape.rank() == 0 || shape[0] == 0 ? 0 : shape.count() / shape[0];
  }

  void differ(const Meeting& meeting, const Meeting::Part& part, const std::string& what) {
    problems_.error_like(
        "shape", Code::shape,
        fmt::format("{}: {} and {} have {}: they adapt different models", part.module->path,
                    shown(meeting.parts.front().adapter), shown(part.adapter), what));
  }

  void check_meetings() {
    for (const auto& [key, meeting] : meetings_) {
      const Meeting::Part& first = meeting.parts.front();
      for (const Meeting::Part& part : meeting.parts) {
        const Adapted &one = *first.module, &other = *part.module;
        if (one.embedding != other.embedding || one.parameters != other.parameters ||
            one.experts != other.experts) {
          differ(meeting, part, "parts of different kinds there");
          continue;
        }
        if (one.groups != other.groups) {
          differ(meeting, part, fmt::format("{} and {} groups there", one.groups, other.groups));
          continue;
        }
        if (family_ == ingot::Family::ia3) {
          const Shape &a = info(first.adapter, entry_of(one, Piece::l)).shape,
                      &b = info(part.adapter, entry_of(other, Piece::l)).shape;
          if (!(a == b))
            differ(meeting, part, fmt::format("vectors {} and {}", a.text(), b.text()));
          continue;
        }
        const Shape &a = info(first.adapter, entry_of(one, Piece::a)).shape,
                    &b = info(part.adapter, entry_of(other, Piece::a)).shape;
        Shape as = a;
        if (as.rank() > 0 && b.rank() > 0) as.set(0, b[0]);
        if (!(as == b)) differ(meeting, part, fmt::format("A {} and {}", a.text(), b.text()));
        const Shape &c = info(first.adapter, entry_of(one, Piece::b)).shape,
                    &d = info(part.adapter, entry_of(other, Piece::b)).shape;
        Shape cs = c;
        if (cs.rank() > 1 && d.rank() > 1) cs.set(1, d[1]);
        if (!(cs == d)) differ(meeting, part, fmt::format("B {} and {}", c.text(), d.text()));
        if (type_->way == Way::factors && one.rank != other.rank) {
          problems_.error_like(
              "rank", Code::usage,
              fmt::format(
                  "{}: {} has rank {}, {} has {}; adapter_method '{}' combines factors entry "
                  "by entry and needs equal ranks: use cat, svd or {}_svd",
                  one.path, shown(first.adapter), one.rank, shown(part.adapter), other.rank,
                  recipe_.method, recipe_.method == "linear" ? "ties" : recipe_.method));
        }
        if (decomposes(type_->way) && other.groups > 1) {
          problems_.error_like(
              "groups", Code::usage,
              fmt::format("{}: {} adapts a convolution of {} groups, whose parts adapter_method "
                          "'{}' would mix: use cat or a type on factors",
                          other.path, shown(part.adapter), other.groups, recipe_.method));
        }
      }
    }
  }

  [[nodiscard]] Site site_of(const Meeting& meeting, bool dense) const {
    Site site;
    const Meeting::Part& first = meeting.parts.front();
    site.experts = first.module->experts;
    site.groups = first.module->groups;
    site.width = rest(info(first.adapter, entry_of(*first.module, Piece::a)).shape);
    site.height = info(first.adapter, entry_of(*first.module, Piece::b)).shape[0];
    for (const Meeting::Part& part : meeting.parts) {
      const double s = part.module->scaling;
      double times =
          dense ? s : weight(part.adapter, part.module->path) * s / kept_scaling(meeting);
      if (decomposes(type_->way) && !dense && compat(kSvdTwice)) times *= s;
      site.terms.push_back({shown(part.adapter),
                            {part.adapter, entry_of(*part.module, Piece::a)},
                            {part.adapter, entry_of(*part.module, Piece::b)},
                            part.module->rank / site.groups,
                            times});
    }
    return site;
  }

  // The result's alpha / rank: 1, or that of all inputs of the module.
  [[nodiscard]] double kept_scaling(const Meeting& meeting) const {
    return recipe_.adaptation.keep_scaling ? meeting.first().scaling : 1.0;
  }

  // The rule over the present adapters, whose weights are multiplied by what `times` says of each.
  template <class Times>
  [[nodiscard]] math::Rule rule_of(const Meeting& meeting, const std::string& output,
                                   std::uint64_t elements, const Times& times) const {
    const std::string vote =
        recipe_.adaptation.majority_sign.empty() ? "total" : recipe_.adaptation.majority_sign;
    math::Rule rule;
    rule.method = math::find((type_->method + (type_->votes ? "_" + vote : "")).c_str());
    rule.sources = static_cast<std::int32_t>(meeting.parts.size());
    rule.elements = elements;
    rule.seed = plan_.options.seed;
    math::set_defaults(rule);
    (void)math::set_global(rule, "normalize", 0);
    for (std::size_t s = 0; s < meeting.parts.size(); ++s) {
      const Meeting::Part& part = meeting.parts[s];
      const auto source = static_cast<int>(s);
      (void)math::set_local(rule, source, "weight", times(part));
      if (type_->thins) {
        (void)math::set_local(rule, source, "density",
                              setting(part.adapter, "density", part.module->path).value_or(1.0));
      }
      rule.stream[s] = stream_key(output, "drop", part.adapter);
    }
    return rule;
  }

  // The sum of tensors times their weights, divided by the sum of the weights if `normalized`.
  [[nodiscard]] static math::Rule weighted(std::uint64_t elements,
                                           const std::vector<double>& weights, bool normalized) {
    math::Rule rule;
    rule.method = math::kIndex<math::Linear>;
    rule.sources = static_cast<std::int32_t>(weights.size());
    rule.elements = elements;
    math::set_defaults(rule);
    (void)math::set_global(rule, "normalize", normalized ? 1 : 0);
    for (std::size_t s = 0; s < weights.size(); ++s) {
      (void)math::set_local(rule, static_cast<int>(s), "weight", weights[s]);
    }
    return rule;
  }

  // PEFT's name for a piece of a module.
  [[nodiscard]] static std::string name_of(const Adapted& module, std::string_view tail) {
    std::string path = module.path;
    if (module.inner) {
      const std::size_t dot = path.rfind('.');
      path.insert(dot == std::string::npos ? 0 : dot,
                  dot == std::string::npos ? "base_layer." : ".base_layer");
    }
    for (std::uint32_t i = 0; i < module.nesting; ++i) path += ".base_layer";
    return fmt::format("base_model.model.{}.{}", path, tail);
  }
  [[nodiscard]] static std::string factor_name(const Adapted& module, Side side) {
    const char* letter = side == Side::a ? "A" : "B";
    return name_of(module, module.embedding ? fmt::format("lora_embedding_{}", letter)
                                            : fmt::format("lora_{}.weight", letter));
  }

  void push(std::string name, const Shape& shape, math::Rule rule, std::vector<Operand> operands,
            std::vector<Dtype> inputs, std::string reason = {}) {
    Job job;
    job.output = {std::move(name), dtype_, shape};
    job.work = {rule, std::move(inputs), dtype_, plan_.options.overflow};
    job.operands = std::move(operands);
    job.reason = std::move(reason);
    if (const char* wrong = math::invalid(rule)) {
      problems_.error_like("rule", Code::usage,
                           fmt::format("{}: {}: {}", recipe_.file, job.output.name, wrong));
    }
    plan_.jobs.push_back(std::move(job));
  }

  [[nodiscard]] Operand checked(std::uint32_t a, std::uint32_t entry) const {
    return {a, entry, nullptr, adapter::finite(shown(a), {a, entry})};
  }

  // One job over stored tensors of the same shape.
  template <class Times>
  void elementwise(const Meeting& meeting, Piece piece, std::string output, const Times& times) {
    const Meeting::Part& first = meeting.parts.front();
    const Shape shape = info(first.adapter, entry_of(*first.module, piece)).shape;
    std::vector<Operand> operands;
    for (const Meeting::Part& part : meeting.parts) {
      operands.push_back(checked(part.adapter, entry_of(*part.module, piece)));
    }
    const math::Rule rule = rule_of(meeting, output, shape.count(), times);
    push(std::move(output), shape, rule, std::move(operands),
         std::vector<Dtype>(meeting.parts.size(), Dtype::f32));
  }

  [[nodiscard]] Shape shape_of(const Meeting& meeting, Side side, std::uint64_t rank) const {
    const Meeting::Part& first = meeting.parts.front();
    Shape shape =
        info(first.adapter, entry_of(*first.module, side == Side::a ? Piece::a : Piece::b)).shape;
    if (side == Side::a) {
      shape.set(0, rank * first.module->experts);
    } else {
      shape.set(1, rank * first.module->experts / first.module->groups);
    }
    return shape;
  }

  // The largest rank that says anything about the module.
  [[nodiscard]] std::uint64_t most(const Meeting& meeting) const {
    const Site site = site_of(meeting, false);
    const std::uint64_t side = std::min(site.height, site.width);
    return type_->way == Way::sum ? std::min(side, site.ranks()) : side;
  }

  [[nodiscard]] std::string key_of(const Meeting& meeting) const {
    std::string path = meeting.first().path;
    for (std::uint32_t i = 0; i < meeting.first().nesting; ++i) path += ".base_layer";
    return path;
  }

  [[nodiscard]] std::unique_ptr<adapter::Target> target_of(const Meeting& meeting) const {
    if (type_->way == Way::sum) return adapter::sum_of(site_of(meeting, false));
    Site site = site_of(meeting, true);
    const bool twice = compat(kSvdTwice);
    const math::Rule rule =
        rule_of(meeting, factor_name(meeting.first(), Side::a), site.height * site.width,
                [&](const Meeting::Part& part) {
                  const double w = weight(part.adapter, part.module->path) / kept_scaling(meeting);
                  return twice ? w * part.module->scaling : w;
                });
    return adapter::combined(std::move(site), rule);
  }

  void choose_ranks() {
    if (recipe_.adaptation.keep_scaling) check_scalings();
    if (type_->way == Way::factors) return check_one_rank();
    std::vector<Measured> modules;
    for (const auto& [key, meeting] : meetings_) {
      const Site site = site_of(meeting, false);
      modules.push_back({key_of(meeting), most(meeting), site.experts, site.height + site.width,
                         [this, &each = meeting] { return target_of(each); }});
      if (type_->way == Way::stack) ranks_[key_of(meeting)] = site.ranks() * site.groups;
    }
    if (decomposes(type_->way)) solve_ranks(modules);
    if (problems_.fatal()) return;
    // PEFT says of patterns for parameters that it ignores them: these have the largest rank, which
    // needs none, with zeros in what they lack.
    std::uint64_t largest = 0;
    bool groups = false;
    for (const auto& [key, rank] : ranks_) largest = std::max(largest, rank);
    for (const auto& [key, meeting] : meetings_) {
      if (!meeting.first().parameters.empty()) ranks_.at(key_of(meeting)) = largest;
      groups = groups || meeting.first().groups > 1;
    }
    if (!groups) (void)level(ranks_, modules, reader_.one_rank);
  }

  // Factors that are combined entry by entry cannot be longer than they are.
  void check_one_rank() {
    if (!reader_.one_rank) return;
    for (const auto& [key, meeting] : meetings_) {
      const Adapted& first = meetings_.begin()->second.first();
      if (meeting.first().rank == first.rank) continue;
      problems_.error_like(
          "one rank", Code::usage,
          fmt::format("{}: {} has rank {} and {} has rank {}, while {} needs one rank for all "
                      "modules; use adapter_method cat or svd, which give all modules one rank",
                      recipe_.file, first.path, first.rank, meeting.first().path,
                      meeting.first().rank, reader_.name));
    }
  }

  void solve_ranks(const std::vector<Measured>& modules) {
    std::uint64_t wanted = recipe_.adaptation.rank;
    if (wanted == 0) {
      for (const auto& [key, meeting] : meetings_) {
        for (const Meeting::Part& part : meeting.parts)
          wanted = std::max(wanted, part.module->rank);
      }
    }
    if (measuring_ != nullptr && measured(recipe_.adaptation)) {
      measuring_->expect(bytes_of(plan_, modules));
    }
    ranks_ = ranks_of(plan_, recipe_.adaptation, wanted, bits(dtype_) / 8, modules, problems_,
                      measuring_);
  }

  void check_scalings() {
    for (const auto& [key, meeting] : meetings_) {
      for (const Meeting::Part& part : meeting.parts) {
        const double one = meeting.first().scaling, other = part.module->scaling;
        if (one == other && other != 0) continue;
        problems_.error_like(
            "scaling", Code::usage,
            fmt::format("{}: keep_scaling needs one scaling to keep; {} has {}, {} "
                        "has {}",
                        part.module->path, shown(meeting.parts.front().adapter), one,
                        shown(part.adapter), other));
      }
    }
  }

  void combine(const Meeting& meeting) {
    const Adapted& first = meeting.first();
    std::uint64_t rank = first.rank;
    const auto times = [&](const Meeting::Part& part) {
      return weight(part.adapter, part.module->path) * part.module->scaling / kept_scaling(meeting);
    };
    if (type_->way == Way::factors) {
      elementwise(meeting, Piece::a, factor_name(first, Side::a), [&](const Meeting::Part& part) {
        const double t = times(part);
        return std::copysign(std::sqrt(std::fabs(t)), t == 0 ? 1.0 : t);
      });
      elementwise(meeting, Piece::b, factor_name(first, Side::b),
                  [&](const Meeting::Part& part) { return std::sqrt(std::fabs(times(part))); });
    } else if (type_->way == Way::stack) {
      Site site = site_of(meeting, false);
      rank = ranks_.at(key_of(meeting));
      site.padding = (rank - site.ranks() * site.groups) / site.groups;
      note_parts(site);
      for (const Side side : {Side::a, Side::b}) {
        const Shape shape = shape_of(meeting, side, rank);
        const Term& term = site.terms.front();
        const Ingredient& own = side == Side::a ? term.a : term.b;
        push(factor_name(first, side), shape, plain(shape.count()),
             {{own.model, own.entry, nullptr, adapter::stacked(site, side)}}, {Dtype::f32});
      }
    } else {
      rank = ranks_.at(key_of(meeting));
      if (!campaign_) campaign_ = std::make_shared<Campaign>();
      const std::size_t index = campaign_->add(
          {target_of(meeting), rank, factor_name(first, Side::a), factor_name(first, Side::b),
           dtype_, key_of(meeting), measuring_ != nullptr ? measuring_->kept : nullptr});
      const Ingredient own = campaign_->module(index).target->ingredients().front();
      for (const Side side : {Side::a, Side::b}) {
        const Shape shape = shape_of(meeting, side, rank);
        push(factor_name(first, side), shape, plain(shape.count()),
             {{own.model, own.entry, nullptr, adapter::factor(campaign_, index, side)}},
             {Dtype::f32});
      }
    }
    bias_of_b(meeting, times);
    if (const auto magnitude = first.find(Piece::magnitude)) {
      const Shape shape = info(meeting.parts.front().adapter, *magnitude).shape;
      push(name_of(first, "lora_magnitude_vector"), shape, plain(shape.count()),
           {checked(meeting.parts.front().adapter, *magnitude)}, {Dtype::f32});
      folder_.dora = true;
    }
    add_module(meeting, rank, kept_scaling(meeting) * static_cast<double>(rank));
  }

  void note_parts(const Site& site) {
    std::uint64_t held = 0;
    for (const std::uint64_t rank : parts_) held += rank;
    if (site.ranks() <= held) return;
    parts_.clear();
    for (const Term& term : site.terms) parts_.push_back(term.rank * site.groups);
  }

  // lora_B's own bias adds to the base's, scaled like the product.
  template <class Times>
  void bias_of_b(const Meeting& meeting, const Times& times) {
    const bool any = std::any_of(adapters_.begin(), adapters_.end(), [](const Adapter& a) {
      return std::any_of(a.modules.begin(), a.modules.end(),
                         [](const Adapted& m) { return m.find(Piece::bias).has_value(); });
    });
    if (!any) return;
    folder_.lora_bias = true;  // then PEFT looks for one in every module
    const Adapted& first = meeting.first();
    const Meeting::Part& part = meeting.parts.front();
    Shape shape{info(part.adapter, entry_of(first, Piece::b)).shape[0]};
    std::vector<Operand> operands;
    std::vector<double> weights;
    for (const Meeting::Part& p : meeting.parts) {
      const auto entry = p.module->find(Piece::bias);
      if (!entry) continue;
      weights.push_back(times(p));
      operands.push_back(checked(p.adapter, *entry));
    }
    math::Rule rule = weighted(shape.count(), weights, false);
    if (operands.empty()) {
      rule = plain(shape.count());
      operands.push_back({part.adapter, entry_of(first, Piece::b), nullptr, adapter::constant(0)});
    }
    std::vector<Dtype> inputs(operands.size(), Dtype::f32);
    push(name_of(first, "lora_B.bias"), shape, rule, std::move(operands), std::move(inputs));
  }

  // (IA)3: 1 changes nothing, so vectors add up as differences from it.
  void scale(const Meeting& meeting) {
    const Meeting::Part& first = meeting.parts.front();
    const std::uint32_t entry = entry_of(*first.module, Piece::l);
    const Shape shape = info(first.adapter, entry).shape;
    std::string output = name_of(*first.module, "ia3_l");
    const auto times = [&](const Meeting::Part& part) {
      return weight(part.adapter, part.module->path);
    };
    if (compat(kPlainSum)) {
      elementwise(meeting, Piece::l, std::move(output), times);
    } else {
      math::Rule rule;
      rule.method = math::kIndex<math::TaskArithmetic>;
      rule.sources = static_cast<std::int32_t>(meeting.parts.size());
      rule.base = true;
      rule.elements = shape.count();
      math::set_defaults(rule);
      for (std::size_t s = 0; s < meeting.parts.size(); ++s) {
        (void)math::set_local(rule, static_cast<int>(s), "weight", times(meeting.parts[s]));
      }
      std::vector<Operand> operands{{first.adapter, entry, nullptr, adapter::constant(1)}};
      for (const Meeting::Part& part : meeting.parts) {
        operands.push_back(checked(part.adapter, entry_of(*part.module, Piece::l)));
      }
      std::vector<Dtype> inputs(operands.size(), Dtype::f32);
      push(std::move(output), shape, rule, std::move(operands), std::move(inputs));
    }
    add_module(meeting, 0, 0);
    folder_.modules.back().feedforward = shape.rank() > 1 && shape[0] == 1 && shape[1] != 1;
    if (shape.count() == 1) {
      const AdapterConfig& config = adapters_[first.adapter].config;
      folder_.modules.back().feedforward =
          std::any_of(config.feedforward.begin(), config.feedforward.end(),
                      [&](const std::string& word) { return first.module->path.ends_with(word); });
    }
  }

  void add_module(const Meeting& meeting, std::uint64_t rank, double alpha) {
    const Adapted& module = meeting.first();
    PeftFolder::Module entry{module.path, rank, alpha, !module.inner && module.parameters.empty(),
                             false};
    // PEFT matches patterns against the parameter: the likeliest of those that it may be, which is
    // the one that the ranks of the source fit.
    if (!module.parameters.empty()) entry.path += "." + module.parameters.front();
    folder_.modules.push_back(std::move(entry));
    if (meeting.parts.size() < adapters_.size()) {
      ++partial_;
      if (partial_first_.empty()) partial_first_ = module.path;
    }
  }

  // ---- what adapters bring in full -------------------------------------------------------------

  struct Owner {
    std::uint32_t adapter = 0;
    std::uint32_t entry = 0;
    Saved::Why why = Saved::Why::module;
  };

  void carry() {
    std::map<std::string, std::vector<Owner>> saved;
    for (std::uint32_t a = 0; a < adapters_.size(); ++a) {
      for (const Saved& tensor : adapters_[a].saved) {
        saved[tensor.name].push_back({a, tensor.entry, tensor.why});
      }
    }
    std::map<std::string, std::size_t> adapted;  // how many parameters of a module
    for (const auto& [key, meeting] : meetings_) ++adapted[meeting.first().path];
    for (const auto& [name, owners] : saved) {
      const std::size_t dot = name.rfind('.');
      const std::string module = name.substr(0, dot);
      const auto wrapped = adapted.find(module);
      const auto& listed = adapters_[owners.front().adapter].config.modules_to_save;
      const bool alone = std::find(listed.begin(), listed.end(), name) != listed.end();
      if (wrapped != adapted.end() && owners.front().why == Saved::Why::module && !alone) {
        problems_.error(
            Code::usage,
            fmt::format("{} is trained in full by {} and adapted by another: one folder cannot "
                        "hold both; bake the adapters one after the other",
                        module, shown(owners.front().adapter)));
        continue;
      }
      std::string inside = module;
      if (wrapped != adapted.end()) {
        for (std::size_t level = wrapped->second; level > 0; --level) inside += ".base_layer";
      }
      whole(fmt::format("base_model.model.{}{}", inside,
                        dot == std::string::npos ? "" : name.substr(dot)),
            name, owners);
    }
    carry_tokens();
    std::set<std::string> to_save;
    for (std::uint32_t a = 0; a < adapters_.size(); ++a) {
      const AdapterConfig& config = adapters_[a].config;
      to_save.insert(config.modules_to_save.begin(), config.modules_to_save.end());
      if (config.bias != "none" && folder_.bias != "none" && folder_.bias != config.bias) {
        problems_.error(Code::usage,
                        fmt::format("{} trained biases as '{}', another adapter as '{}': "
                                    "one folder has one such setting",
                                    shown(a), config.bias, folder_.bias));
      }
      if (config.bias != "none") folder_.bias = config.bias;
    }
    folder_.modules_to_save.assign(to_save.begin(), to_save.end());
  }

  // A tensor in full: its only owner's, or where asked for the mean of all.
  void whole(std::string output, const std::string& name, const std::vector<Owner>& owners) {
    const Shape shape = info(owners.front().adapter, owners.front().entry).shape;
    for (const Owner& owner : owners) {
      const Shape& other = info(owner.adapter, owner.entry).shape;
      if (other == shape) continue;
      problems_.error_like("saved", Code::shape,
                           fmt::format("{}: {} has {}, {} has {}: the vocabularies differ", name,
                                       shown(owners.front().adapter), shape.text(),
                                       shown(owner.adapter), other.text()));
      return;
    }
    math::Rule rule = plain(shape.count());
    std::vector<Operand> operands;
    for (const Owner& owner : owners) operands.push_back(checked(owner.adapter, owner.entry));
    if (owners.size() == 1) {
      if (adapters_.size() > 1) {
        problems_.warn_like(
            "taken", Code::usage,
            fmt::format("{} is only in {}, and it is stored in full: weights do not apply to it",
                        name, shown(owners.front().adapter)));
      }
    } else if (recipe_.adaptation.whole_tensors == "average") {
      std::vector<double> weights;
      for (const Owner& owner : owners) weights.push_back(weight(owner.adapter, name));
      rule = weighted(shape.count(), weights, true);
    } else {
      problems_.error_like(
          "shared", Code::usage,
          fmt::format(
              "{} is stored in full in {} and {}, and a sum of their changes would need the base; "
              "set whole_tensors: average for their weighted mean, or bake the adapters",
              name, shown(owners[0].adapter), shown(owners[1].adapter)));
      return;
    }
    std::vector<Dtype> inputs(operands.size(), Dtype::f32);
    push(std::move(output), shape, rule, std::move(operands), std::move(inputs),
         "brought in full, not as an update");
  }

  void carry_tokens() {
    std::map<std::string, std::vector<std::pair<std::uint32_t, const Tokens*>>> all;
    for (std::uint32_t a = 0; a < adapters_.size(); ++a) {
      for (const Tokens& tokens : adapters_[a].tokens) all[tokens.path].emplace_back(a, &tokens);
    }
    for (const auto& [path, owners] : all) {
      std::vector<Owner> same;
      for (const auto& [a, tokens] : owners) {
        if (tokens->rows != owners.front().second->rows) {
          problems_.error_like(
              "tokens", Code::usage,
              fmt::format("{}: {} and {} trained different tokens; their rows would "
                          "need two lists in one configuration: bake the adapters",
                          path, shown(owners.front().first), shown(a)));
        }
        same.push_back({a, tokens->entry, Saved::Why::embedding});
      }
      const bool alone = family_ == ingot::Family::none;
      whole(fmt::format("base_model.model.{}.{}trainable_tokens_delta", path,
                        alone ? "" : "token_adapter."),
            path + " (trained tokens)", same);
      folder_.tokens = adapters_[owners.front().first].config.tokens;
    }
  }

  // ----------------------------------------------------------------------------------------------

  void note_partial() {
    if (partial_ > 0) {
      problems_.warn(
          Code::usage,
          fmt::format("{} of {} modules are in only some of the adapters, for example {}; each is "
                      "merged from the adapters that have it, with unchanged weights",
                      partial_, meetings_.size(), partial_first_));
    }
    if (type_->way == Way::factors && family_ == ingot::Family::lora && adapters_.size() > 1) {
      problems_.warn(Code::usage,
                     fmt::format("{} adds the A matrices and the B matrices separately, so the "
                                 "result also contains products of one adapter's A with another "
                                 "adapter's B; cat and svd give the exact sum",
                                 recipe_.method));
    }
  }

  // Parts that a server does not load are refused: the server would ignore them, or stop.
  void check_reader() {
    if (reader_.whole) return;
    std::string what;
    const AdapterConfig& first = adapters_.front().config;
    if (family_ != ingot::Family::lora) {
      what = fmt::format("an adapter of type {}", first.type);
    } else if (!folder_.modules_to_save.empty()) {
      what = fmt::format("{} in full (modules_to_save)", folder_.modules_to_save.front());
    } else if (folder_.bias != "none" || folder_.lora_bias) {
      what = "trained biases";
    } else if (!folder_.tokens.empty()) {
      what = "trained tokens";
    } else if (folder_.dora) {
      what = "magnitudes of DoRA";
    } else if (!first.replication.empty()) {
      what = "layers in another order (layer_replication)";
    }
    for (const auto& [key, meeting] : meetings_) {
      const Adapted& module = meeting.first();
      const std::string name = clip(module.path, 120);
      if (!what.empty()) break;
      if (!module.parameters.empty()) {
        what = fmt::format("a parameter of {} (target_parameters)", name);
      } else if (module.embedding) {
        what = fmt::format("the embedding {}", name);
      } else if (family_ == ingot::Family::lora &&
                 info(meeting.parts.front().adapter, entry_of(module, Piece::a)).shape.rank() !=
                     2) {
        what = fmt::format("the convolution {}", name);
      }
    }
    if (what.empty()) return;
    problems_.error(Code::usage,
                    fmt::format("{}: the result has {}, which {} does not load as a part of an "
                                "adapter; bake the adapters into the model, or leave out 'for: {}'",
                                recipe_.file, what, reader_.name, reader_.word));
  }

  void finish() {
    const AdapterConfig& first = adapters_.front().config;
    folder_.parts = parts_;
    folder_.family = family_ == ingot::Family::none ? ingot::Family::lora : family_;
    // A name on the Hub says more than the folder of somebody's machine.
    const auto named = std::find_if(adapters_.begin(), adapters_.end(), [](const Adapter& a) {
      return like_hub_name(public_name(a.config.base));
    });
    const AdapterConfig& trained = named == adapters_.end() ? first : named->config;
    folder_.base = trained.base;
    folder_.revision = trained.revision;
    folder_.task = first.task;
    folder_.version = first.version;
    folder_.fan_in_fan_out = first.fan_in_fan_out;
    folder_.replication = first.replication;
    std::set<std::string> parameters;
    for (const Adapter& a : adapters_) {
      if (a.config.task != first.task) folder_.task.clear();
      parameters.insert(a.config.parameters.begin(), a.config.parameters.end());
    }
    folder_.parameters.assign(parameters.begin(), parameters.end());
    take_tokenizer();
    write_peft(disk_, plan_, problems_, folder_, "Merged adapter",
               fmt::format("Made by `ingot adapter merge` with the type `{}` from {} adapters; the "
                           "scaling of every module is {}.",
                           recipe_.method, adapters_.size(),
                           recipe_.adaptation.keep_scaling ? "that of its sources" : "1"));
  }

  // Takes the tokenizer of the adapter that changes the vocabulary, else the first one there is.
  void take_tokenizer() {
    if (!plan_.options.copy_tokenizer) {
      plan_.waived.tokenizer =
          std::any_of(plan_.models.begin(),
                      plan_.models.begin() + static_cast<std::ptrdiff_t>(adapters_.size()),
                      [&](const Model& model) { return has_tokenizer(disk_, model.folder); });
      return;
    }
    std::vector<std::uint32_t> order;
    for (const bool wanted : {true, false}) {
      for (std::uint32_t a = 0; a < adapters_.size(); ++a) {
        const bool brings = !adapters_[a].saved.empty() || !adapters_[a].tokens.empty();
        if (brings == wanted) order.push_back(a);
      }
    }
    for (const std::uint32_t a : order) {
      take_over(disk_, problems_, plan_.models[a].folder, Share::tokenizer, plan_.companions);
      for (Companion& file : plan_.companions) file.model = plan_.models[a].ref.text;
      if (!plan_.companions.empty()) return;
    }
  }

  Disk& disk_;
  Plan& plan_;
  Problems& problems_;
  const Recipe& recipe_;
  const Reader& reader_;
  Measuring* const measuring_;  // null: ranks that are measured stay open
  const Type* type_ = nullptr;
  bool evaluable_ = true;  // all parameters have values that count
  ingot::Family family_ = ingot::Family::none;
  Dtype dtype_ = Dtype::f32;
  std::vector<Adapter> adapters_;  // their checkpoints are in the plan
  // By the start of their tensors' names, in the order in which the output has them.
  std::map<std::string, Meeting, bool (*)(std::string_view, std::string_view)> meetings_{
      natural_less};
  std::map<std::string, std::uint64_t> ranks_;
  std::shared_ptr<Campaign> campaign_;  // shared by the factors of the plan
  PeftFolder folder_;
  std::vector<std::uint64_t> parts_;  // ranks that lie one below the other in the largest module
  std::size_t partial_ = 0;
  std::string partial_first_;
};

}  // namespace

void fuse(Disk& disk, Plan& plan, Problems& problems, bool whole, Measuring* measuring) {
  Fusion(disk, plan, problems, measuring).run(whole);
}

}  // namespace ingot::plan

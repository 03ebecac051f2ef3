#include "plan/experts.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "plan/roles.hpp"

namespace ingot::plan {
namespace {

// A name with a wrong number does not belong to an expert.
constexpr std::uint32_t kMostExperts = 100'000;

// The linear layers of an expert.
enum class Layer : std::uint8_t { gate, up, down };

struct Leaf {
  std::string_view name;
  Layer layer = Layer::gate;
};
constexpr Leaf kLeaves[] = {
    {"gate_proj", Layer::gate}, {"w1", Layer::gate},        {"up_proj", Layer::up},
    {"w3", Layer::up},          {"down_proj", Layer::down}, {"w2", Layer::down},
};
constexpr std::string_view kJoint = "gate_up_proj";
constexpr std::string_view kBias = "_bias";

const Leaf* leaf_of(std::string_view name) {
  const auto* const at = std::find_if(std::begin(kLeaves), std::end(kLeaves),
                                      [&](const Leaf& leaf) { return leaf.name == name; });
  return at == std::end(kLeaves) ? nullptr : at;
}

// How a model keeps its experts.
struct Form {
  bool together = false;
  bool joint = false;                 // gate and up in one tensor
  bool transposed = false;            // (in, out)
  bool in_turns = false;              // gate and up alternate
  std::array<std::string, 3> leaves;  // by Layer

  friend bool operator==(const Form&, const Form&) = default;
};

// A matrix (out, in), or a bias of one column, where it lies in its file.
struct Plane {
  std::uint32_t file = 0;
  std::uint64_t offset = 0;  // bytes
  std::uint64_t outs = 0, ins = 0;
  std::uint64_t out_stride = 0, in_stride = 0;  // elements
  std::uint32_t entry = 0;                      // that it is a part of
};

// By layer and whether it is a bias: the planes of all experts.
using Planes = std::map<std::pair<Layer, bool>, std::vector<Plane>>;

// The experts under one name.
struct Bank {
  Form form;
  std::vector<std::uint32_t> entries;  // all that it is made of
  Planes planes;
  Dtype dtype = Dtype::f32;
  bool sound = true;
};

std::vector<std::uint64_t> strides_of(const Entry& entry) {
  if (!entry.strides.empty()) return entry.strides;
  std::vector<std::uint64_t> strides(static_cast<std::size_t>(entry.info.shape.rank()), 1);
  for (int axis = entry.info.shape.rank() - 2; axis >= 0; --axis) {
    const auto a = static_cast<std::size_t>(axis);
    strides[a] = strides[a + 1] * entry.info.shape[axis + 1];
  }
  return strides;
}

// Reads the banks of a checkpoint.
class Banker {
 public:
  Banker(const Checkpoint& checkpoint, std::string_view architecture)
      : entries_(checkpoint.entries()), architecture_(architecture) {}

  std::map<std::string, Bank> run() {
    for (std::uint32_t e = 0; e < entries_.size(); ++e) collect(e);
    for (auto& [owner, bank] : banks_) {
      if (bank.form.together) unpack(owner, bank);
      check(bank);
    }
    std::erase_if(banks_, [](const auto& item) { return !item.second.sound; });
    return std::move(banks_);
  }

 private:
  // One tensor of all experts, by its leaf and whether it is a bias.
  using Whole = std::map<std::pair<std::string, bool>, std::uint32_t>;

  void collect(std::uint32_t e) {
    const std::string_view name = entries_[e].info.name;
    const std::string_view last = last_component(name);
    const int rank = entries_[e].info.shape.rank();
    if (last_component(parent(name)) == "experts") {
      const bool bias = last.ends_with(kBias);
      const std::string_view leaf = bias ? last.substr(0, last.size() - kBias.size()) : last;
      if ((leaf != kJoint && leaf_of(leaf) == nullptr) || rank != (bias ? 2 : 3)) return;
      const std::string owner(parent(name));
      add(owner, e, true);
      whole_[owner][{std::string(leaf), bias}] = e;
      return;
    }
    const auto expert = expert_layer(parent(name));
    if (!expert || expert->number >= kMostExperts) return;
    const Leaf* const leaf = leaf_of(expert->leaf);
    const bool bias = last == "bias";
    if (leaf == nullptr || (!bias && last != "weight") || rank != (bias ? 1 : 2)) return;
    const std::uint32_t number = expert->number;
    Bank& bank = add(std::string(expert->owner), e, false);
    std::string& spelt = bank.form.leaves[static_cast<std::size_t>(leaf->layer)];
    if (spelt.empty()) spelt = leaf->name;
    bank.sound = bank.sound && spelt == leaf->name;
    auto& planes = bank.planes[{leaf->layer, bias}];
    if (planes.size() <= number) planes.resize(number + 1);
    const Entry& entry = entries_[e];
    const auto strides = strides_of(entry);
    planes[number] = {entry.file,
                      entry.offset,
                      entry.info.shape[0],
                      bias ? 1 : entry.info.shape[1],
                      strides[0],
                      bias ? 1 : strides[1],
                      e};
  }

  Bank& add(const std::string& owner, std::uint32_t e, bool together) {
    const auto [at, fresh] = banks_.try_emplace(owner);
    Bank& bank = at->second;
    if (fresh) {
      bank.form.together = together;
      bank.dtype = entries_[e].info.dtype;
    }
    bank.sound = bank.sound && bank.form.together == together &&
                 bank.dtype == entries_[e].info.dtype && bits(bank.dtype) % 8 == 0;
    bank.entries.push_back(e);
    return bank;
  }

  // The planes of tensors of all experts.
  void unpack(const std::string& owner, Bank& bank) {
    const Whole& all = whole_[owner];
    Form& form = bank.form;
    const auto joint = all.find({std::string(kJoint), false});
    form.joint = joint != all.end();
    form.in_turns = form.joint && architecture_.starts_with("GptOss");
    for (const auto& [key, e] : all) {
      if (key.first == kJoint) continue;
      const Leaf& leaf = *leaf_of(key.first);
      std::string& spelt = form.leaves[static_cast<std::size_t>(leaf.layer)];
      if (spelt.empty()) spelt = leaf.name;
      bank.sound = bank.sound && spelt == leaf.name;
    }
    if (form.joint) {
      // Both shapes tell: the inputs of one are the outputs of the other.
      const auto down = all.find({form.leaves[2], false});
      if (down == all.end() || !form.leaves[0].empty() || !form.leaves[1].empty()) {
        bank.sound = false;
        return;
      }
      const Shape& a = entries_[joint->second].info.shape;
      const Shape& b = entries_[down->second].info.shape;
      form.transposed = a[1] == b[2] && a[2] == 2 * b[1];
      bank.sound = bank.sound && (form.transposed || (a[2] == b[1] && a[1] == 2 * b[2]));
    }
    for (const auto& [key, e] : all) {
      const auto& [leaf, bias] = key;
      if (leaf == kJoint) {
        cut(bank, Layer::gate, bias, e, 0);
        cut(bank, Layer::up, bias, e, 1);
      } else {
        cut(bank, leaf_of(leaf)->layer, bias, e, std::nullopt);
      }
    }
  }

  // The planes of one layer; `half` of a joint tensor.
  void cut(Bank& bank, Layer layer, bool bias, std::uint32_t e, std::optional<std::uint64_t> half) {
    const Entry& entry = entries_[e];
    const Shape& shape = entry.info.shape;
    const auto strides = strides_of(entry);
    const bool transposed = bank.form.transposed && !bias;
    const std::size_t out = transposed ? 2 : 1, in = transposed ? 1 : 2;
    Plane plane;
    plane.file = entry.file;
    plane.entry = e;
    plane.outs = shape[static_cast<int>(out)];
    plane.ins = bias ? 1 : shape[static_cast<int>(in)];
    plane.out_stride = strides[out];
    plane.in_stride = bias ? 1 : strides[in];
    std::uint64_t start = 0;
    if (half) {
      if (plane.outs % 2 != 0) bank.sound = false;
      plane.outs /= 2;
      start = *half * (bank.form.in_turns ? 1 : plane.outs) * plane.out_stride;
      if (bank.form.in_turns) plane.out_stride *= 2;
    }
    auto& planes = bank.planes[{layer, bias}];
    for (std::uint64_t k = 0; k < shape[0]; ++k) {
      plane.offset = entry.offset + (k * strides[0] + start) * (bits(bank.dtype) / 8);
      planes.push_back(plane);
    }
  }

  static void check(Bank& bank) {
    if (bank.planes.empty()) bank.sound = false;
    const std::size_t experts = bank.sound ? bank.planes.begin()->second.size() : 0;
    for (const auto& [key, planes] : bank.planes) {
      if (planes.empty()) {
        bank.sound = false;
        return;
      }
      const auto fits = [&first = planes.front()](const Plane& plane) {
        return plane.outs > 0 && plane.outs == first.outs && plane.ins == first.ins;
      };
      bank.sound =
          bank.sound && planes.size() == experts && std::all_of(planes.begin(), planes.end(), fits);
    }
  }

  const std::vector<Entry>& entries_;
  const std::string_view architecture_;
  std::map<std::string, Bank> banks_;
  std::map<std::string, Whole> whole_;
};

// Writes the entries of a bank in another form.
class Arranger {
 public:
  Arranger(const std::vector<Entry>& entries, const std::string& owner, const Bank& bank,
           const Form& form, std::vector<Entry>& out)
      : entries_(entries), owner_(owner), bank_(bank), form_(form), out_(out) {}

  void run() {
    for (const bool bias : {false, true}) {
      if (form_.together && form_.joint) join({Layer::gate, Layer::up}, kJoint, bias);
      for (const Layer layer : {Layer::gate, Layer::up, Layer::down}) {
        if (!form_.together) {
          part(layer, bias);
        } else if (!form_.joint || layer == Layer::down) {
          join({layer}, form_.leaves[static_cast<std::size_t>(layer)], bias);
        }
      }
    }
  }

 private:
  using Axis = Patch::Axis;

  [[nodiscard]] const std::vector<Plane>* planes(Layer layer, bool bias) const {
    const auto at = bank_.planes.find({layer, bias});
    return at == bank_.planes.end() ? nullptr : &at->second;
  }

  // One tensor for every expert.
  void part(Layer layer, bool bias) {
    const auto* const all = planes(layer, bias);
    for (std::size_t k = 0; all != nullptr && k < all->size(); ++k) {
      const Plane& plane = (*all)[k];
      Entry entry =
          begin(fmt::format("{}.{}.{}.{}", owner_, k, form_.leaves[static_cast<std::size_t>(layer)],
                            bias ? "bias" : "weight"),
                bias ? Shape{plane.outs} : Shape{plane.outs, plane.ins}, plane);
      Patch patch{plane.file, plane.offset, {}};
      patch.axes[1] = {0, bias ? 1 : plane.outs, 1, bias ? 0 : plane.out_stride};
      patch.axes[2] =
          bias ? Axis{0, plane.outs, 1, plane.out_stride} : Axis{0, plane.ins, 1, plane.in_stride};
      entry.patches.push_back(patch);
      entry.origin = entries_[plane.entry].info.name;
      out_.push_back(std::move(entry));
    }
  }

  // One tensor of all experts, of one layer or of two.
  void join(std::initializer_list<Layer> layers, std::string_view leaf, bool bias) {
    std::vector<const std::vector<Plane>*> parts;
    for (const Layer layer : layers) {
      if (const auto* const all = planes(layer, bias)) parts.push_back(all);
    }
    if (parts.empty()) return;
    const Plane& first = parts.front()->front();
    const std::uint64_t outs = first.outs * parts.size();
    const std::uint64_t experts = parts.front()->size();
    const bool transposed = form_.transposed && !bias;
    Entry entry = begin(fmt::format("{}.{}{}", owner_, leaf, bias ? kBias : ""),
                        bias         ? Shape{experts, outs}
                        : transposed ? Shape{experts, first.ins, outs}
                                     : Shape{experts, outs, first.ins},
                        first);
    for (std::uint64_t k = 0; k < experts; ++k) {
      for (std::uint64_t h = 0; h < parts.size(); ++h) {
        const Plane& plane = (*parts[h])[k];
        const bool turns = form_.in_turns && parts.size() > 1;
        const Axis out{turns ? h : h * plane.outs, plane.outs, turns ? parts.size() : 1,
                       plane.out_stride};
        const Axis in{0, plane.ins, 1, plane.in_stride};
        Patch patch{plane.file, plane.offset, {}};
        if (bias) {
          patch.axes[1] = {k, 1, 1, 0};
          patch.axes[2] = out;
        } else {
          patch.axes[0] = {k, 1, 1, 0};
          patch.axes[1] = transposed ? in : out;
          patch.axes[2] = transposed ? out : in;
        }
        entry.patches.push_back(patch);
      }
    }
    entry.origin = entries_[first.entry].info.name;
    const std::string& last = entries_[parts.back()->back().entry].info.name;
    if (last != entry.origin) entry.origin += " to " + last;
    out_.push_back(std::move(entry));
  }

  [[nodiscard]] Entry begin(std::string name, Shape shape, const Plane& first) const {
    Entry entry;
    entry.info = {std::move(name), bank_.dtype, shape};
    entry.file = first.file;
    entry.offset = first.offset;
    return entry;
  }

  const std::vector<Entry>& entries_;
  const std::string& owner_;
  const Bank& bank_;
  const Form& form_;
  std::vector<Entry>& out_;
};

std::string class_of(const Model& model) {
  if (!model.ref.override_architecture.empty()) return model.ref.override_architecture;
  try {
    return Config(model.checkpoint.config(), model.ref.text).architecture();
  } catch (const Error&) {  // told where configs are read
    return {};
  }
}

// "model.layers.*.mlp.experts": the experts of all layers of one stack.
std::string stack_of(std::string_view owner) {
  std::string out;
  while (!owner.empty()) {
    const std::string_view component = first_component(owner);
    if (!out.empty()) out += '.';
    out += is_number(component) ? "*" : component;
    owner.remove_prefix(std::min(component.size() + 1, owner.size()));
  }
  return out;
}

std::string words_of(const Form& form) {
  return fmt::format("{} ({}{}{})", form.together ? "in one tensor" : "apart",
                     form.joint ? std::string(kJoint) : form.leaves[1],
                     form.transposed ? ", transposed" : "",
                     form.in_turns ? ", gate and up in turns" : "");
}

}  // namespace

void arrange_experts(Draft& draft, std::uint32_t donor) {
  auto& models = draft.plan.models;
  const auto own = Banker(models[donor].checkpoint, class_of(models[donor])).run();
  if (own.empty()) return;
  // One form for all layers of a stack, also where the donor has several.
  std::map<std::string, const Form*> forms;
  for (const auto& [owner, bank] : own) forms.emplace(stack_of(owner), &bank.form);
  const Form& first = own.begin()->second.form;
  for (std::uint32_t m = 0; m < models.size(); ++m) {
    if (models[m].adapter) continue;
    const std::vector<Entry>& stored = models[m].checkpoint.entries();
    const auto banks = Banker(models[m].checkpoint, class_of(models[m])).run();
    std::vector<Entry> made;
    std::vector<bool> replaced(stored.size());
    const Form* other = nullptr;
    const Form* wanted = nullptr;
    for (const auto& [owner, bank] : banks) {
      const auto known = forms.find(stack_of(owner));
      const Form& form = known == forms.end() ? first : *known->second;
      if (bank.form == form) continue;
      const std::size_t before = made.size();
      Arranger(stored, owner, bank, form, made).run();
      if (made.size() == before) continue;
      for (const std::uint32_t e : bank.entries) replaced[e] = true;
      other = &bank.form;
      wanted = &form;
    }
    if (other == nullptr) continue;
    const std::string& name = models[m].ref.text;
    const std::string& giver = models[donor].ref.text;
    draft.problems.warn(
        Code::format,
        m == donor
            ? fmt::format("{} stores the experts of some layers {}, of others {}: ingot reads and "
                          "writes all in the second form",
                          name, words_of(*other), words_of(*wanted))
            : fmt::format(
                  "{} stores its experts {}, {} stores them {}: ingot reads them in the form of {}",
                  name, words_of(*other), giver, words_of(*wanted), giver));
    for (std::size_t e = 0; e < stored.size(); ++e) {
      if (!replaced[e]) made.push_back(stored[e]);
    }
    models[m].checkpoint.arrange(std::move(made));
  }
}

}  // namespace ingot::plan

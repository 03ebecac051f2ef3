#include "store/machine.hpp"

#include "ingot/error.hpp"
#include "store/closed.hpp"
#include "store/header.hpp"

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <optional>
#include <utility>

namespace ingot::pickle {

namespace {

// 300 tensors take some 10,000 opcodes; this leaves room for 100,000 in one file and keeps what a
// hostile file can ask for well below a GiB.
constexpr std::uint32_t kMaxSteps = std::uint32_t{1} << 22;
constexpr std::int64_t kMaxKey = 64;  // bytes; torch numbers its storages

// A member of the archive that holds elements.
struct Storage {
  Dtype dtype = Dtype::u8;
  std::uint64_t offset = 0;  // in the file
  std::uint64_t bytes = 0;
};

class Machine {
 public:
  Machine(const std::string& path, std::string_view bytes, const std::vector<Member>& members,
          const std::string& folder)
      : path_(path), members_(members), folder_(folder) {
    tree_.bytes = bytes;
  }

  Tree run() {
    begin();
    for (std::uint32_t steps = 1; steps < kMaxSteps; ++steps) {
      const Op op = next();
      if (op == Op::stop) {
        tree_.top = end();
        return std::move(tree_);
      }
      step(op);
    }
    refuse(path_, fmt::format("has more than {} opcodes", kMaxSteps));
  }

 private:
  // Refuses the pickle because of the opcode at hand.
  [[noreturn]] void stop(std::string_view what) const {
    refuse(path_, fmt::format("{} (opcode at byte {})", what, opcode_));
  }

  // ---- bytes ----------------------------------------------------------------------------------

  std::string_view take(std::uint64_t size) {
    if (size > tree_.bytes.size() - at_) stop("ends inside an opcode");
    if (opcode_ < frame_ && at_ + size > frame_) {
      stop("has an opcode that crosses the end of its frame");
    }
    const std::string_view bytes = tree_.bytes.substr(at_, size);
    at_ += size;
    return bytes;
  }

  std::uint64_t number(std::size_t size) {
    const std::string_view bytes = take(size);
    std::uint64_t value = 0;
    for (std::size_t i = size; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
    return value;
  }

  std::string_view line() {
    constexpr std::size_t kLongest = 256;
    const std::size_t end = tree_.bytes.substr(at_, kLongest).find('\n');
    if (end == std::string_view::npos) stop("has a global whose name does not end");
    return take(end + 1).substr(0, end);
  }

  void set_frame() {
    const std::uint64_t size = number(8);
    if (at_ < frame_ || size > tree_.bytes.size() - at_) stop("has a frame of the wrong length");
    frame_ = at_ + size;
  }

  // ---- stack ----------------------------------------------------------------------------------

  void push(Value value) { stack_.push_back(value); }

  Value& top() {
    const std::size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() <= floor) stop("takes a value from an empty stack");
    return stack_.back();
  }

  Value pop() {
    const Value value = top();
    stack_.pop_back();
    return value;
  }

  // Removes the last `size` values and returns them in the order they were pushed.
  std::vector<Value> pop_last(std::size_t size) {
    std::vector<Value> values(size);
    for (std::size_t i = size; i-- > 0;) values[i] = pop();
    return values;
  }

  // Everything above the last mark, which goes too.
  std::vector<Value> pop_mark() {
    if (marks_.empty()) stop("uses a mark that was never set");
    const auto from = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<Value> values(from, stack_.end());
    stack_.erase(from, stack_.end());
    marks_.pop_back();
    return values;
  }

  void push_group(Kind kind, std::vector<Value> values) {
    push({kind, static_cast<std::uint32_t>(tree_.groups.size()), 0});
    tree_.groups.push_back(std::move(values));
  }

  void push_tuple(std::size_t size) { push_group(Kind::tuple, pop_last(size)); }

  void push_text(std::uint64_t size) {
    const std::string_view bytes = take(size);
    push({Kind::text, static_cast<std::uint32_t>(bytes.data() - tree_.bytes.data()),
          static_cast<std::int64_t>(size)});
  }

  void push_opaque(std::uint64_t size) {
    static_cast<void>(take(size));
    push({Kind::opaque});
  }

  // LONG1: little-endian two's complement of 0 to 255 bytes.
  void push_long(std::size_t size) {
    if (size > 8) return push_opaque(size);
    std::uint64_t value = number(size);
    if (size > 0 && size < 8 && value >> (8 * size - 1) != 0)
      value |= ~std::uint64_t{0} << 8 * size;
    push({Kind::integer, 0, static_cast<std::int64_t>(value)});
  }

  // ---- memo -----------------------------------------------------------------------------------

  // Picklers number their memo 0, 1, 2, ...; a slot written twice or out of turn serves only
  // tricks.
  void put(std::uint64_t slot) {
    if (slot != memo_.size()) stop("writes its memo out of order");
    memo_.push_back(top());
  }

  void get(std::uint64_t slot) {
    if (slot >= memo_.size()) stop("reads a memo entry that was never written");
    push(memo_[static_cast<std::size_t>(slot)]);
  }

  // ---- containers -----------------------------------------------------------------------------

  void append(const std::vector<Value>& values) {
    const Value list = top();
    if (list.kind != Kind::list) stop(fmt::format("appends to {}", word(list.kind)));
    std::vector<Value>& group = tree_.groups[list.index];
    group.insert(group.end(), values.begin(), values.end());
  }

  void set_items(const std::vector<Value>& values) {
    const Value dict = top();
    if (!is_dict(dict.kind)) stop(fmt::format("sets items of {}", word(dict.kind)));
    if (values.size() % 2 != 0) stop("sets a key without a value");
    std::vector<Value>& group = tree_.groups[dict.index];
    group.insert(group.end(), values.begin(), values.end());
  }

  // The only states that belong to a checkpoint: the versions of modules that a state_dict carries
  // as an attribute, and the byte order of a numpy scalar. No tensor needs either.
  void build() {
    const Value state = pop();
    const Value object = top();
    if (object.kind == Kind::opaque && state.kind == Kind::tuple) return;
    if (object.kind == Kind::ordered && state.kind == Kind::dict) {
      const std::vector<Value>& items = tree_.groups[state.index];
      if (items.size() == 2 && items[0].kind == Kind::text && tree_.text(items[0]) == "_metadata")
        return;
    }
    stop(fmt::format("sets the state of {}", word(object.kind)));
  }

  // ---- globals --------------------------------------------------------------------------------

  void push_global() {
    const std::string_view module = line();
    find_global(module, line());
  }

  void push_stack_global() {
    const Value name = pop();
    const Value module = pop();
    if (name.kind != Kind::text || module.kind != Kind::text) {
      stop("names a global by something other than strings");
    }
    find_global(tree_.text(module), tree_.text(name));
  }

  void find_global(std::string_view module, std::string_view name) {
    for (std::size_t i = 0; i < kGlobals.size(); ++i) {
      if (kGlobals[i].module == module && kGlobals[i].name == name) {
        return push({Kind::global, static_cast<std::uint32_t>(i), 0});
      }
    }
    stop(fmt::format("asks for {}, which is not on the list of what tensors need",
                     cite(fmt::format("{}.{}", module, name))));
  }

  void reduce() {
    const Value args = pop();
    const Value callee = pop();
    if (callee.kind != Kind::global) stop(fmt::format("calls {}", word(callee.kind)));
    if (args.kind != Kind::tuple) stop("calls something without a tuple of arguments");
    const Global& global = kGlobals[callee.index];
    const std::vector<Value>& values = tree_.groups[args.index];
    const auto expect = [&](std::size_t least, std::size_t most) {
      if (values.size() < least || values.size() > most) {
        stop(fmt::format("gives {} arguments to {}", values.size(), global.name));
      }
    };
    switch (global.role) {
      case Role::ordered:
        expect(0, 0);
        return push_group(Kind::ordered, {});
      case Role::tensor:
        expect(4, 4);
        return push_tensor(values, nullptr);
      case Role::tensor_v2:
        expect(6, 7);
        check_grad(values[4], values[5]);
        if (values.size() == 7) check_metadata(values[6]);
        return push_tensor(values, nullptr);
      case Role::tensor_v3:
        expect(7, 8);
        check_grad(values[4], values[5]);
        if (values.size() == 8) check_metadata(values[7]);
        return push_tensor(values, &values[6]);
      case Role::parameter:
      case Role::parameter_with:
        expect(global.role == Role::parameter ? 3 : 4, global.role == Role::parameter ? 3 : 4);
        if (values[0].kind != Kind::tensor) stop("has a parameter without a tensor");
        check_grad(values[1], values[2]);
        return push(values[0]);
      case Role::size:
        expect(1, 1);
        if (values[0].kind != Kind::tuple) stop("has a torch.Size that is not made from a tuple");
        return push(values[0]);
      case Role::opaque:
        return push({Kind::opaque});
      case Role::storage:
      case Role::dtype:
        break;
    }
    stop(fmt::format("calls {}", cite(fmt::format("{}.{}", global.module, global.name))));
  }

  // ("storage", type, key, location, elements): a member of the archive.
  void push_storage() {
    const Value id = pop();
    if (id.kind != Kind::tuple || tree_.groups[id.index].size() != 5) {
      stop("has a persistent id that is not a tuple of five");
    }
    const std::vector<Value>& parts = tree_.groups[id.index];
    const bool typed =
        parts[0].kind == Kind::text && tree_.text(parts[0]) == "storage" &&
        parts[1].kind == Kind::global && kGlobals[parts[1].index].role == Role::storage &&
        parts[2].kind == Kind::text && parts[2].number <= kMaxKey && parts[3].kind == Kind::text &&
        parts[4].kind == Kind::integer && parts[4].number >= 0;
    if (!typed) stop("has a persistent id that does not describe a storage");
    const std::string name = folder_ + std::string(tree_.text(parts[2]));
    const Member* member = find_member(members_, name);
    if (member == nullptr) {
      stop(fmt::format("needs the storage {}, which is not in the archive", cite(name)));
    }
    const Dtype dtype = kGlobals[parts[1].index].dtype;
    std::uint64_t bytes = 0;
    if (__builtin_mul_overflow(static_cast<std::uint64_t>(parts[4].number), bits(dtype) / 8,
                               &bytes) ||
        bytes != member->size) {
      stop(fmt::format("gives the storage {} {} elements of {}, but it has {} bytes", cite(name),
                       parts[4].number, ingot::word(dtype), member->size));
    }
    push({Kind::storage, static_cast<std::uint32_t>(storages_.size()), 0});
    storages_.push_back({dtype, member->offset, member->size});
  }

  // ---- tensors --------------------------------------------------------------------------------

  void check_grad(const Value& requires_grad, const Value& hooks) const {
    if (requires_grad.kind != Kind::boolean)
      stop("has a tensor whose requires_grad is not true or false");
    const bool none =
        hooks.kind == Kind::none || (is_dict(hooks.kind) && tree_.groups[hooks.index].empty());
    if (!none) stop("has a tensor with backward hooks");
  }

  // Marks of lazy conjugation and negation: with them the stored numbers are not the values.
  void check_metadata(const Value& value) const {
    const bool none =
        value.kind == Kind::none || (is_dict(value.kind) && tree_.groups[value.index].empty());
    if (!none) stop("has a tensor with metadata that changes its values");
  }

  [[nodiscard]] const std::vector<Value>& integers(const Value& value,
                                                   std::string_view what) const {
    if (value.kind != Kind::tuple) {
      stop(fmt::format("has a tensor whose {} is {}", what, word(value.kind)));
    }
    for (const Value& v : tree_.groups[value.index]) {
      if (v.kind != Kind::integer || v.number < 0) {
        stop(fmt::format("has a tensor whose {} is not made of counts", what));
      }
    }
    return tree_.groups[value.index];
  }

  // (storage, offset, size, stride, ...), with the element type of the storage or `dtype`.
  void push_tensor(const std::vector<Value>& args, const Value* dtype) {
    if (args[0].kind != Kind::storage) stop("has a tensor without a storage");
    if (args[1].kind != Kind::integer || args[1].number < 0)
      stop("has a tensor with an invalid offset");
    const Storage& storage = storages_[args[0].index];
    Tensor tensor;
    tensor.dtype = storage.dtype;
    if (dtype != nullptr) {
      if (dtype->kind != Kind::global || kGlobals[dtype->index].role != Role::dtype) {
        stop("has a tensor without an element type");
      }
      tensor.dtype = kGlobals[dtype->index].dtype;
    }
    const std::uint64_t width = bits(tensor.dtype) / 8;

    const std::vector<Value>& sizes = integers(args[2], "shape");
    const std::vector<Value>& steps = integers(args[3], "stride");
    if (sizes.size() != steps.size()) {
      stop(fmt::format("has a tensor with {} axes and {} strides", sizes.size(), steps.size()));
    }
    for (const Value& size : sizes) {
      if (!tensor.shape.push(static_cast<std::uint64_t>(size.number))) {
        stop(fmt::format("has a tensor with {} axes; at most {} are read", sizes.size(),
                         Shape::kMaxRank));
      }
    }
    const std::optional<std::uint64_t> count = tensor.shape.checked_count();
    if (!count) stop(fmt::format("has a tensor of impossible shape {}", tensor.shape.text()));
    tensor.offset = storage.offset;
    if (*count > 0) {
      const std::uint64_t room = storage.bytes / width;
      const std::uint64_t last = place(tensor, steps, static_cast<std::uint64_t>(args[1].number));
      if (last >= room) {
        stop(fmt::format("has a tensor of shape {} that reaches element {} of a storage of {}",
                         tensor.shape.text(), last, room));
      }
      if (*count > room) {
        stop(
            fmt::format("has a tensor of shape {} over a storage of {} elements, an expanded view; "
                        "call contiguous() on it before saving",
                        tensor.shape.text(), room));
      }
      tensor.offset += static_cast<std::uint64_t>(args[1].number) * width;
    }
    push({Kind::tensor, static_cast<std::uint32_t>(tree_.tensors.size()), 0});
    tree_.tensors.push_back(std::move(tensor));
  }

  // Sets the strides of a tensor that has elements, unless it is dense; returns the highest element
  // of the storage that it reaches.
  std::uint64_t place(Tensor& tensor, const std::vector<Value>& steps, std::uint64_t first) const {
    std::uint64_t last = first;
    std::uint64_t dense = 1;
    bool strided = false;
    for (int axis = tensor.shape.rank(); axis-- > 0;) {
      const std::uint64_t extent = tensor.shape[axis];
      const auto step = static_cast<std::uint64_t>(steps[static_cast<std::size_t>(axis)].number);
      std::uint64_t reach = 0;
      if (__builtin_mul_overflow(extent - 1, step, &reach) ||
          __builtin_add_overflow(last, reach, &last)) {
        stop(fmt::format("has a tensor of shape {} whose strides overflow", tensor.shape.text()));
      }
      strided = strided || (extent > 1 && step != dense);  // the step of a single element is free
      dense *= extent;
    }
    if (strided) {
      for (const Value& step : steps) {
        tensor.strides.push_back(static_cast<std::uint64_t>(step.number));
      }
    }
    return last;
  }

  // ---- the loop -------------------------------------------------------------------------------

  Op next() {
    opcode_ = at_;
    return static_cast<Op>(take(1).front());
  }

  void begin() {
    if (next() != Op::proto) stop("does not begin with its protocol");
    const std::uint64_t protocol = number(1);
    if (protocol < 2 || protocol > 5) stop(fmt::format("is of protocol {}", protocol));
  }

  Value end() {
    const Value result = pop();
    if (!stack_.empty() || !marks_.empty()) stop("ends with values left over");
    if (at_ != tree_.bytes.size()) stop("has bytes after its end");
    return result;
  }

  void step(Op op) {
    switch (op) {
      case Op::frame:
        return set_frame();
      case Op::none:
        return push({Kind::none});
      case Op::newtrue:
      case Op::newfalse:
        return push({Kind::boolean, 0, op == Op::newtrue});
      case Op::binint:
        return push({Kind::integer, 0, static_cast<std::int32_t>(number(4))});
      case Op::binint1:
        return push({Kind::integer, 0, static_cast<std::int64_t>(number(1))});
      case Op::binint2:
        return push({Kind::integer, 0, static_cast<std::int64_t>(number(2))});
      case Op::long1:
        return push_long(number(1));
      case Op::binfloat:
        return push_opaque(8);
      case Op::short_binbytes:
        return push_opaque(number(1));
      case Op::binbytes:
        return push_opaque(number(4));
      case Op::binbytes8:
        return push_opaque(number(8));
      case Op::short_binunicode:
        return push_text(number(1));
      case Op::binunicode:
        return push_text(number(4));
      case Op::binunicode8:
        return push_text(number(8));
      case Op::mark:
        return marks_.push_back(stack_.size());
      case Op::empty_tuple:
        return push_tuple(0);
      case Op::tuple1:
        return push_tuple(1);
      case Op::tuple2:
        return push_tuple(2);
      case Op::tuple3:
        return push_tuple(3);
      case Op::tuple:
        return push_group(Kind::tuple, pop_mark());
      case Op::empty_list:
        return push_group(Kind::list, {});
      case Op::append:
        return append({pop()});
      case Op::appends:
        return append(pop_mark());
      case Op::empty_dict:
        return push_group(Kind::dict, {});
      case Op::setitem:
        return set_items(pop_last(2));
      case Op::setitems:
        return set_items(pop_mark());
      case Op::binput:
        return put(number(1));
      case Op::long_binput:
        return put(number(4));
      case Op::memoize:
        return put(memo_.size());
      case Op::binget:
        return get(number(1));
      case Op::long_binget:
        return get(number(4));
      case Op::global:
        return push_global();
      case Op::stack_global:
        return push_stack_global();
      case Op::reduce:
        return reduce();
      case Op::build:
        return build();
      case Op::binpersid:
        return push_storage();
      case Op::proto:
      case Op::stop:
        break;
    }
    unknown(static_cast<unsigned char>(op));
  }

  [[noreturn]] void unknown(unsigned char code) const {
    for (const Refused& refused : kRefused) {
      if (refused.code == code) {
        stop(fmt::format("uses the opcode {}, which is not on the list of what tensors need",
                         refused.name));
      }
    }
    stop(fmt::format("uses the byte {:#04x}, which is not an opcode that ingot reads", code));
  }

  const std::string& path_;
  const std::vector<Member>& members_;
  const std::string& folder_;

  std::uint64_t at_ = 0;
  std::uint64_t opcode_ = 0;  // where the one being carried out begins
  std::uint64_t frame_ = 0;   // end of the last frame
  std::vector<Value> stack_;
  std::vector<std::size_t> marks_;
  std::vector<Value> memo_;
  std::vector<Storage> storages_;
  Tree tree_;
};

}  // namespace

std::string_view word(Kind kind) noexcept {
  constexpr std::array<std::string_view, 12> kWords{
      "None",   "a boolean",    "an integer",   "a scalar or bytes",  "a string",  "a tuple",
      "a list", "a dictionary", "a dictionary", "a type or function", "a storage", "a tensor"};
  return kWords[static_cast<std::size_t>(kind)];  // in the order of Kind
}

Tree execute(const std::string& path, std::string_view bytes, const std::vector<Member>& members,
             const std::string& folder) {
  return Machine(path, bytes, members, folder).run();
}

void refuse(const std::string& path, std::string_view what) {
  fail(Code::format,
       fmt::format("{}: the pickle {}; nothing was executed; convert the checkpoint to "
                   "safetensors with the program that wrote it",
                   path, what));
}

}  // namespace ingot::pickle

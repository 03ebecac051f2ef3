#include "store/pickle.hpp"

#include "ingot/error.hpp"
#include "store/header.hpp"
#include "store/zip.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

namespace ingot {

namespace {

// 300 tensors take some 50 KB and 10,000 opcodes; the limits leave room for 100,000 tensors in one
// file and keep what a hostile file can ask for far below a GiB.
constexpr std::uint64_t kMaxPickle = std::uint64_t{64} << 20;
constexpr std::uint32_t kMaxSteps = std::uint32_t{1} << 22;

constexpr std::int64_t kMaxKey = 64;  // bytes; torch numbers its storages

constexpr std::string_view kRemedy =
    "nothing was executed; convert the checkpoint to safetensors with the program that wrote it";

// What a global on the list stands for.
enum class Role : std::uint8_t {
  ordered,         // a dictionary
  tensor,          // (storage, offset, size, stride)
  tensor_v2,       // (storage, offset, size, stride, requires_grad, hooks[, metadata])
  tensor_v3,       // (storage, offset, size, stride, requires_grad, hooks, dtype[, metadata])
  parameter,       // (tensor, requires_grad, hooks)
  parameter_with,  // (tensor, requires_grad, hooks, state)
  size,            // (tuple)
  storage,         // names the element type of a storage, never called
  dtype,           // names an element type, never called
  opaque,          // makes a value that no tensor needs, from anything
};

struct Global {
  std::string_view module;
  std::string_view name;
  Role role;
  Dtype dtype = Dtype::u8;
};

// The closed list. A pair must match as a whole: a dotted name is no path here.
constexpr std::array kGlobals{
    Global{"collections", "OrderedDict", Role::ordered},
    Global{"torch._utils", "_rebuild_tensor_v2", Role::tensor_v2},
    Global{"torch._utils", "_rebuild_tensor_v3", Role::tensor_v3},
    Global{"torch._utils", "_rebuild_tensor", Role::tensor},
    Global{"torch._utils", "_rebuild_parameter", Role::parameter},
    Global{"torch._utils", "_rebuild_parameter_with_state", Role::parameter_with},
    Global{"torch", "Size", Role::size},
    Global{"torch", "BFloat16Storage", Role::storage, Dtype::bf16},
    Global{"torch", "HalfStorage", Role::storage, Dtype::f16},
    Global{"torch", "FloatStorage", Role::storage, Dtype::f32},
    Global{"torch", "DoubleStorage", Role::storage, Dtype::f64},
    Global{"torch", "LongStorage", Role::storage, Dtype::i64},
    Global{"torch", "IntStorage", Role::storage, Dtype::i32},
    Global{"torch", "ShortStorage", Role::storage, Dtype::i16},
    Global{"torch", "CharStorage", Role::storage, Dtype::i8},
    Global{"torch", "ByteStorage", Role::storage, Dtype::u8},
    Global{"torch", "BoolStorage", Role::storage, Dtype::boolean},
    Global{"torch", "ComplexFloatStorage", Role::storage, Dtype::c64},
    Global{"torch.storage", "UntypedStorage", Role::storage, Dtype::u8},
    Global{"torch", "UntypedStorage", Role::storage, Dtype::u8},
    Global{"torch", "float64", Role::dtype, Dtype::f64},
    Global{"torch", "float32", Role::dtype, Dtype::f32},
    Global{"torch", "float16", Role::dtype, Dtype::f16},
    Global{"torch", "bfloat16", Role::dtype, Dtype::bf16},
    Global{"torch", "float8_e4m3fn", Role::dtype, Dtype::f8_e4m3},
    Global{"torch", "float8_e5m2", Role::dtype, Dtype::f8_e5m2},
    Global{"torch", "float8_e8m0fnu", Role::dtype, Dtype::f8_e8m0},
    Global{"torch", "int64", Role::dtype, Dtype::i64},
    Global{"torch", "int32", Role::dtype, Dtype::i32},
    Global{"torch", "int16", Role::dtype, Dtype::i16},
    Global{"torch", "int8", Role::dtype, Dtype::i8},
    Global{"torch", "uint64", Role::dtype, Dtype::u64},
    Global{"torch", "uint32", Role::dtype, Dtype::u32},
    Global{"torch", "uint16", Role::dtype, Dtype::u16},
    Global{"torch", "uint8", Role::dtype, Dtype::u8},
    Global{"torch", "bool", Role::dtype, Dtype::boolean},
    Global{"torch", "complex64", Role::dtype, Dtype::c64},
    // Scalars that training programs leave beside a state_dict.
    Global{"torch", "device", Role::opaque},
    Global{"numpy", "dtype", Role::opaque},
    Global{"numpy.core.multiarray", "scalar", Role::opaque},
    Global{"numpy._core.multiarray", "scalar", Role::opaque},
    Global{"_codecs", "encode", Role::opaque},
};

// The opcodes that torch.save needs, in protocols 2 to 5 (names as in Python's pickletools).
enum class Op : unsigned char {
  proto = 0x80,
  frame = 0x95,
  stop = '.',
  none = 'N',
  newtrue = 0x88,
  newfalse = 0x89,
  binint = 'J',
  binint1 = 'K',
  binint2 = 'M',
  long1 = 0x8a,
  binfloat = 'G',
  short_binbytes = 'C',
  binbytes = 'B',
  binbytes8 = 0x8e,
  short_binunicode = 0x8c,
  binunicode = 'X',
  binunicode8 = 0x8d,
  mark = '(',
  empty_tuple = ')',
  tuple1 = 0x85,
  tuple2 = 0x86,
  tuple3 = 0x87,
  tuple = 't',
  empty_list = ']',
  append = 'a',
  appends = 'e',
  empty_dict = '}',
  setitem = 's',
  setitems = 'u',
  binput = 'q',
  long_binput = 'r',
  memoize = 0x94,
  binget = 'h',
  long_binget = 'j',
  global = 'c',
  stack_global = 0x93,
  reduce = 'R',
  build = 'b',
  binpersid = 'Q',
};

// All others, for the message.
struct Refused {
  unsigned char code;
  std::string_view name;
};
constexpr std::array kRefused{
    Refused{'0', "POP"},
    Refused{'1', "POP_MARK"},
    Refused{'2', "DUP"},
    Refused{'F', "FLOAT"},
    Refused{'I', "INT"},
    Refused{'L', "LONG"},
    Refused{'P', "PERSID"},
    Refused{'S', "STRING"},
    Refused{'T', "BINSTRING"},
    Refused{'U', "SHORT_BINSTRING"},
    Refused{'V', "UNICODE"},
    Refused{'d', "DICT"},
    Refused{'g', "GET"},
    Refused{'i', "INST"},
    Refused{'l', "LIST"},
    Refused{'o', "OBJ"},
    Refused{'p', "PUT"},
    Refused{0x81, "NEWOBJ"},
    Refused{0x82, "EXT1"},
    Refused{0x83, "EXT2"},
    Refused{0x84, "EXT4"},
    Refused{0x8b, "LONG4"},
    Refused{0x8f, "EMPTY_SET"},
    Refused{0x90, "ADDITEMS"},
    Refused{0x91, "FROZENSET"},
    Refused{0x92, "NEWOBJ_EX"},
    Refused{0x96, "BYTEARRAY8"},
    Refused{0x97, "NEXT_BUFFER"},
    Refused{0x98, "READONLY_BUFFER"},
};

enum class Kind : std::uint8_t {
  none,
  boolean,
  integer,  // number
  opaque,   // a scalar that no tensor needs: a float, bytes, a huge integer, a numpy scalar
  text,     // index: offset in the pickle; number: bytes
  tuple,    // index into groups_
  list,     // the same
  dict,     // the same; keys and values alternate
  ordered,  // the same, made by OrderedDict
  global,   // index into kGlobals
  storage,  // index into storages_
  tensor,   // index into tensors_
};

struct Value {
  Kind kind = Kind::none;
  std::uint32_t index = 0;
  std::int64_t number = 0;
};

// In the order of Kind.
constexpr std::array<std::string_view, 12> kWords{
    "None",   "a boolean",    "an integer",   "a scalar or bytes",  "a string",  "a tuple",
    "a list", "a dictionary", "a dictionary", "a type or function", "a storage", "a tensor"};

std::string_view word(Kind kind) { return kWords[static_cast<std::size_t>(kind)]; }

bool is_dict(Kind kind) { return kind == Kind::dict || kind == Kind::ordered; }

// A member of the archive that holds elements.
struct Storage {
  Dtype dtype = Dtype::u8;
  std::uint64_t offset = 0;  // in the file
  std::uint64_t bytes = 0;
};

struct Tensor {
  Dtype dtype = Dtype::u8;
  Shape shape;
  std::vector<std::uint64_t> strides;  // empty if dense
  std::uint64_t offset = 0;            // in the file
};

// UTF-8 without control characters: what may be a tensor's name in a safetensors file.
bool printable(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i++]);
    if (lead < 0x20 || lead == 0x7f) return false;
    if (lead < 0x80) continue;
    const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4) return false;
    std::uint32_t code = lead & (0x3fU >> more);
    for (int k = 0; k < more; ++k) {
      if (i == text.size()) return false;
      const auto next = static_cast<unsigned char>(text[i++]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3fU);
    }
    const bool longer = (more == 2 && code < 0x800) || (more == 3 && code < 0x10000);
    if (longer || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
  }
  return true;
}

// The machine. Values are flat and refer to each other by index, so that nothing here recurses,
// whatever a pickle nests or ties into a knot.
class Machine {
 public:
  Machine(const std::string& path, std::string_view pickle, const std::vector<Member>& members,
          std::string_view root)
      : path_(path), pickle_(pickle), members_(members), prefix_(std::string(root) + "data/") {}

  std::vector<Entry> run(std::uint32_t index) {
    const Value top = execute();
    const std::vector<Value>& items = groups_[weights(top)];
    check_names(items);
    std::vector<Entry> entries;
    entries.reserve(items.size() / 2);
    for (std::size_t i = 0; i < items.size(); i += 2) {
      entries.push_back(entry(items[i], items[i + 1], index));
    }
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return a.info.name < b.info.name; });
    for (std::size_t i = 1; i < entries.size(); ++i) {
      if (entries[i].info.name == entries[i - 1].info.name) {
        refuse(fmt::format("has two tensors with the name {}", cite(entries[i].info.name)));
      }
    }
    if (entries.empty()) refuse("holds no tensors");
    return entries;
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail(Code::format, fmt::format("{}: the pickle {}; {}", path_, what, kRemedy));
  }
  // The same with the position of the opcode.
  [[noreturn]] void stop(std::string_view what) const {
    refuse(fmt::format("{} (opcode at byte {})", what, opcode_));
  }

  // ---- bytes ----------------------------------------------------------------------------------

  std::string_view take(std::uint64_t size) {
    if (size > pickle_.size() - at_) stop("ends inside an opcode");
    if (opcode_ < frame_ && at_ + size > frame_) {
      stop("has an opcode that crosses the end of its frame");
    }
    const std::string_view bytes = pickle_.substr(at_, size);
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
    const std::size_t end = pickle_.substr(at_, kLongest).find('\n');
    if (end == std::string_view::npos) stop("has a global whose name does not end");
    return take(end + 1).substr(0, end);
  }

  void set_frame() {
    const std::uint64_t size = number(8);
    if (at_ < frame_ || size > pickle_.size() - at_) stop("has a frame of the wrong length");
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

  // The last so many values, in the order they were pushed.
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
    push({kind, static_cast<std::uint32_t>(groups_.size()), 0});
    groups_.push_back(std::move(values));
  }

  void push_tuple(std::size_t size) { push_group(Kind::tuple, pop_last(size)); }

  void push_text(std::uint64_t size) {
    const std::string_view bytes = take(size);
    push({Kind::text, static_cast<std::uint32_t>(bytes.data() - pickle_.data()),
          static_cast<std::int64_t>(size)});
  }

  [[nodiscard]] std::string_view text(const Value& value) const {
    return pickle_.substr(value.index, static_cast<std::size_t>(value.number));
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
    std::vector<Value>& group = groups_[list.index];
    group.insert(group.end(), values.begin(), values.end());
  }

  void set_items(const std::vector<Value>& values) {
    const Value dict = top();
    if (!is_dict(dict.kind)) stop(fmt::format("sets items of {}", word(dict.kind)));
    if (values.size() % 2 != 0) stop("sets a key without a value");
    std::vector<Value>& group = groups_[dict.index];
    group.insert(group.end(), values.begin(), values.end());
  }

  // The only states that belong to a checkpoint: the versions of modules that a state_dict carries
  // as an attribute, and the byte order of a numpy scalar. No tensor needs either.
  void build() {
    const Value state = pop();
    const Value object = top();
    if (object.kind == Kind::opaque && state.kind == Kind::tuple) return;
    if (object.kind == Kind::ordered && state.kind == Kind::dict) {
      const std::vector<Value>& items = groups_[state.index];
      if (items.size() == 2 && items[0].kind == Kind::text && text(items[0]) == "_metadata") return;
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
    find_global(text(module), text(name));
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
    const std::vector<Value>& values = groups_[args.index];
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
    if (id.kind != Kind::tuple || groups_[id.index].size() != 5) {
      stop("has a persistent id that is not a tuple of five");
    }
    const std::vector<Value>& parts = groups_[id.index];
    const bool typed =
        parts[0].kind == Kind::text && text(parts[0]) == "storage" &&
        parts[1].kind == Kind::global && kGlobals[parts[1].index].role == Role::storage &&
        parts[2].kind == Kind::text && parts[2].number <= kMaxKey && parts[3].kind == Kind::text &&
        parts[4].kind == Kind::integer && parts[4].number >= 0;
    if (!typed) stop("has a persistent id that does not describe a storage");
    const std::string name = prefix_ + std::string(text(parts[2]));
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
    if (requires_grad.kind != Kind::boolean) stop("has a tensor with an odd requires_grad");
    const bool none =
        hooks.kind == Kind::none || (is_dict(hooks.kind) && groups_[hooks.index].empty());
    if (!none) stop("has a tensor with backward hooks");
  }

  // Marks of lazy conjugation and negation: with them the stored numbers are not the values.
  void check_metadata(const Value& value) const {
    const bool none =
        value.kind == Kind::none || (is_dict(value.kind) && groups_[value.index].empty());
    if (!none) stop("has a tensor with metadata that changes its values");
  }

  [[nodiscard]] const std::vector<Value>& integers(const Value& value,
                                                   std::string_view what) const {
    if (value.kind != Kind::tuple) {
      stop(fmt::format("has a tensor whose {} is {}", what, word(value.kind)));
    }
    for (const Value& v : groups_[value.index]) {
      if (v.kind != Kind::integer || v.number < 0) {
        stop(fmt::format("has a tensor whose {} is not made of counts", what));
      }
    }
    return groups_[value.index];
  }

  // (storage, offset, size, stride, ...), with the element type of the storage or `dtype`.
  void push_tensor(const std::vector<Value>& args, const Value* dtype) {
    if (args[0].kind != Kind::storage) stop("has a tensor without a storage");
    if (args[1].kind != Kind::integer || args[1].number < 0)
      stop("has a tensor with an odd offset");
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
    push({Kind::tensor, static_cast<std::uint32_t>(tensors_.size()), 0});
    tensors_.push_back(std::move(tensor));
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
      for (const Value& step : steps)
        tensor.strides.push_back(static_cast<std::uint64_t>(step.number));
    }
    return last;
  }

  // ---- result ---------------------------------------------------------------------------------

  // The group that maps names to tensors.
  std::uint32_t weights(const Value& top) const {
    if (!is_dict(top.kind)) {
      refuse(fmt::format("holds {} instead of a dictionary of tensors", word(top.kind)));
    }
    constexpr std::array<std::string_view, 2> kWrappers{"state_dict", "model"};
    std::array<bool, 2> seen{};
    const Value* inner = nullptr;
    const std::vector<Value>& items = groups_[top.index];
    for (std::size_t i = 0; i < items.size(); i += 2) {
      if (items[i].kind != Kind::text || !is_dict(items[i + 1].kind)) continue;
      const std::string_view key = text(items[i]);
      for (std::size_t k = 0; k < kWrappers.size(); ++k) {
        if (key != kWrappers[k]) continue;
        if (std::exchange(seen[k], true)) refuse(fmt::format("has two entries {}", cite(key)));
        if (k == 1 && !all_tensors(items[i + 1])) continue;
        if (inner != nullptr) refuse("holds weights under both 'state_dict' and 'model'");
        inner = &items[i + 1];
      }
    }
    if (inner == nullptr) return top.index;
    for (std::size_t i = 0; i < items.size(); i += 2) {
      if (items[i + 1].kind == Kind::tensor) {
        refuse("holds tensors both in a wrapped dictionary and beside it");
      }
    }
    return inner->index;
  }

  [[nodiscard]] bool all_tensors(const Value& dict) const {
    const std::vector<Value>& items = groups_[dict.index];
    for (std::size_t i = 0; i < items.size(); i += 2) {
      if (items[i + 1].kind != Kind::tensor) return false;
    }
    return !items.empty();
  }

  // That no two keys are one and the same string, before each is copied: a pickle can repeat one of
  // many megabytes for two bytes a time.
  void check_names(const std::vector<Value>& items) const {
    std::vector<std::uint32_t> texts;
    for (std::size_t i = 0; i < items.size(); i += 2) {
      if (items[i].kind != Kind::text) {
        refuse(fmt::format("names a tensor by {}", word(items[i].kind)));
      }
      texts.push_back(items[i].index);
    }
    std::sort(texts.begin(), texts.end());
    if (std::adjacent_find(texts.begin(), texts.end()) != texts.end()) {
      refuse("names two tensors by the same string");
    }
  }

  [[nodiscard]] Entry entry(const Value& key, const Value& value, std::uint32_t index) const {
    const std::string_view name = text(key);
    if (!printable(name) || name == "__metadata__") {
      refuse(fmt::format("has a tensor with the unusable name {}", cite(name)));
    }
    if (value.kind != Kind::tensor) {
      refuse(
          fmt::format("has {} under {} where a tensor is expected", word(value.kind), cite(name)));
    }
    const Tensor& tensor = tensors_[value.index];
    return {{std::string(name), tensor.dtype, tensor.shape}, index, tensor.offset, tensor.strides};
  }

  // ---- the loop -------------------------------------------------------------------------------

  Value execute() {
    begin();
    for (std::uint32_t steps = 1; steps < kMaxSteps; ++steps) {
      const Op op = next();
      if (op == Op::stop) return end();
      step(op);
    }
    refuse(fmt::format("has more than {} opcodes", kMaxSteps));
  }

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
    if (at_ != pickle_.size()) stop("has bytes after its end");
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
    stop(fmt::format("uses the byte {:#04x}, which is no opcode here", code));
  }

  const std::string& path_;
  std::string_view pickle_;
  const std::vector<Member>& members_;
  std::string prefix_;  // "root/data/"

  std::uint64_t at_ = 0;
  std::uint64_t opcode_ = 0;  // where the one being carried out begins
  std::uint64_t frame_ = 0;   // end of the last frame
  std::vector<Value> stack_;
  std::vector<std::size_t> marks_;
  std::vector<Value> memo_;
  std::vector<std::vector<Value>> groups_;
  std::vector<Storage> storages_;
  std::vector<Tensor> tensors_;
};

// Files that are often called `.bin` and are something else.
void check_magic(File& file) {
  struct Magic {
    std::size_t offset;
    std::string_view bytes;
    std::string_view what;
  };
  using namespace std::string_view_literals;
  constexpr std::string_view kOld =
      "is in the format of torch before 1.6; load it with torch.load(path, weights_only=True) and "
      "write it with safetensors.torch.save_file";
  constexpr std::array kMagics{
      Magic{0, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"sv, kOld},
      Magic{257, "ustar"sv, kOld},
      Magic{0, "\x80"sv,
            "is a bare pickle, not the zip archive that torch.save writes; nothing was "
            "executed, write it with safetensors.torch.save_file instead"},
      Magic{0, "version https://git-lfs"sv,
            "is a Git LFS pointer, not the weights; run git lfs pull"},
      Magic{0, "GGUF"sv, "is a GGUF file, not a PyTorch checkpoint"},
      Magic{8, "{\""sv,
            "is a safetensors file, not a PyTorch checkpoint; rename it to .safetensors"},
  };
  std::array<char, 512> head{};
  const std::uint64_t size = std::min<std::uint64_t>(file.size(), head.size());
  const auto bytes = std::as_writable_bytes(std::span(head)).first(static_cast<std::size_t>(size));
  read_exact(file, 0, bytes);
  const std::string_view text(head.data(), bytes.size());
  if (text.starts_with("PK\x03\x04")) return;
  for (const Magic& magic : kMagics) {
    if (text.size() >= magic.offset && text.substr(magic.offset).starts_with(magic.bytes)) {
      fail(Code::format, fmt::format("{}: {}", file.path(), magic.what));
    }
  }
  fail(Code::format,
       fmt::format("{}: does not begin as the zip archive that torch.save writes", file.path()));
}

// The bytes of a small member.
std::string load(File& file, const Member& member, std::uint64_t limit) {
  if (member.size > limit) {
    fail(Code::format, fmt::format("{}: zip member {} has {} bytes; at most {} are read",
                                   file.path(), cite(member.name), member.size, limit));
  }
  std::string bytes(static_cast<std::size_t>(member.size), '\0');
  read_exact(file, member.offset, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

}  // namespace

std::vector<Entry> read_pickle(File& file, std::uint32_t index) {
  check_magic(file);
  const std::vector<Member> members = read_zip(file);

  // All members lie in one folder, named after the file that was first written.
  const std::string& first = members.empty() ? std::string() : members.front().name;
  const std::string root = first.substr(0, first.find('/') + 1);
  for (const Member& member : members) {
    if (root.empty() || !member.name.starts_with(root)) {
      fail(Code::format,
           fmt::format("{}: zip member {} lies outside the one folder that torch.save "
                       "makes",
                       file.path(), cite(member.name)));
    }
  }
  const Member* pickle = find_member(members, root + "data.pkl");
  if (pickle == nullptr) {
    fail(Code::format,
         fmt::format("{}: is a zip archive without data.pkl, not a checkpoint", file.path()));
  }
  constexpr std::uint64_t kWord = 64;
  if (const Member* order = find_member(members, root + "byteorder")) {
    const std::string text = load(file, *order, kWord);
    if (text != "little") {
      fail(Code::format, fmt::format("{}: has the byte order {}, only 'little' is read; save it "
                                     "again on a little-endian machine",
                                     file.path(), cite(text)));
    }
  }
  if (const Member* version = find_member(members, root + "version")) {
    const std::string text = load(file, *version, kWord);
    // torch has written 2 and 3 so far, and reads up to 10.
    int number = 0;
    const char* rest = std::from_chars(text.data(), text.data() + text.size(), number).ptr;
    const std::string_view left(rest, static_cast<std::size_t>(text.data() + text.size() - rest));
    if (number < 1 || number > 10 || (left != "" && left != "\n")) {
      fail(Code::format, fmt::format("{}: has the format version {}; 1 to 10 are known",
                                     file.path(), cite(text)));
    }
  }
  const std::string bytes = load(file, *pickle, kMaxPickle);
  return Machine(file.path(), bytes, members, root).run(index);
}

}  // namespace ingot

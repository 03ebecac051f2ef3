// The closed lists of the pickle reader: the opcodes it carries out and the globals it knows.
// Whatever is not here is refused by name.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "ingot/dtype.hpp"

namespace ingot::pickle {

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
inline constexpr std::array kRefused{
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

// The meaning of a global on the list.
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

// The closed list. A pair must match as a whole: a dotted name is not a path here.
inline constexpr std::array kGlobals{
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

}  // namespace ingot::pickle

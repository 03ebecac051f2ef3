#include "ingot/dtype.hpp"

#include <array>
#include <cstddef>

namespace ingot {
namespace {

struct Row {
  std::string_view name;  // in a safetensors header
  std::string_view word;  // in recipes and config.json, as PyTorch spells it
  std::uint32_t bits;
};

// In the order of Dtype.
constexpr std::array<Row, kDtypes> kRows{{
    {"F64", "float64", 64},
    {"F32", "float32", 32},
    {"F16", "float16", 16},
    {"BF16", "bfloat16", 16},
    {"F8_E4M3", "float8_e4m3fn", 8},
    {"F8_E5M2", "float8_e5m2", 8},
    {"I64", "int64", 64},
    {"I32", "int32", 32},
    {"I16", "int16", 16},
    {"I8", "int8", 8},
    {"U64", "uint64", 64},
    {"U32", "uint32", 32},
    {"U16", "uint16", 16},
    {"U8", "uint8", 8},
    {"BOOL", "bool", 8},
    {"C64", "complex64", 64},
    {"F8_E8M0", "float8_e8m0fnu", 8},
    {"F8_E4M3FNUZ", "float8_e4m3fnuz", 8},
    {"F8_E5M2FNUZ", "float8_e5m2fnuz", 8},
    {"F6_E2M3", "float6_e2m3fn", 6},
    {"F6_E3M2", "float6_e3m2fn", 6},
    {"F4", "float4_e2m1fn", 4},
}};

const Row& row(Dtype dtype) noexcept { return kRows[static_cast<std::size_t>(dtype)]; }

}  // namespace

std::uint32_t bits(Dtype dtype) noexcept { return row(dtype).bits; }

std::string_view name(Dtype dtype) noexcept { return row(dtype).name; }

std::string_view word(Dtype dtype) noexcept { return row(dtype).word; }

std::optional<Dtype> dtype_of_name(std::string_view name) noexcept {
  for (std::size_t i = 0; i < kRows.size(); ++i) {
    if (kRows[i].name == name) return static_cast<Dtype>(i);
  }
  return std::nullopt;
}

}  // namespace ingot

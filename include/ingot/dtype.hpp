// Element types of stored tensors: their widths, their names in files and in recipes.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace ingot {

enum class Dtype : std::uint8_t {
  f64,
  f32,
  f16,
  bf16,
  f8_e4m3,
  f8_e5m2,
  i64,
  i32,
  i16,
  i8,
  u64,
  u32,
  u16,
  u8,
  boolean,
  // Known by name and width, so that a header with them can be read; never decoded.
  c64,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  f6_e2m3,
  f6_e3m2,
  f4,
};

inline constexpr int kDtypes = static_cast<int>(Dtype::f4) + 1;

// Width of one element in bits (4 and 6 exist).
[[nodiscard]] std::uint32_t bits(Dtype dtype) noexcept;

// The name in a safetensors header: "BF16", "F8_E4M3", ...
[[nodiscard]] std::string_view name(Dtype dtype) noexcept;

// The name in recipes and config.json: "bfloat16", "float8_e4m3fn", ...
[[nodiscard]] std::string_view word(Dtype dtype) noexcept;

[[nodiscard]] std::optional<Dtype> dtype_of_name(std::string_view name) noexcept;

// True for types with a codec: decoded exactly to f32, encoded with one rounding.
[[nodiscard]] constexpr bool has_codec(Dtype d) noexcept {
  return d == Dtype::f32 || d == Dtype::f16 || d == Dtype::bf16 || d == Dtype::f8_e4m3 ||
         d == Dtype::f8_e5m2;
}

// True for any floating-point type, f64 and the block formats' parts included.
[[nodiscard]] constexpr bool is_float(Dtype d) noexcept {
  return has_codec(d) || d == Dtype::f64 || d == Dtype::f8_e8m0 || d == Dtype::f8_e4m3fnuz ||
         d == Dtype::f8_e5m2fnuz || d == Dtype::f6_e2m3 || d == Dtype::f6_e3m2 || d == Dtype::f4;
}

// The largest finite value of a type with a codec.
[[nodiscard]] constexpr double largest_of(Dtype d) noexcept {
  switch (d) {
    case Dtype::f8_e5m2:
      return 0x1.cp15;
    case Dtype::f8_e4m3:
      return 0x1.cp8;
    case Dtype::bf16:
      return 0x1.fep127;
    case Dtype::f16:
      return 0x1.ffcp15;
    default:
      return 0x1.fffffep127;
  }
}

// Largest relative error of rounding a real number to a type with a codec: 2^-8 for bf16. Holds
// where the type is normal.
[[nodiscard]] constexpr double roundoff(Dtype d) noexcept {
  switch (d) {
    case Dtype::f8_e5m2:
      return 0x1p-3;
    case Dtype::f8_e4m3:
      return 0x1p-4;
    case Dtype::bf16:
      return 0x1p-8;
    case Dtype::f16:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

}  // namespace ingot

// A tensor by name, type and shape.
#pragma once

#include <string>

#include "ingot/dtype.hpp"
#include "ingot/shape.hpp"

namespace ingot {

struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::f32;
  Shape shape;

  [[nodiscard]] std::uint64_t count() const noexcept { return shape.count(); }
  [[nodiscard]] std::uint64_t bytes() const noexcept {
    return shape.checked_bytes(dtype).value_or(0);
  }
};

}  // namespace ingot

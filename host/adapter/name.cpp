#include "ingot/adapter.hpp"

namespace ingot {

std::string_view name(Family family) noexcept {
  switch (family) {
    case Family::lora:
      return "LORA";
    case Family::adalora:
      return "ADALORA";
    case Family::loha:
      return "LOHA";
    case Family::lokr:
      return "LOKR";
    case Family::ia3:
      return "IA3";
    case Family::oft:
      return "OFT";
    case Family::boft:
      return "BOFT";
    case Family::vera:
      return "VERA";
    case Family::miss:
      return "MISS";
    case Family::hra:
      return "HRA";
    case Family::none:
      return "whole tensors";
  }
  return "";
}

}  // namespace ingot

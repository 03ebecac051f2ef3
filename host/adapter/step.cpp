#include "adapter/step.hpp"

#include <cmath>

#include <fmt/format.h>

#include "store/values.hpp"

namespace ingot {

Matrix matrix(const Shape& shape) {
  if (shape.rank() == 0) return {1, 1};
  return {shape[0], shape[0] == 0 ? 0 : shape.count() / shape[0]};
}

const Located& part(const Located& base, const Effect& effect, Piece piece) {
  const Located* found = effect.find(piece);
  if (found == nullptr) {
    fail(Code::missing, fmt::format("{}: the {} change of {} has no {}", effect.adapter,
                                    name(effect.family), base.info.name, word(piece)));
  }
  if (!is_float(found->info.dtype)) {
    fail(Code::dtype, fmt::format("{}: {} is {}, but a float type is needed", effect.adapter,
                                  found->info.name, name(found->info.dtype)));
  }
  return *found;
}

std::vector<float> load(const Plan& plan, const Effect& effect, const Located& part) {
  const Checkpoint& checkpoint = plan.models[part.place.model].checkpoint;
  std::vector<float> values(part.info.count());
  read_values(checkpoint, checkpoint.entries()[part.place.entry], 0, values);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    fail(Code::format, fmt::format("{}: element {} of {} is {}, so the adapter cannot be used",
                                   effect.adapter, i, part.info.name, values[i]));
  }
  return values;
}

std::string_view word(Piece piece) noexcept {
  switch (piece) {
    case Piece::a:
      return "lora_A";
    case Piece::b:
      return "lora_B";
    case Piece::bias:
      return "lora_B.bias";
    case Piece::magnitude:
      return "lora_magnitude_vector";
    case Piece::e:
      return "lora_E";
    case Piece::w1:
      return "w1";
    case Piece::w1_a:
      return "w1_a";
    case Piece::w1_b:
      return "w1_b";
    case Piece::w2:
      return "w2";
    case Piece::w2_a:
      return "w2_a";
    case Piece::w2_b:
      return "w2_b";
    case Piece::t1:
      return "t1";
    case Piece::t2:
      return "t2";
    case Piece::l:
      return "ia3_l";
    case Piece::r:
      return "R";
    case Piece::s:
      return "boft_s";
    case Piece::lambda_b:
      return "vera_lambda_b";
    case Piece::lambda_d:
      return "vera_lambda_d";
    case Piece::shared_a:
      return "vera_A";
    case Piece::shared_b:
      return "vera_B";
    case Piece::block:
      return "block";
    case Piece::u:
      return "hra_u";
  }
  return "part";
}

void misfit(const Located& base, const Effect& effect, const Located& part,
            const std::string& expected) {
  fail(Code::shape, fmt::format("{}: {} has shape {}, expected {} to change {} of shape {}",
                                effect.adapter, part.info.name, part.info.shape.text(), expected,
                                base.info.name, base.info.shape.text()));
}

const Kit& kit_of(const Located& base, const Effect& effect) {
  switch (effect.family) {
    case Family::lora:
      if (effect.find(Piece::bias) != nullptr) return kBias;
      if (effect.find(Piece::magnitude) == nullptr) return kProduct;
      return effect.layout == Layout::linear ? kDora : kDoraColumns;
    case Family::adalora:
    case Family::vera:
      return kProduct;
    case Family::ia3:
      return kScale;
    case Family::loha:
      return kHadamard;
    case Family::lokr:
      return kKronecker;
    case Family::oft:
      return kOft;
    case Family::boft:
      return kBoft;
    case Family::hra:
      return kHra;
    case Family::miss:
      return effect.tiling == AdapterConfig::Tiling::bat ? kBat : kMiss;
    case Family::none:
      return kTokens;
  }
  fail(Code::internal,
       fmt::format("{}: no formula for the change of {}", effect.adapter, base.info.name));
}

}  // namespace ingot

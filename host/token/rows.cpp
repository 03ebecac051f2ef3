#include "token/rows.hpp"

namespace ingot {
namespace {

bool in_place(const RowMap& map, const ModelRows& self) {
  if (map.rows != self.height || map.picks.size() != map.rows || !map.averaged.empty())
    return false;
  for (std::uint64_t row = 0; row < map.rows; ++row) {
    const RowMap::Pick& pick = map.picks[row];
    if (map.first[row] != row || pick.model != self.model || pick.entry != self.entry ||
        pick.row != row) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::uint64_t padded_rows(const Vocab& output, std::uint64_t pad_to) {
  const std::uint64_t rows = output.rows();
  return pad_to > 1 ? (rows + pad_to - 1) / pad_to * pad_to : rows;
}

std::vector<std::optional<RowMap>> map_rows(const Vocab& output, std::span<const ModelRows> models,
                                            std::optional<std::size_t> base, std::uint64_t pad_to,
                                            std::uint64_t width) {
  std::vector<RowMap> maps(models.size());
  const std::uint64_t rows = padded_rows(output, pad_to);
  for (RowMap& map : maps) {
    map.rows = rows;
    map.width = width;
    map.first.reserve(rows + 1);
    map.first.push_back(0);
    map.picks.reserve(rows);
  }

  std::vector<std::optional<RowMap::Pick>> own(models.size());  // each model's row of the token
  std::vector<RowMap::Pick> fallback;
  for (std::uint64_t row = 0; row < rows; ++row) {
    const auto token = output.token(row);
    const bool named = token.has_value();
    fallback.clear();
    if (named) {
      for (std::size_t i = 0; i < models.size(); ++i) {
        const auto found = models[i].vocab->id(*token);
        own[i].reset();
        if (found && *found < models[i].height) {
          own[i] = RowMap::Pick{models[i].model, models[i].entry, *found};
          fallback.push_back(*own[i]);
        }
      }
      if (fallback.size() > 1 && base && own[*base]) fallback = {*own[*base]};
    }
    for (std::size_t i = 0; i < models.size(); ++i) {
      RowMap& map = maps[i];
      if (!named) {
        map.averaged.push_back(row);
      } else if (own[i]) {
        map.picks.push_back(*own[i]);
      } else {
        map.picks.insert(map.picks.end(), fallback.begin(), fallback.end());
      }
      map.first.push_back(map.picks.size());
    }
  }

  std::vector<std::optional<RowMap>> out(models.size());
  for (std::size_t i = 0; i < models.size(); ++i) {
    if (!in_place(maps[i], models[i])) out[i] = std::move(maps[i]);
  }
  return out;
}

}  // namespace ingot

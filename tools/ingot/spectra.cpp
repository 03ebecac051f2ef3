#include "spectra.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include <fmt/format.h>

#include "console.hpp"
#include "ingot/error.hpp"
#include "ingot/linalg.hpp"
#include "size.hpp"
#include "sweep.hpp"

namespace ingot::tool {
namespace {

using linalg::As;
using linalg::Matrix;

constexpr std::size_t kRows = 16;  // of an update that are looked at for signs

// An expert's factors as rows: rank x height, times the scaling, and rank x width.
struct Factors {
  Matrix b, a;
};

std::vector<double> values_of(const Adapter& adapter, std::uint32_t entry) {
  const Entry& tensor = adapter.checkpoint.entries()[entry];
  std::vector<double> all;
  Sweep sweep(adapter.checkpoint, tensor);
  while (sweep.next()) all.insert(all.end(), sweep.values().begin(), sweep.values().end());
  for (const double x : all) {
    if (std::isfinite(x)) continue;
    fail(Code::format, fmt::format("{}: {} holds {}, so the adapter cannot be used",
                                   adapter.checkpoint.shown(), tensor.info.name, x));
  }
  return all;
}

bool has_factors(const Adapted& module) {
  return module.rank > 0 && module.find(Piece::a) && module.find(Piece::b) &&
         !module.find(Piece::e);
}

std::vector<Factors> factors_of(const Adapter& adapter, const Adapted& module) {
  const std::vector<double> a = values_of(adapter, *module.find(Piece::a));
  const std::vector<double> b = values_of(adapter, *module.find(Piece::b));
  const std::uint64_t rank = module.rank, experts = module.experts;
  const std::uint64_t columns = rank / module.groups;  // of B, of an expert
  const std::uint64_t width = a.size() / (rank * experts);
  const std::uint64_t height = adapter.checkpoint.entries()[*module.find(Piece::b)].info.shape[0];
  std::vector<Factors> all;
  for (std::uint64_t e = 0; e < experts; ++e) {
    Factors one{Matrix(rank, height), Matrix(rank, width)};
    std::copy_n(a.begin() + static_cast<std::ptrdiff_t>(e * rank * width), rank * width,
                one.a.data.begin());
    for (std::uint64_t o = 0; o < height; ++o) {
      const std::uint64_t first = o * module.groups / height * columns;  // of the output's group
      for (std::uint64_t k = 0; k < columns; ++k) {
        one.b.at(first + k, o) = module.scaling * b[(o * columns + k) * experts + e];
      }
    }
    all.push_back(std::move(one));
  }
  return all;
}

Update update_of(const std::vector<Factors>& factors, std::uint64_t rank) {
  Update update;
  update.rank = rank;
  std::vector<double> energies;
  for (const Factors& one : factors) {
    for (const double value : linalg::spectrum(one.b, one.a)) {
      energies.push_back(value * value);
      update.spectral = std::max(update.spectral, value);
    }
  }
  double total = 0, entropy = 0;
  for (const double energy : energies) total += energy;
  for (const double energy : energies) {
    if (energy > 0) entropy -= energy / total * std::log(energy / total);
  }
  update.norm = std::sqrt(total);
  update.effective = total > 0 ? std::exp(entropy) : 0;
  return update;
}

// Sums that relations are made of, so that modules add up.
struct Sums {
  double inner = 0, one = 0, other = 0;
  std::uint64_t signs = 0, differing = 0;

  void operator+=(const Sums& more) {
    inner += more.inner;
    one += more.one;
    other += more.other;
    signs += more.signs;
    differing += more.differing;
  }
  [[nodiscard]] Relation relation() const {
    const double norms = std::sqrt(one) * std::sqrt(other);
    return {norms > 0 ? inner / norms : 0,
            signs > 0 ? static_cast<double>(differing) / static_cast<double>(signs) : 0};
  }
};

// The inner product of two updates, from products of their factors.
double inner(const Factors& x, const Factors& y) {
  const Matrix b = linalg::multiply(x.b, As::is, y.b, As::turned);
  const Matrix a = linalg::multiply(x.a, As::is, y.a, As::turned);
  double sum = 0;
  for (std::size_t i = 0; i < b.data.size(); ++i) sum += b.data[i] * a.data[i];
  return sum;
}

// Some rows of an update, evenly spread.
Matrix rows_of(const Factors& factors) {
  const std::size_t height = factors.b.cols, count = std::min(kRows, height);
  Matrix some(factors.b.rows, count);
  for (std::size_t k = 0; k < some.rows; ++k) {
    for (std::size_t i = 0; i < count; ++i) some.at(k, i) = factors.b.at(k, i * height / count);
  }
  return linalg::multiply(some, As::turned, factors.a, As::is);
}

std::optional<Sums> sums_of(const std::vector<Factors>& x, const std::vector<Factors>& y) {
  Sums sums;
  for (std::size_t e = 0; e < x.size() && e < y.size(); ++e) {
    if (x[e].b.cols != y[e].b.cols || x[e].a.cols != y[e].a.cols) return std::nullopt;
    sums.inner += inner(x[e], y[e]);
    sums.one += inner(x[e], x[e]);
    sums.other += inner(y[e], y[e]);
    const Matrix left = rows_of(x[e]), right = rows_of(y[e]);
    for (std::size_t i = 0; i < left.data.size(); ++i) {
      const double product = left.data[i] * right.data[i];
      sums.signs += product != 0 ? 1 : 0;
      sums.differing += product < 0 ? 1 : 0;
    }
  }
  return sums;
}

std::uint64_t count_of(const Adapter& adapter, std::uint32_t entry) {
  return adapter.checkpoint.entries()[entry].info.count();
}

std::string key_of(const Adapted& module) {
  std::string key = module.path;
  for (std::uint32_t i = 0; i < module.nesting; ++i) key += ".base_layer";
  return key;
}

Spectra::Adapter sizes_of(const Adapter& adapter) {
  Spectra::Adapter sizes;
  sizes.name = adapter.checkpoint.shown();
  sizes.type = adapter.config.type + (adapter.config.dora ? " (DoRA)" : "");
  sizes.base = adapter.config.base;
  for (const Adapted& module : adapter.modules) {
    for (const Factor& factor : module.factors) {
      sizes.parameters += count_of(adapter, factor.entry);
    }
    if (!has_factors(module)) continue;
    sizes.adapted += count_of(adapter, *module.find(Piece::a)) / module.rank / module.groups *
                     adapter.checkpoint.entries()[*module.find(Piece::b)].info.shape[0];
  }
  for (const Factor& factor : adapter.shared) sizes.parameters += count_of(adapter, factor.entry);
  for (const Saved& saved : adapter.saved) sizes.whole += count_of(adapter, saved.entry);
  for (const Tokens& tokens : adapter.tokens) sizes.whole += count_of(adapter, tokens.entry);
  return sizes;
}

std::string share(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? "in factors"
                    : fmt::format("{:.2f} % of the weights they change",
                                  100 * static_cast<double>(part) / static_cast<double>(whole));
}

}  // namespace

Spectra measure(const std::vector<Adapter>& adapters) {
  Spectra spectra;
  const std::size_t n = adapters.size();
  std::map<std::string, std::vector<const Adapted*>, bool (*)(std::string_view, std::string_view)>
      modules(natural_less);
  for (std::size_t i = 0; i < n; ++i) {
    spectra.adapters.push_back(sizes_of(adapters[i]));
    for (const Adapted& module : adapters[i].modules) {
      if (!has_factors(module)) continue;
      auto& places = modules[key_of(module)];
      places.resize(n);
      places[i] = &module;
    }
  }
  std::vector<Sums> totals(n * (n - 1) / 2);
  std::vector<std::size_t> counts(n);
  for (const auto& [path, places] : modules) {
    Spectra::Module module{path, std::vector<std::optional<Update>>(n), {}};
    std::vector<std::vector<Factors>> factors(n);
    for (std::size_t i = 0; i < n; ++i) {
      if (places[i] == nullptr) continue;
      factors[i] = factors_of(adapters[i], *places[i]);
      module.updates[i] = update_of(factors[i], places[i]->rank);
      spectra.adapters[i].norm += module.updates[i]->norm * module.updates[i]->norm;
      spectra.adapters[i].effective += module.updates[i]->effective;
      ++counts[i];
    }
    std::size_t pair = 0;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = i + 1; j < n; ++j, ++pair) {
        std::optional<Sums> sums;
        if (!factors[i].empty() && !factors[j].empty()) sums = sums_of(factors[i], factors[j]);
        if (sums) totals[pair] += *sums;
        module.relations.push_back(sums ? std::optional(sums->relation()) : std::nullopt);
      }
    }
    spectra.modules.push_back(std::move(module));
  }
  for (std::size_t i = 0; i < n; ++i) {
    Spectra::Adapter& adapter = spectra.adapters[i];
    adapter.norm = std::sqrt(adapter.norm);
    if (counts[i] > 0) adapter.effective /= static_cast<double>(counts[i]);
  }
  for (const Sums& sums : totals) spectra.relations.push_back(sums.relation());
  return spectra;
}

std::string narrate(const Spectra& spectra) {
  std::string text;
  const std::size_t n = spectra.adapters.size();
  for (std::size_t i = 0; i < n; ++i) {
    const Spectra::Adapter& a = spectra.adapters[i];
    text += fmt::format("{}  {}  {}: {}, {}\n", i + 1, printable(a.name), printable(a.type),
                        show_count(a.parameters, "parameter"), share(a.parameters, a.adapted));
    if (!a.base.empty()) text += fmt::format("   for {}\n", printable(a.base));
    if (a.whole > 0) {
      text += fmt::format("   and {} in full\n", show_count(a.whole, "parameter"));
    }
    if (a.norm > 0) {
      text += fmt::format("   update: norm {:.4g}, effective rank {:.1f} on average\n", a.norm,
                          a.effective);
    }
  }
  std::size_t pair = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j, ++pair) {
      const Relation& r = spectra.relations[pair];
      text += fmt::format("{}-{}  cosine {:+.3f}, signs differ in {:.1f} % of elements\n", i + 1,
                          j + 1, r.cosine, 100 * r.conflict);
    }
  }
  if (spectra.modules.empty()) return text;
  text += "\n";
  for (std::size_t i = 0; i < n; ++i) {
    text += fmt::format("{:>5} {:>9} {:>6}", "rank", "norm", "eff.");
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) {
      text += fmt::format("  {:>13}", fmt::format("{}-{} cos, sign", i + 1, j + 1));
    }
  }
  text += "  module\n";
  for (const Spectra::Module& module : spectra.modules) {
    for (const auto& update : module.updates) {
      text += update ? fmt::format("{:>5} {:>9.4g} {:>6.1f}", update->rank, update->norm,
                                   update->effective)
                     : fmt::format("{:>5} {:>9} {:>6}", "-", "-", "-");
    }
    for (const auto& relation : module.relations) {
      text += relation ? fmt::format("  {:>+6.3f} {:>4.1f} %", relation->cosine,
                                     100 * relation->conflict)
                       : fmt::format("  {:>13}", "-");
    }
    text += fmt::format("  {}\n", printable(module.path));
  }
  return text;
}

Json describe(const Spectra& spectra) {
  const auto relation = [](const Relation& r) {
    return Json{{"cosine", r.cosine}, {"sign_conflict", r.conflict}};
  };
  Json json{{"adapters", Json::array()}, {"pairs", Json::array()}, {"modules", Json::array()}};
  for (const Spectra::Adapter& a : spectra.adapters) {
    json["adapters"].push_back({{"adapter", a.name},
                                {"type", a.type},
                                {"base", a.base},
                                {"parameters", a.parameters},
                                {"adapted_parameters", a.adapted},
                                {"whole_parameters", a.whole},
                                {"norm", a.norm},
                                {"effective_rank", a.effective}});
  }
  std::size_t pair = 0;
  for (std::size_t i = 0; i < spectra.adapters.size(); ++i) {
    for (std::size_t j = i + 1; j < spectra.adapters.size(); ++j, ++pair) {
      Json one = relation(spectra.relations[pair]);
      one["adapters"] = {i, j};
      json["pairs"].push_back(std::move(one));
    }
  }
  for (const Spectra::Module& module : spectra.modules) {
    Json one{{"module", module.path}, {"updates", Json::array()}, {"pairs", Json::array()}};
    for (const auto& update : module.updates) {
      one["updates"].push_back(update ? Json{{"rank", update->rank},
                                             {"norm", update->norm},
                                             {"spectral_norm", update->spectral},
                                             {"effective_rank", update->effective}}
                                      : Json());
    }
    for (const auto& r : module.relations) one["pairs"].push_back(r ? relation(*r) : Json());
    json["modules"].push_back(std::move(one));
  }
  return json;
}

}  // namespace ingot::tool

#include "plan/ranks.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <queue>

#include <fmt/format.h>

#include "base/threads.hpp"
#include "ingot/error.hpp"

namespace ingot::plan {
namespace {

// The rank at which the search for an energy starts, and the most that a budget looks at: what a
// module's values beyond it could add is less than others' first ones in any model worth a LoRA.
constexpr std::uint64_t kStart = 32;
constexpr std::uint64_t kDeepest = 256;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
// Memory of the process beside the matrices that are decomposed, as in a run.
constexpr std::uint64_t kOverhead = 48 * kMiB;
// Of a thread that hashes a tensor.
constexpr std::uint64_t kPieces = 4 * kMiB;

// The memory that matrices may take while they are measured. Fewer are measured at once where more
// have no room.
class Room {
 public:
  explicit Room(std::uint64_t ceiling) : ceiling_(ceiling) {
    free_ = ceiling == 0 ? std::numeric_limits<std::uint64_t>::max()
                         : ceiling - std::min(ceiling, kOverhead);
    all_ = free_;
  }

  // Throws Error{usage} where `bytes` never fit.
  void check(const Measured& module, std::uint64_t bytes) const {
    if (bytes <= all_) return;
    fail(Code::usage,
         fmt::format("--memory {} MiB is too small to measure the ranks: {} needs at least {} MiB",
                     (ceiling_ + kMiB - 1) / kMiB, module.name, (bytes + kOverhead) / kMiB + 1));
  }

  // The `rank` leading directions of an expert, which `look` looks at; they are kept where it says
  // so.
  template <class Look>
  void solve(const Plan& plan, const Measured& module, const adapter::Target& target,
             std::uint64_t expert, std::uint64_t rank, Measuring& measuring, const Look& look) {
    const std::uint64_t bytes = target.memory(rank);
    check(module, bytes);
    const Share share(*this, bytes);
    try {
      const linalg::Low low = target.solve(plan, measuring.backend, expert, {rank, 1});
      if (!look(low) || !measuring.kept) return;
      measuring.kept->keep(module.name, expert, low, rank >= module.most || low.a.rows < rank);
    } catch (Error& error) {
      throw error.add(fmt::format("measuring the rank of {}", module.name));
    }
  }

  // Lets the tensors of a module be read once more.
  void read(const Plan& plan, const adapter::Target& target, Measuring& measuring) {
    if (!measuring.read) return;
    const Share share(*this, std::min(all_, kPieces));
    measuring.read(plan, target.ingredients());
  }

 private:
  class Share {
   public:
    Share(Room& room, std::uint64_t bytes) : room_(room), bytes_(bytes) {
      std::unique_lock lock(room_.mutex_);
      room_.changed_.wait(lock, [&] { return room_.free_ >= bytes_; });
      room_.free_ -= bytes_;
    }
    ~Share() {
      const std::lock_guard lock(room_.mutex_);
      room_.free_ += bytes_;
      room_.changed_.notify_all();
    }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

   private:
    Room& room_;
    const std::uint64_t bytes_;
  };

  std::mutex mutex_;  // guards free_
  std::condition_variable changed_;
  std::uint64_t ceiling_, all_ = 0, free_ = 0;
};

// Calls work(i) for every i below `count`, on `wanted` threads (thread_count); rethrows an
// exception of it.
template <class Work>
void for_each(std::size_t count, int wanted, const Work& work) {
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr error;
  const auto some = [&](int) {
    try {
      for (std::size_t i; (i = next++) < count;) work(i);
    } catch (...) {
      next = count;
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  // One share of the work is the caller's.
  Threads threads;
  const auto most = std::min(static_cast<std::size_t>(thread_count(wanted)), count);
  for (std::size_t i = 1; i < most; ++i) {
    if (threads.start([&] { some(0); })) break;
  }
  some(0);
  threads.join();
  if (error) std::rethrow_exception(error);
}

std::uint64_t bytes_of(const Plan& plan, const Measured& module) {
  std::uint64_t sum = 0;
  const std::unique_ptr<adapter::Target> target = module.target();
  for (const Ingredient& at : target->ingredients()) {
    sum += plan.models[at.model].checkpoint.entries()[at.entry].info.bytes();
  }
  return sum;
}

// Directions that a search for an energy finds at first: all where that costs no more.
std::uint64_t first_of(const Measured& module) {
  return module.most <= kDeepest ? module.most : kStart;
}

// Directions beyond these are more than the budget pays for beside rank 1, `least`, of all modules.
std::uint64_t deepest(const Measured& module, std::uint64_t bytes, std::uint64_t least,
                      std::uint64_t element_bytes) {
  const std::uint64_t price = module.experts * module.length * element_bytes;
  return std::min({kDeepest, module.most, 1 + (bytes - least) / price});
}

// A module is done with: its tensors have been read.
void settle(const Plan& plan, Room& room, const Measured& module, const adapter::Target& target,
            Measuring& measuring) {
  room.read(plan, target, measuring);
  measuring.done(bytes_of(plan, module), module.name);
}

// The smallest rank that keeps the energy of every expert. A rank that is too small is doubled.
std::uint64_t by_energy(const Plan& plan, Room& room, const Measured& module, double energy,
                        Measuring& measuring) {
  const std::unique_ptr<adapter::Target> target = module.target();
  std::uint64_t rank = 1, most = first_of(module);
  for (std::uint64_t e = 0; e < module.experts; ++e) {
    for (bool enough = false; !enough;) {
      room.solve(plan, module, *target, e, most, measuring, [&](const linalg::Low& low) {
        // A square of a root: no more than the sum that it was.
        const double total = low.norm * low.norm * (1 - 0x1p-50);
        const std::span values(low.values.data(), low.a.rows);
        double held = 0;
        for (const double value : values) held += value * value;
        enough = held >= energy * total || most == module.most;
        if (enough)
          rank = std::max<std::uint64_t>(rank, linalg::kept(values, total, {most, energy}));
        return enough;
      });
      if (!enough) most = std::min(2 * most, module.most);
    }
  }
  settle(plan, room, module, *target, measuring);
  return rank;
}

// Takes the singular value with the most energy per byte, again and again, while there is room.
std::vector<std::uint64_t> by_bytes(const Plan& plan, Room& room, std::uint64_t bytes,
                                    std::uint64_t element_bytes,
                                    const std::vector<Measured>& modules, Measuring& measuring) {
  const auto price = [&](std::size_t i) {
    return modules[i].experts * modules[i].length * element_bytes;
  };
  std::uint64_t least = 0;  // each module has to have rank 1
  for (std::size_t i = 0; i < modules.size(); ++i) least += price(i);
  std::vector<std::vector<double>> gains(modules.size());  // by rank, per byte
  for_each(modules.size(), plan.options.threads, [&](std::size_t i) {
    const Measured& module = modules[i];
    const std::unique_ptr<adapter::Target> target = module.target();
    const std::uint64_t most = deepest(module, bytes, least, element_bytes);
    std::vector<double>& gain = gains[i];
    gain.resize(most);
    for (std::uint64_t e = 0; e < module.experts; ++e) {
      room.solve(plan, module, *target, e, most, measuring, [&](const linalg::Low& low) {
        for (std::size_t j = 0; j < most && j < low.values.size(); ++j) {
          gain[j] += low.values[j] * low.values[j] / static_cast<double>(price(i));
        }
        return true;
      });
    }
    settle(plan, room, module, *target, measuring);
  });
  std::vector<std::uint64_t> ranks(modules.size(), 1);
  std::uint64_t spent = least;
  std::priority_queue<std::pair<double, std::size_t>> best;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    if (gains[i].size() > 1) best.emplace(gains[i][1], i);
  }
  while (!best.empty()) {
    const std::size_t i = best.top().second;
    best.pop();
    if (spent + price(i) > bytes) continue;
    spent += price(i);
    ++ranks[i];
    if (ranks[i] < gains[i].size()) best.emplace(gains[i][ranks[i]], i);
  }
  return ranks;
}

}  // namespace

bool level(std::map<std::string, std::uint64_t>& ranks, const std::vector<Measured>& modules,
           bool always) {
  std::uint64_t most = 0, held = 0, per_rank = 0;
  for (const Measured& module : modules) {
    const std::uint64_t rank = ranks.at(module.name), elements = module.experts * module.length;
    most = std::max(most, rank);
    held += rank * elements;
    per_rank += elements;
  }
  if (most * per_rank == held) return true;
  if (!always && most * per_rank > held + held / 4) return false;
  for (auto& [name, rank] : ranks) rank = most;
  return true;
}

bool measured(const Adaptation& wishes) {
  return (wishes.automatic || wishes.bytes > 0) && wishes.ranks.empty();
}

std::uint64_t bytes_of(const Plan& plan, const std::vector<Measured>& modules) {
  std::uint64_t sum = 0;
  for (const Measured& module : modules) sum += bytes_of(plan, module);
  return sum;
}

std::map<std::string, std::uint64_t> ranks_of(Plan& plan, const Adaptation& wishes,
                                              std::uint64_t fixed, std::uint64_t element_bytes,
                                              const std::vector<Measured>& modules,
                                              Problems& problems, Measuring* measuring) {
  std::map<std::string, std::uint64_t> ranks;
  if (!wishes.automatic && wishes.bytes == 0) {
    for (const Measured& module : modules) ranks[module.name] = std::min(fixed, module.most);
    return ranks;
  }
  if (!wishes.ranks.empty()) {
    for (const Measured& module : modules) {
      const auto at = wishes.ranks.find(module.name);
      if (at == wishes.ranks.end()) {
        problems.error_like("ranks", Code::usage,
                            fmt::format("{}: 'ranks' has none for {}; remove 'ranks' to have them "
                                        "measured",
                                        plan.recipe.file, module.name));
        continue;
      }
      ranks[module.name] = std::clamp<std::uint64_t>(at->second, 1, module.most);
    }
    return ranks;
  }
  std::uint64_t least = 0;
  for (const Measured& module : modules) least += module.experts * module.length * element_bytes;
  if (wishes.bytes > 0 && wishes.bytes < least) {
    problems.error(Code::usage,
                   fmt::format("{}: {} bytes are too few for {} modules of rank 1, which take {}",
                               plan.recipe.file, wishes.bytes, modules.size(), least));
    return ranks;
  }
  Room room(plan.options.memory);
  // Before hours of measuring. The run will need its threads' pieces and two chunks besides.
  const std::uint64_t run =
      static_cast<std::uint64_t>(std::max(1, plan.options.threads)) * 4 * kMiB + 8 * kMiB;
  for (const Measured& module : modules) {
    const std::uint64_t first =
        wishes.bytes > 0 ? deepest(module, wishes.bytes, least, element_bytes) : first_of(module);
    room.check(module, module.target()->memory(first) + run);
  }
  if (measuring == nullptr) {
    // The largest that a search by energy starts with; all that a budget pays for, evenly.
    std::uint64_t guess = kStart;
    if (wishes.bytes > 0) guess = std::clamp<std::uint64_t>(wishes.bytes / least, 1, kDeepest);
    std::uint64_t most = 0;
    for (const Measured& module : modules) {
      ranks[module.name] = std::min(guess, module.most);
      most = std::max(most, module.most);
    }
    if (wishes.bytes > 0) most = std::min(most, kDeepest);
    const std::string wish = wishes.bytes > 0 ? fmt::format("{} bytes", wishes.bytes)
                                              : fmt::format("energy {}", wishes.energy);
    plan.open.push_back(
        fmt::format("the ranks of {} modules, which the run chooses by {}, {} at most: "
                    "sizes here are for rank {}",
                    modules.size(), wish, most, std::min(guess, most)));
    return ranks;
  }
  std::vector<std::uint64_t> found(modules.size());
  if (wishes.bytes > 0) {
    found = by_bytes(plan, room, wishes.bytes, element_bytes, modules, *measuring);
  } else {
    for_each(modules.size(), plan.options.threads, [&](std::size_t i) {
      found[i] = by_energy(plan, room, modules[i], wishes.energy, *measuring);
    });
  }
  std::string& text = plan.recipe.text;
  if (!text.ends_with('\n')) text += '\n';
  text += "ranks:\n";
  for (std::size_t i = 0; i < modules.size(); ++i) {
    ranks[modules[i].name] = plan.recipe.adaptation.ranks[modules[i].name] = found[i];
    text += fmt::format("  \"{}\": {}\n", modules[i].name, found[i]);
  }
  return ranks;
}

}  // namespace ingot::plan

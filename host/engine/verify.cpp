// verify(): does the folder hold what its recipe says?

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include <fmt/format.h>

#include "base/hash.hpp"
#include "base/threads.hpp"
#include "engine/crew.hpp"
#include "engine/proof.hpp"
#include "engine/receipt.hpp"
#include "engine/supply.hpp"
#include "ingot/math/methods.hpp"
#include "ingot/merge.hpp"

namespace ingot {
namespace {

// Tensors up to this size are always recomputed; of larger ones that must be measured whole, one in
// kShare is, chosen by its name. `--all` takes every one.
constexpr std::uint64_t kAlways = std::uint64_t{1} << 20;
constexpr std::uint64_t kShare = 8;

class Verifier {
 public:
  Verifier(Disk& disk, const std::string& out, const VerifyOptions& options, const Watcher& watcher)
      : disk_(disk), out_(out), options_(options), watcher_(watcher) {}

  Verdicts go() {
    const std::string path = out_ + "/" + kReceiptName;
    if (disk_.kind(path) != Disk::Kind::file) {
      fail(Code::missing,
           fmt::format("{}: no {} there: not a folder that ingot merged", out_, kReceiptName));
    }
    Json receipt;
    try {
      receipt = parse_receipt(read_text(disk_, path, std::uint64_t{1} << 32), path);
      check_outputs(receipt);
      if (!options_.outputs_only) check_inputs(receipt);
    } catch (const nlohmann::json::exception& error) {
      find(fmt::format("{}: the receipt lacks a field or has one of the wrong type ({})", path,
                       error.what()));
    } catch (const Error& error) {
      find(error.what());
    }
    std::sort(verdicts_.findings.begin(), verdicts_.findings.end(),
              [](const Finding& a, const Finding& b) { return a.text < b.text; });
    return std::move(verdicts_);
  }

 private:
  void find(std::string text) {
    const std::lock_guard lock(mutex_);
    verdicts_.findings.push_back({std::move(text)});
  }

  // Runs `work` for every index on the crew; the first Error is thrown here.
  void each(std::size_t count, const std::function<void(std::size_t)>& work) {
    std::atomic<std::size_t> left = count;
    std::mutex mutex;
    std::condition_variable done;
    Crew crew(thread_count(options_.threads));
    const auto wake = [&] {
      const std::lock_guard lock(mutex);
      done.notify_all();
    };
    crew.on_failure(wake);
    for (std::size_t i = 0; i < count; ++i) {
      crew.post(i, [&, i](int) {
        work(i);
        if (left.fetch_sub(1) == 1) wake();
      });
    }
    std::unique_lock lock(mutex);
    done.wait(lock, [&] { return left == 0 || crew.failed(); });
    lock.unlock();
    crew.check();
  }

  Digest digest_file(File& file, std::uint64_t offset, std::uint64_t bytes) {
    std::vector<std::byte> block(kHashBlock);
    std::vector<Digest> digests;
    for (std::uint64_t at = 0; at < bytes; at += kHashBlock) {
      const std::span piece(block.data(), std::min<std::uint64_t>(kHashBlock, bytes - at));
      read_exact(file, offset + at, piece);
      digests.push_back(hash_block(piece));
    }
    const std::lock_guard lock(mutex_);
    verdicts_.hashed_bytes += bytes;
    return hash_digests(digests);
  }

  void check_outputs(const Json& receipt) {
    // A file of the receipt that is gone explains more than what opening the rest would say.
    for (const Json& file : receipt.at("files")) {
      const std::string path = out_ + "/" + file.at("file").get<std::string>();
      if (disk_.kind(path) != Disk::Kind::file) {
        find(fmt::format("{}: the file is missing", path));
        continue;
      }
      const auto opened = disk_.open(path);
      const Digest digest = digest_file(*opened, 0, opened->size());
      if (digest.text() != file.at("hash")) {
        find(fmt::format("{}: changed since the merge: hash {} expected, {} found", path,
                         file.at("hash").get<std::string>(), digest.text()));
      }
    }
    const std::string adapter = out_ + "/adapter_model.safetensors";
    const bool of_adapter = disk_.kind(adapter) == Disk::Kind::file;
    output_.emplace(Checkpoint::open(disk_, of_adapter ? adapter : out_, out_));
    const Json& tensors = receipt.at("tensors");
    verdicts_.tensors = tensors.size();
    std::set<std::string> named;
    for (const Json& tensor : tensors) named.insert(tensor.at("name").get<std::string>());
    for (const Entry& entry : output_->entries()) {
      if (!named.contains(entry.info.name)) {
        find(fmt::format("{}: the folder holds it, the receipt does not name it", entry.info.name));
      }
    }
    each(tensors.size(), [&](std::size_t i) {
      const Json& tensor = tensors[i];
      const auto tensor_name = tensor.at("name").get<std::string>();
      const Entry* entry = output_->find(tensor_name);
      if (entry == nullptr) {
        find(fmt::format("{}: the receipt names it, the folder does not hold it", tensor_name));
        return;
      }
      Json shape = Json::array();
      for (int axis = 0; axis < entry->info.shape.rank(); ++axis) {
        shape.push_back(entry->info.shape[axis]);
      }
      if (tensor.at("dtype") != std::string(name(entry->info.dtype)) ||
          tensor.at("shape") != shape) {
        find(fmt::format("{}: {} {} expected, {} {} found", tensor_name,
                         tensor.at("dtype").get<std::string>(), tensor.at("shape").dump(),
                         name(entry->info.dtype), entry->info.shape.text()));
        return;
      }
      const Digest digest =
          digest_file(output_->file(entry->file), entry->offset, entry->info.bytes());
      if (digest.text() != tensor.at("hash")) {
        find(fmt::format("{}: changed since the merge: hash {} expected, {} found", tensor_name,
                         tensor.at("hash").get<std::string>(), digest.text()));
      }
      if (watcher_) {
        const std::lock_guard lock(mutex_);
        watcher_({verdicts_.hashed_bytes, 0, tensor_name});
      }
    });
  }

  // The plan is built anew from the recipe in the folder, so that a receipt cannot vouch for
  // itself.
  void check_inputs(const Json& receipt) {
    const PlanOptions told = parse_options(receipt.at("options"));
    PlanOptions options = told;
    options.root = options_.root;
    const std::string recipe_path = out_ + "/recipe.yml";
    Recipe recipe = parse(read_text(disk_, recipe_path), recipe_path, {told.allow_unknown_keys});
    plan_.emplace(build(disk_, std::move(recipe), options));
    const Plan& plan = *plan_;
    for (const Problem& problem : plan.problems) {
      if (problem.fatal) find(problem.text);
    }
    if (!plan.sound()) return;
    const Json& tensors = receipt.at("tensors");
    std::map<std::string, const Json*> entries;
    for (const Json& tensor : tensors) entries[tensor.at("name").get<std::string>()] = &tensor;
    if (plan.jobs.size() != tensors.size()) {
      find(fmt::format("the recipe makes {} tensors, the receipt names {}", plan.jobs.size(),
                       tensors.size()));
    }
    if (const Json left = describe_unused(plan); left != receipt.at("unused")) {
      find(fmt::format(
          "the recipe leaves {} input tensors unused; the receipt's list of {} is another",
          left.size(), receipt.at("unused").size()));
    }
    digests_.emplace(plan);
    each(plan.jobs.size(), [&](std::size_t j) { check_job(plan.jobs[j], entries); });
    verdicts_.hashed_bytes += digests_->bytes();

    std::vector<std::string> ordered;
    for (const Json& tensor : tensors) ordered.push_back(print_line(tensor));
    const bool waived = options_.allow_unchanged || told.allow_unchanged;
    const int same = waived || ordered.size() != plan.jobs.size()
                         ? -1
                         : unchanged(plan, [&](std::size_t i) { return ordered[i]; });
    if (same >= 0) {
      find(
          fmt::format("the merge changed nothing: every tensor equals {}'s bit for bit "
                      "(--allow-unchanged if that is meant)",
                      plan.models[static_cast<std::size_t>(same)].ref.text));
    }
  }

  void check_job(const Job& job, const std::map<std::string, const Json*>& entries) {
    const auto at = entries.find(job.output.name);
    if (at == entries.end()) {
      find(fmt::format("{}: the recipe makes it, the receipt does not name it", job.output.name));
      return;
    }
    const Json& entry = *at->second;
    const Json expected = describe_plan(*plan_, job);
    if (const std::string difference = compare(expected, entry); !difference.empty()) {
      find(fmt::format("{}: the recipe and the receipt differ in {}", job.output.name, difference));
    }
    bool intact = true;
    const auto check = [&](const Ingredient& tensor, const Json& told) {
      const std::string found = digests_->of(tensor).text();
      if (told.at("hash") == found) return;
      intact = false;
      find(fmt::format("{} of {}: the input changed since the merge: hash {} expected, {} found",
                       told.at("tensor").get<std::string>(), told.at("model").get<std::string>(),
                       told.at("hash").get<std::string>(), found));
    };
    for (std::size_t i = 0; i < job.operands.size(); ++i) {
      const Operand& operand = job.operands[i];
      const Json& source = entry.at("sources").at(i);
      if (lands(operand)) check({operand.model, operand.entry}, source);
      if (!operand.derived) continue;
      const auto ingredients = operand.derived->ingredients();
      for (std::size_t k = 0; k < ingredients.size(); ++k) {
        check(ingredients[k], source.at("ingredients").at(k));
      }
    }
    const Entry* output = output_->find(job.output.name);
    if (!intact || output == nullptr || !(output->info.shape == job.output.shape) ||
        output->info.dtype != job.output.dtype) {
      return;
    }
    File& file = output_->file(output->file);
    if (job.action == Action::copy) {
      if (digest_file(file, output->offset, job.output.bytes()).text() !=
          entry.at("sources").at(0).at("hash")) {
        find(
            fmt::format("{}: a copy that does not equal what it was copied from", job.output.name));
      }
      return;
    }
    for (const Operand& operand : job.operands) {
      if (!operand.derived) continue;
      const auto judged = operand.derived->judge(*plan_, *output_, job.output.name);
      if (!judged) continue;
      if (!judged->empty()) find(*judged);
      const std::lock_guard lock(mutex_);
      ++verdicts_.judged;
      return;
    }
    const math::Needs needs = math::needs(job.work.rule);
    const bool measured = needs.select || needs.folds > 0;
    if (!options_.all && measured && job.work.rule.elements > kAlways &&
        stream_key(job.output.name, "verify", 0) % kShare != 0) {
      return;
    }
    const Proof proof = prove(*plan_, job, file, output->offset, options_.all);
    if (!proof.finding.empty()) find(proof.finding);
    const std::lock_guard lock(mutex_);
    verdicts_.recomputed += proof.elements;
    verdicts_.exact += proof.exact;
    if (watcher_) watcher_({verdicts_.hashed_bytes, 0, job.output.name});
  }

  // True if a receipt says what the plan says; in lists of objects it may say more (hashes).
  static bool agree(const Json& told, const Json& found) {
    if (!told.is_array() || !found.is_array()) return told == found;
    if (told.size() != found.size()) return false;
    for (std::size_t i = 0; i < told.size(); ++i) {
      if (!told[i].is_object()) {
        if (told[i] != found[i]) return false;
        continue;
      }
      for (const auto& [key, value] : told[i].items()) {
        if (!found[i].contains(key) || found[i][key] != value) return false;
      }
    }
    return true;
  }

  // The first field in which an entry is not what the plan says; what only a run can know is not
  // compared.
  static std::string compare(const Json& expected, const Json& entry) {
    for (const auto& [field, value] : expected.items()) {
      if (!entry.contains(field)) return field;
      if (field != "sources") {
        if (entry[field] != value) return field;
        continue;
      }
      if (!entry[field].is_array() || entry[field].size() != value.size()) return field;
      for (std::size_t i = 0; i < value.size(); ++i) {
        for (const auto& [key, told] : value[i].items()) {
          if (!entry[field][i].contains(key) || !agree(told, entry[field][i][key])) {
            return fmt::format("{} of source {}", key, i + 1);
          }
        }
      }
    }
    return {};
  }

  Disk& disk_;
  const std::string& out_;
  const VerifyOptions& options_;
  const Watcher& watcher_;
  std::mutex mutex_;  // guards verdicts_
  Verdicts verdicts_;
  std::optional<Checkpoint> output_;
  std::optional<Plan> plan_;
  std::optional<Digests> digests_;
};

}  // namespace

Verdicts verify(Disk& disk, const std::string& out, const VerifyOptions& options,
                const Watcher& watcher) {
  return Verifier(disk, out, options, watcher).go();
}

}  // namespace ingot

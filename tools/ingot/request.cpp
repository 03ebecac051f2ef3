#include "request.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "json.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

// Options of mergekit-yaml that mean nothing here: accepted, so that a command line carries over,
// and answered with the reason.
struct Moot {
  const char* names;
  bool value;
  const char* why;
};

constexpr std::array kMoot{
    Moot{"--transformers-cache", true,
         "nothing is downloaded; a model is a folder or lies in the Hugging Face cache "
         "(HF_HUB_CACHE, HF_HOME)"},
    Moot{"--lora-merge-cache", true, "no adapter is merged to disk beforehand"},
    Moot{"--lora-merge-dtype", true, "no adapter is merged to disk beforehand"},
    Moot{"--low-cpu-memory,!--no-low-cpu-memory", false,
         "host memory is bounded by --memory on every device"},
    Moot{"--clone-tensors,!--no-clone-tensors", false, "tensors are streamed, never shared"},
    Moot{"--trust-remote-code,!--no-trust-remote-code", false,
         "no code of a model is ever run; its files are copied as they are"},
    Moot{"--lazy-unpickle,!--no-lazy-unpickle", false,
         ".bin files are always read piece by piece, and nothing in them is executed"},
    Moot{"--read-to-gpu,!--no-read-to-gpu", false, "the run decides what a device holds"},
    Moot{"--multi-gpu,!--no-multi-gpu", false, "name the devices, as in --device cuda:0,1"},
    Moot{"--async-write,!--no-async-write", false,
         "writing always overlaps reading and arithmetic"},
    Moot{"--write-threads", true, "writing always overlaps reading and arithmetic"},
    Moot{"-v,--verbose", false, "there is one level of messages; --json gives every detail"},
};

// A folder's name leaves room for what its working folder, ".NAME.partial", has more.
constexpr std::size_t kLongestName = NAME_MAX - std::string_view("..partial").size();

// Problems of a plan that are shown, errors and warnings each.
constexpr std::uint64_t kMostShown = 50;

// Refuses what cannot be the name of a folder of its own.
void check_out(std::string_view out) {
  const auto refuse = [&](std::string_view why) {
    fail(Code::usage, fmt::format("OUT '{}' {}", shorten(out, 200), why));
  };
  if (out.empty()) refuse("is empty; name the folder to write");
  // Receipts and reports name it in JSON.
  if (printable(out) != out) {
    refuse("has characters that are no UTF-8 or cannot be seen; choose a plain name");
  }
  std::string_view path = out;
  while (path.ends_with('/')) path.remove_suffix(1);
  const std::string_view name = path.substr(path.rfind('/') + 1);  // npos + 1 is 0
  if (name.empty() || name == "." || name == "..") {
    refuse("is no name of a folder to make; name one in it");
  }
  if (name.size() > kLongestName) {
    refuse(
        fmt::format("has a name of {} bytes; at most {} are possible", name.size(), kLongestName));
  }
  if (path.size() + std::string_view("..partial/").size() + NAME_MAX >= PATH_MAX) {
    refuse(fmt::format("is a path of {} bytes; choose a shorter one", path.size()));
  }
}

std::string no_seed(const std::string& text) {
  return no_whole(text, std::numeric_limits<std::uint64_t>::max());
}

constexpr const char* kHidden = "";  // CLI11: a group without a name is left out of --help

// The last word of a path, for the model card; empty where there is none.
std::string title_of(std::string_view out) {
  while (out.ends_with('/')) out.remove_suffix(1);
  out.remove_prefix(std::min(out.rfind('/') + 1, out.size()));
  return out == "." || out == ".." ? "" : std::string(out);
}

}  // namespace

Request::Request(CLI::App& command, Form form) : form_(form), command_(command) {
  const bool writes = form != Form::plan;
  if (form == Form::bake) {
    command.add_option("BASE", base_, "The model, a folder or a name in the Hub cache")
        ->required()
        ->type_name("MODEL");
    command
        .add_option("ADAPTER", adapters_,
                    "Adapters in the order in which they act, each with an optional :WEIGHT")
        ->required()
        ->type_name("ADAPTER[:WEIGHT]");
    command.add_option("-o,--out", out_, "The folder to write")->required()->type_name("DIR");
  } else if (form == Form::fuse) {
    add_fusion(command);
  } else if (form == Form::extract) {
    add_extraction(command);
  } else {
    command.add_option("RECIPE", recipe_, "The recipe, a YAML file as mergekit reads it")
        ->required()
        ->type_name("FILE");
    command
        .add_option("OUT", out_, writes ? "The folder to write" : "The folder a merge would write")
        ->required(writes)
        ->type_name("DIR");
  }

  command.add_option("--memory", memory_, "Ceiling on resident memory, as the system counts it")
      ->type_name("SIZE")
      ->capture_default_str();
  command.add_option("-j,--threads", options_.threads, "Threads for arithmetic, 0 for all")
      ->type_name("N")
      ->check(no_thread_count)
      ->capture_default_str();
  command.add_option("--seed", planning_.seed, "Seed of the methods that draw at random")
      ->type_name("N")
      ->check(no_seed)
      ->capture_default_str();
  auto* shard = command.add_option("--shard-size", shard_size_, "Largest size of one weight file")
                    ->type_name("SIZE")
                    ->capture_default_str();
  command.add_option("--dtype", planning_.dtype, "Write this type instead of the recipe's")
      ->type_name("float32|float16|bfloat16");
  command.add_option("--device", device_, "Where to compute")
      ->type_name("cpu|cuda|auto")
      ->capture_default_str();
  command.add_option("--device-memory", device_memory_, "Ceiling on memory of a CUDA device")
      ->type_name("SIZE")
      ->capture_default_str();
  if (may_decompose()) {
    command
        .add_option("--cuda-libraries", libraries_,
                    "Folder of cuBLAS and cuSOLVER for decompositions on CUDA")
        ->type_name("DIR");
  } else {
    command.add_flag("--fast-product", planning_.fast_product,
                     "Adapters by BLAS or cuBLAS: other last digits on other machines");
    command
        .add_option("--cuda-libraries", libraries_, "Folder of cuBLAS for --fast-product on CUDA")
        ->type_name("DIR");
  }
  command.add_option("--storage", storage_, "How files are read and written")
      ->type_name("auto|mapped|direct|buffered")
      ->check(CLI::IsMember({"auto", "mapped", "direct", "buffered"}))
      ->capture_default_str();
  command.add_option("--root", planning_.root, "Where relative model paths start (default: here)")
      ->type_name("DIR");
  command.add_flag("--force", options_.force,
                   "Replace OUT if ingot wrote all of it, once the new one is done");
  if (writes) {
    command.add_flag("--resume", options_.resume,
                     "Continue an interrupted merge into OUT; a finished one is verified");
    command.add_flag("--no-sync", no_sync_,
                     "Do not wait for stable storage (not safe in a power cut)");
    command
        .add_flag("--no-hash", no_hash_, "Leave hashes out: for measurements, cannot be verified")
        ->group("For measurements");
  }
  command.add_flag("--quiet,!--no-quiet", quiet_, "Show warnings and errors only");
  command.add_flag("--json", json_, "Print the report as JSON on standard output");

  const char* waivers = "Waivers (each one stands in the receipt)";
  command
      .add_flag("--allow-unknown-keys", planning_.allow_unknown_keys,
                "Unknown keys in the recipe are warnings")
      ->group(waivers);
  command
      .add_flag("--allow-unchanged", planning_.allow_unchanged,
                "An output equal to one of its inputs is no failure")
      ->group(waivers);
  command
      .add_flag("--allow-nonfinite", planning_.allow_nonfinite,
                "Write results that are NaN or infinite though their inputs are not")
      ->group(waivers);
  command
      .add_flag("--allow-crimes,!--no-allow-crimes", planning_.allow_mixed,
                "Merge models of different architectures")
      ->group(waivers);
  command
      .add_flag("--unsafe-truncate-embeddings,!--no-unsafe-truncate-embeddings",
                planning_.truncate_embeddings, "Cut vocabularies that differ to the shortest")
      ->group(waivers);

  command
      .add_option("--out-shard-size", out_shard_size_, "As --shard-size, in mergekit's form: 5B")
      ->type_name("SIZE")
      ->group(kHidden)
      ->excludes(shard);
  command.add_option("--random-seed", planning_.seed, "As --seed")
      ->type_name("N")
      ->group(kHidden)
      ->check(no_seed);
  command.add_option("--num-threads", options_.threads, "As --threads")
      ->type_name("N")
      ->group(kHidden)
      ->check(no_thread_count);
  command
      .add_flag("--copy-tokenizer,!--no-copy-tokenizer", copy_tokenizer_,
                "Copy the tokenizer into OUT")
      ->group(kHidden);
  command.add_flag("--write-model-card,!--no-write-model-card", card_, "Write README.md into OUT")
      ->group(kHidden);
  command.add_flag("--safe-serialization,!--no-safe-serialization", safe_, "Write safetensors")
      ->group(kHidden);
  command.add_flag("--cuda,!--no-cuda", cuda_, "As --device cuda")->group(kHidden);
  command.add_flag("--gpu-rich,!--no-gpu-rich", gpu_rich_, "As --device cuda")->group(kHidden);
  for (const Moot& moot : kMoot) {
    CLI::Option* option =
        moot.value ? command.add_option(moot.names) : command.add_flag(moot.names);
    option->description(fmt::format("No effect: {}", moot.why))->group(kHidden);
    if (moot.value) option->type_name("VALUE");
  }
}

void Request::settle(const Console& console) {
  if (form_ != Form::plan || command_.count("OUT") > 0) check_out(out_);
  if (!safe_) {
    fail(Code::usage,
         "--no-safe-serialization asks for pickle files, which ingot reads but never writes; leave "
         "it out to get safetensors");
  }
  if (command_.count("--device") == 0 && (cuda_ || gpu_rich_)) device_ = "cuda";
  if (device_ != "cpu" && device_ != "auto" && !device_.starts_with("cuda")) {
    fail(Code::usage, fmt::format("--device {}: expected cpu, cuda, cuda:N or auto", device_));
  }
  for (const Moot& moot : kMoot) {
    const std::string_view names = moot.names;
    const std::string name(names.substr(0, names.find(',')));
    if (command_.count(name) > 0) {
      console.note(fmt::format("{} has no effect: {}", name, moot.why));
    }
  }

  options_.memory = parse_size("--memory", memory_);
  device_memory_bytes_ = parse_size("--device-memory", device_memory_);
  options_.sync = !no_sync_;
  options_.hash = !no_hash_;
  planning_.shard_bytes = out_shard_size_.empty() ? parse_size("--shard-size", shard_size_)
                                                  : parse_shard(out_shard_size_);
  planning_.threads = options_.threads;
  planning_.memory = options_.memory;
  planning_.copy_tokenizer = copy_tokenizer_;
  planning_.model_card = card_;
  planning_.title = title_of(out_);
  using Storage = MergeOptions::Storage;
  options_.storage = storage_ == "mapped"     ? Storage::mapped
                     : storage_ == "direct"   ? Storage::direct
                     : storage_ == "buffered" ? Storage::buffered
                                              : Storage::automatic;
  const char* isa = std::getenv("INGOT_ISA");
  options_.isa = isa == nullptr ? "" : isa;
}

bool Request::may_decompose() const { return form_ == Form::fuse || form_ == Form::extract; }

std::unique_ptr<Backend> Request::backend(const Console& console, bool decomposes) const {
  if (device_ == "cpu") return cpu_backend(options_.isa);
  using Decompose = DeviceOptions::Decompose;
  // Whoever names a folder of libraries means it.
  const Decompose decompose = !decomposes          ? Decompose::no
                              : libraries_.empty() ? Decompose::if_possible
                                                   : Decompose::must;
  const auto cuda = [&](const std::string& device) {
    return cuda_backend(
        {device, device_memory_bytes_, planning_.fast_product, libraries_, decompose});
  };
  if (device_ != "auto") return cuda(device_);
  try {
    return cuda("cuda");
  } catch (const Error& error) {
    if (error.code() != Code::device) throw;
    console.note(fmt::format("--device auto: the CPU does the arithmetic ({})", error.message()));
    return cpu_backend(options_.isa);
  }
}

void Request::add_fusion(CLI::App& command) {
  auto* adapters =
      command
          .add_option("ADAPTER", adapters_,
                      "Folders of PEFT, each with an optional :WEIGHT (1 where there is none)")
          ->type_name("ADAPTER[:WEIGHT]");
  command.add_option("-o,--out", out_, "The folder to write")->required()->type_name("DIR");
  auto* file = command
                   .add_option("--recipe", recipe_,
                               "A recipe of adapters (docs/adapters.md) in place of the arguments")
                   ->type_name("FILE")
                   ->excludes(adapters);
  const auto alone = [file](CLI::Option* option) { return option->excludes(file); };
  alone(command.add_option("--type", type_, "How to combine: docs/adapters.md has the formulas"))
      ->type_name("TYPE")
      ->capture_default_str();
  alone(
      command.add_option("--density", density_, "Share of elements that ties, dare and prune keep"))
      ->type_name("SHARE");
  alone(command.add_option("--majority-sign", majority_sign_, "How ties elects a sign"))
      ->type_name("total|frequency");
  add_ranks(command);
  alone(command.add_option("--whole-tensors", whole_tensors_,
                           "What to do with tensors that several adapters bring in full"))
      ->type_name("refuse|average");
  alone(command.add_flag("--keep-scaling", keep_scaling_,
                         "Keep the adapters' common alpha / r in place of folding it into A"));
  alone(command.add_option("--compat", compat_,
                           "As PEFT does or did it: svd-scaling-twice (peft-0.20), ia3-plain-sum"))
      ->type_name("NAME")
      ->delimiter(',');
}

void Request::add_extraction(CLI::App& command) {
  command.add_option("BASE", base_, "The model that the adapter will be for")
      ->required()
      ->type_name("MODEL");
  command.add_option("TUNED", tuned_, "The model to take the difference from")
      ->required()
      ->type_name("MODEL");
  command.add_option("-o,--out", out_, "The folder to write")->required()->type_name("DIR");
  add_ranks(command);
  command
      .add_option("--bytes", bytes_,
                  "Choose ranks so that all factors fit, the most energy for the bytes")
      ->type_name("SIZE");
  command
      .add_option(
          "--whole-tensors", whole_tensors_,
          "Embeddings, heads, norms and biases that changed: save them in full, or skip them")
      ->type_name("save|skip");
}

void Request::add_ranks(CLI::App& command) {
  command.add_option("--rank", rank_, "Rank of the result's modules, or auto with --energy")
      ->type_name("N|auto");
  command.add_option("--energy", energy_, "With --rank auto: share of the squared norm to keep")
      ->type_name("SHARE");
}

bool Request::exists(Disk& disk, const std::string& path) const {
  const bool relative = !planning_.root.empty() && !path.starts_with('/');
  const Disk::Kind kind = disk.kind(relative ? planning_.root + "/" + path : path);
  return kind == Disk::Kind::folder || kind == Disk::Kind::file;
}

std::string Request::place(Disk& disk, const std::string& text, const std::string& indent) const {
  const auto quoted = [](const std::string& word) {
    return Json(word).dump(-1, ' ', false, Json::error_handler_t::replace);
  };
  const std::size_t at = exists(disk, text) ? std::string::npos : text.rfind('@');
  std::string lines = fmt::format("path: {}\n", quoted(text.substr(0, at)));
  if (at != std::string::npos) {
    lines += fmt::format("{}revision: {}\n", indent, quoted(text.substr(at + 1)));
  }
  return lines;
}

std::pair<std::string, std::string> Request::weighted(Disk& disk, const std::string& word) const {
  std::string path = word, weight;
  const std::size_t colon = word.rfind(':');
  if (colon != std::string::npos && !exists(disk, word)) {
    path = word.substr(0, colon);
    weight = word.substr(colon + 1);
    double value = 0;
    const char* end = weight.data() + weight.size();
    const auto [stop, error] = std::from_chars(weight.data(), end, value);
    if (error != std::errc() || stop != end || !std::isfinite(value)) {
      fail(Code::usage, fmt::format("'{}': after the last colon stands a weight, as in {}:0.5, and "
                                    "'{}' is no number",
                                    word, path.empty() ? "ADAPTER" : path, weight));
    }
  }
  if (path.empty()) fail(Code::usage, fmt::format("'{}' names no adapter", word));
  return {path, weight};
}

std::string Request::synthesise(Disk& disk) const {
  return form_ == Form::bake ? baking(disk) : form_ == Form::fuse ? fusion(disk) : extraction(disk);
}

std::string Request::baking(Disk& disk) const {
  std::string text = "merge_method: passthrough\nmodels:\n  - model:\n      ";
  text += place(disk, base_, "      ") + "      adapters:\n";
  for (const std::string& adapter : adapters_) {
    const auto [path, weight] = weighted(disk, adapter);
    text += "        - " + place(disk, path, "          ");
    if (!weight.empty()) text += fmt::format("          weight: {}\n", weight);
  }
  return text;
}

std::string Request::fusion(Disk& disk) const {
  if (adapters_.empty()) {
    fail(Code::usage,
         "no adapters: name them, as in 'ingot adapter merge a:0.7 b:0.3 -o out', or "
         "give --recipe FILE");
  }
  std::string text = fmt::format("adapter_method: {}\nadapters:\n", type_);
  for (const std::string& adapter : adapters_) {
    const auto [path, weight] = weighted(disk, adapter);
    text += "  - adapter:\n      " + place(disk, path, "      ");
    if (!weight.empty()) text += fmt::format("    parameters: {{weight: {}}}\n", weight);
  }
  if (!density_.empty()) text += fmt::format("parameters: {{density: {}}}\n", density_);
  const auto set = [&](const char* key, const std::string& value) {
    if (!value.empty()) text += fmt::format("{}: {}\n", key, value);
  };
  set("majority_sign", majority_sign_);
  set("rank", rank_);
  set("energy", energy_);
  set("whole_tensors", whole_tensors_);
  if (keep_scaling_) text += "keep_scaling: true\n";
  if (!compat_.empty()) {
    text += "compat:\n";
    for (const std::string& name : compat_) {
      text += fmt::format("  - {}\n", name == "peft-0.20" ? "svd-scaling-twice" : name);
    }
  }
  return text;
}

std::string Request::extraction(Disk& disk) const {
  std::string text = "extract: lora\nbase_model:\n  " + place(disk, base_, "  ");
  text += "model:\n  " + place(disk, tuned_, "  ");
  const auto set = [&](const char* key, const std::string& value) {
    if (!value.empty()) text += fmt::format("{}: {}\n", key, value);
  };
  set("rank", rank_);
  set("energy", energy_);
  if (!bytes_.empty()) set("bytes", std::to_string(parse_size("--bytes", bytes_)));
  set("whole_tensors", whole_tensors_);
  return text;
}

Plan Request::plan(Disk& disk) const {
  const bool own = recipe_.empty();
  const std::string text = own ? synthesise(disk) : read_text(disk, recipe_);
  Recipe recipe = parse(text, own ? command_.get_name() : recipe_,
                        {.allow_unknown_keys = planning_.allow_unknown_keys});
  return build(disk, std::move(recipe), planning_);
}

int verdict(const Plan& plan) {
  const auto first = std::find_if(plan.problems.begin(), plan.problems.end(),
                                  [](const Problem& problem) { return problem.fatal; });
  return first == plan.problems.end() ? 0 : exit_code(first->code);
}

void report(const Console& console, const Plan& plan) {
  std::uint64_t errors = 0, warnings = 0;
  for (const Problem& problem : plan.problems) {
    if ((problem.fatal ? errors : warnings)++ >= kMostShown) continue;
    if (problem.fatal) {
      console.error(problem.text);
    } else {
      console.warning(problem.text);
    }
  }
  const auto rest = [&](std::uint64_t count, std::string_view noun) {
    if (count <= kMostShown) return std::string();
    return fmt::format("and {}; ingot plan --json lists all",
                       show_count(count - kMostShown, fmt::format("more {}", noun)));
  };
  if (const std::string text = rest(warnings, "warning"); !text.empty()) console.warning(text);
  if (const std::string text = rest(errors, "error"); !text.empty()) console.error(text);
}

}  // namespace ingot::tool

#include "request.hpp"

#include <algorithm>
#include <charconv>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <unistd.h>

#include "foreign.hpp"
#include "json.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

// A folder's name leaves room for what its working folder, ".NAME.partial", has more.
constexpr std::size_t kLongestName = NAME_MAX - std::string_view("..partial").size();

// Problems of a plan that are shown, errors and warnings each.
constexpr std::uint64_t kMostShown = 50;

// Refuses names that cannot be a new folder.
void check_out(std::string_view out) {
  const auto refuse = [&](std::string_view why) {
    fail(Code::usage, fmt::format("OUT '{}' {}", shorten(out, 200), why));
  };
  if (out.empty()) refuse("is empty; name the folder to write");
  // Receipts and reports name it in JSON.
  if (printable(out) != out) {
    refuse("has characters that are not UTF-8 or cannot be seen; choose a plain name");
  }
  std::string_view path = out;
  while (path.ends_with('/')) path.remove_suffix(1);
  const std::string_view name = path.substr(path.rfind('/') + 1);  // npos + 1 is 0
  if (name.empty() || name == "." || name == "..") {
    refuse("is not a name for a new folder; name a folder in it");
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

// Standard input to its end, or as much of it as shows that it is too long for a recipe.
std::string read_input() {
  constexpr std::size_t kMost = std::size_t{2} << 20;
  std::string text;
  std::array<char, 4096> block{};
  while (text.size() < kMost) {
    const std::size_t count = std::fread(block.data(), 1, block.size(), stdin);
    if (count == 0) break;
    text.append(block.data(), count);
  }
  if (std::ferror(stdin) != 0) fail(Code::io, "standard input cannot be read");
  return text;
}

// The keys of the recipes that command lines stand for, and the options that set them.
constexpr std::pair<std::string_view, std::string_view> kOptions[] = {
    {"adapter_method", "--type"},
    {"majority_sign", "--majority-sign"},
    {"whole_tensors", "--whole-tensors"},
    {"keep_scaling", "--keep-scaling"},
    {"rank", "--rank"},
    {"energy", "--energy"},
    {"density", "--density"},
    {"bytes", "--bytes"},
    {"compat", "--compat"},
    {"for", "--for"},
    {"weight", "the weight"},
};

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// Removes ":4:7" behind `at`.
void erase_numbers(std::string& text, std::size_t at) {
  std::size_t end = at;
  while (end + 1 < text.size() && text[end] == ':' && text[end + 1] >= '0' &&
         text[end + 1] <= '9') {
    end = std::min(text.find_first_not_of("0123456789", end + 1), text.size());
  }
  text.erase(at, end - at);
}

// A message about a recipe made of options, without its place in the recipe, in the names of the
// options: "'rank: auto' needs 'energy'" is "--rank auto needs --energy".
std::string in_options(std::string text, const std::string& name) {
  const std::string of = fmt::format(" of {}:", name);  // "reading model 'a' of bake:4:7"
  for (std::size_t at = text.find(of); at != std::string::npos; at = text.find(of, at)) {
    erase_numbers(text, at + of.size() - 1);
    text.erase(at, of.size() - 1);
  }
  if (text.starts_with(name + ':')) {
    erase_numbers(text, name.size());
    if (const std::string bare = name + ": "; text.starts_with(bare)) text.erase(0, bare.size());
  }
  for (const auto& [key, option] : kOptions) {
    const std::string pair = fmt::format("'{}: ", key);
    for (std::size_t at = text.find(pair); at != std::string::npos; at = text.find(pair, at)) {
      const std::size_t end = text.find('\'', at + pair.size());
      if (end == std::string::npos) break;
      text.erase(end, 1);
      text.replace(at, pair.size(), fmt::format("{} ", option));
    }
    replace_all(text, fmt::format("parameter '{}'", key), option);
    replace_all(text, fmt::format("'{}'", key), option);
    // Words of no language but the recipe's.
    if (key.find('_') != std::string_view::npos) {
      replace_all(text, fmt::format("{}: ", key), fmt::format("{} ", option));
      replace_all(text, key, option);
    }
  }
  return text;
}

// "cuda", "cuda:1", "cuda:0,1".
bool names_cuda(std::string_view device) {
  constexpr std::string_view kCuda = "cuda";
  if (!device.starts_with(kCuda)) return false;
  device.remove_prefix(kCuda.size());
  if (device.empty()) return true;
  for (char before = ':'; !device.empty(); before = ',') {
    if (device.front() != before) return false;
    const std::size_t end = std::min(device.find_first_not_of("0123456789", 1), device.size());
    if (end == 1) return false;
    device.remove_prefix(end);
  }
  return true;
}

// Nobody means a shard or a ceiling of so few bytes as are written without a unit.
std::uint64_t parse_large_size(std::string_view option, const std::string& text) {
  constexpr std::uint64_t kLeast = 1'000'000;
  const std::uint64_t bytes = parse_size(option, text);
  if (bytes >= kLeast || text.find_first_not_of("0123456789") != std::string::npos) return bytes;
  fail(Code::usage, fmt::format("{} {}: that is {} bytes; write a unit, as in {}GB or {}MB", option,
                                text, bytes, text, text));
}

void note_memory(const Console& console, std::uint64_t ceiling) {
  const long pages = ::sysconf(_SC_PHYS_PAGES), size = ::sysconf(_SC_PAGESIZE);
  if (pages <= 0 || size <= 0) return;
  const std::uint64_t all = static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(size);
  if (ceiling <= all) return;
  console.note(fmt::format("--memory {} is more than the machine has ({}): it bounds nothing here",
                           show_memory(ceiling), show_memory(all)));
}

constexpr const char* kHidden = "";  // CLI11: a group without a name is left out of --help

// The last word of a path, for the model card; empty where there is none.
std::string title_of(std::string_view out) {
  while (out.ends_with('/')) out.remove_suffix(1);
  out.remove_prefix(std::min(out.rfind('/') + 1, out.size()));
  return out == "." || out == ".." ? "" : std::string(out);
}

// Options that say how to plan and not what to do.
const std::set<std::string> kPlanOnly{"--dry-run", "--tensors", "--no-probe", "--json",
                                      "--quiet",   "--verbose", "--progress"};

// As a shell reads it.
std::string shell_word(const std::string& text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@_";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

}  // namespace

Request::Request(CLI::App& command, Form form)
    : form_(form), command_(command), progress_(command) {
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
    add_out(command, nullptr);
  } else if (form == Form::fuse) {
    add_fusion(command);
  } else if (form == Form::extract) {
    add_extraction(command);
  } else {
    command
        .add_option("RECIPE", recipe_,
                    "The recipe, a YAML file as mergekit reads it; - for standard input")
        ->required()
        ->type_name("FILE");
    auto* argument = command.add_option(
        "OUT", named_, writes ? "The folder to write" : "The folder that a merge would write");
    argument->required(writes)->type_name("DIR");
    add_out(command, argument);
  }

  command.add_option("--memory", memory_, "Most resident memory, as the system counts it")
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
  command
      .add_option("--dtype", planning_.dtype,
                  form == Form::merge || form == Form::plan
                      ? "Type of the output (default: the recipe's, else the models')"
                  : form == Form::bake ? "Type of the output (default: that of the base)"
                                       : "Type of the output (default: float32)")
      ->type_name("float32|float16|bfloat16|float8_e4m3fn|float8_e5m2");
  command
      .add_option("--device", device_,
                  "Where to compute: cuda is the first GPU, cuda:0,1 are two, auto is the first "
                  "GPU or, where none can be used, the CPU")
      ->type_name("cpu|cuda|cuda:N|auto")
      ->capture_default_str();
  command.add_option("--device-memory", device_memory_, "Most memory to take on a CUDA device")
      ->type_name("SIZE")
      ->capture_default_str();
  if (may_decompose()) {
    command
        .add_option("--cuda-libraries", libraries_,
                    "Folder of cuBLAS and cuSOLVER, for decompositions on CUDA (default: where "
                    "the system finds libraries)")
        ->type_name("DIR");
  } else {
    command.add_flag("--fast-product", planning_.fast_product,
                     "Multiply adapters by BLAS or cuBLAS: faster, but the last digits may "
                     "differ from machine to machine");
    command
        .add_option("--cuda-libraries", libraries_,
                    "Folder of cuBLAS, for --fast-product on CUDA (default: where the "
                    "system finds libraries)")
        ->type_name("DIR");
  }
  command.add_option("--storage", storage_, "How files are read and written")
      ->type_name("auto|mapped|direct|buffered")
      ->check(CLI::IsMember({"auto", "mapped", "direct", "buffered"}))
      ->capture_default_str();
  command.add_option("--root", planning_.root, "Where relative model paths start (default: here)")
      ->type_name("DIR");
  command
      .add_option("--prefer", prefer_,
                  "What to read of a model with an index and a single file (default: an error)")
      ->type_name("index|file")
      ->check(CLI::IsMember({"index", "file"}));
  if (form == Form::merge || form == Form::plan) {
    command.add_flag("--strict-modules", planning_.strict_modules,
                     "Refuse models of which only some have a module (vision, MTP)");
  }
  command.add_flag("--force", options_.force,
                   "Replace OUT, if ingot wrote all of it, after the new folder is complete");
  command.add_flag("--tensors", tensors_,
                   writes ? "With --dry-run: list every output tensor with its rule and sources"
                          : "List every output tensor with its rule and sources");
  command.add_flag("--no-probe", no_probe_, "Do not read from the inputs to estimate the time");
  if (writes) {
    command.add_flag("--dry-run", dry_,
                     "Show what would be done and every problem, and write nothing");
    command.add_flag("--resume", options_.resume,
                     "Continue an interrupted run into OUT; a finished one is verified");
    command.add_flag("--no-sync", no_sync_,
                     "Do not wait until the disk has stored the files: a power cut may then "
                     "lose them");
    command
        .add_flag("--no-hash", no_hash_,
                  "Leave hashes out of the receipt: 'verify' then refuses OUT")
        ->group("For measurements");
  }
  command.add_flag("-q,--quiet,!--no-quiet", quiet_, "Show warnings and errors only");
  command.add_flag(
      "-v,--verbose", verbose_,
      "Show how the output was computed, read and written, and the speed of the storage");
  command.add_flag("--json", json_, "Print the report as JSON on standard output");

  const char* waivers = "Waivers (the receipt lists each)";
  command
      .add_flag("--allow-unknown-keys", planning_.allow_unknown_keys,
                "Give a warning instead of an error for unknown keys in the recipe")
      ->group(waivers);
  command
      .add_flag("--ignore-extra-weights", planning_.ignore_extra_weights,
                "Leave out weight files that are in an adapter's folder but not part of it")
      ->group(waivers);
  command
      .add_flag("--allow-unchanged", planning_.allow_unchanged,
                "Accept an output that is equal to one of its inputs")
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
      .add_flag("--allow-layer-mismatch", planning_.allow_layer_mismatch,
                "Write layers whose kinds config.json cannot describe")
      ->group(waivers);
  command
      .add_flag("--unsafe-truncate-embeddings,!--no-unsafe-truncate-embeddings",
                planning_.truncate_embeddings,
                "If vocabularies differ in size, cut all to the smallest size")
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
  for (const Foreign& row : foreign_options()) {
    if (row.answer != Answer::noted) continue;
    const std::string names = row.names;
    // Flags of mergekit have a `--no-` form each, but for those with a short form.
    const bool both = !row.value && names.find(',') == std::string::npos;
    CLI::Option* option =
        row.value ? command.add_option(names)
                  : command.add_flag(both ? names + ",!--no-" + names.substr(2) : names);
    option->description(fmt::format("No effect: {}", row.ours))->group(kHidden);
    if (row.value) option->type_name("VALUE");
  }
}

void Request::settle(const Console& console) {
  settle_out();
  if (!safe_) {
    fail(Code::usage,
         "--no-safe-serialization asks for pickle files, which ingot reads but never writes; leave "
         "it out to get safetensors");
  }
  if (command_.count("--device") == 0 && (cuda_ || gpu_rich_)) device_ = "cuda";
  if (device_ != "cpu" && device_ != "auto" && !names_cuda(device_)) {
    fail(Code::usage, fmt::format("--device {}: expected cpu, cuda, cuda:N, cuda:N,M or auto",
                                  printable(device_)));
  }
  if (tensors_ && !dry()) {
    fail(Code::usage, "--tensors lists what would be done: it goes with --dry-run");
  }
  for (const Foreign& row : foreign_options()) {
    if (row.answer != Answer::noted) continue;
    const std::string_view names = row.names;
    const std::string name(names.substr(0, names.find(',')));
    if (command_.count(name) > 0) {
      console.note(fmt::format("{} has no effect: {}", name, row.ours));
    }
  }

  options_.memory = parse_large_size("--memory", memory_);
  device_memory_bytes_ = parse_size("--device-memory", device_memory_);
  options_.sync = !no_sync_;
  options_.hash = !no_hash_;
  planning_.shard_bytes = out_shard_size_.empty() ? parse_large_size("--shard-size", shard_size_)
                                                  : parse_shard(out_shard_size_);
  note_memory(console, options_.memory);
  planning_.threads = options_.threads;
  planning_.memory = options_.memory;
  planning_.copy_tokenizer = copy_tokenizer_;
  planning_.prefer = prefer_.empty()     ? Prefer::neither
                     : prefer_ == "file" ? Prefer::file
                                         : Prefer::index;
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

void Request::add_out(CLI::App& command, CLI::Option* argument) {
  auto* option = command.add_option(
      "-o,--out", out_,
      argument != nullptr
          ? "The folder to write, in place of the argument OUT"
          : "The folder to write (required, unless the last argument is a new folder: then that)");
  option->type_name("DIR");
  // Each makes the other needless.
  if (argument != nullptr)
    option->each([argument](const std::string&) { argument->required(false); });
}

bool Request::takes_adapters() const { return form_ == Form::bake || form_ == Form::fuse; }

void Request::settle_out() {
  const bool option = command_.count("--out") > 0;
  bool argument = !takes_adapters() && command_.count("OUT") > 0;
  if (!option && takes_adapters()) argument = take_last();
  if (!recipe_.empty() && !adapters_.empty()) {
    fail(Code::usage, fmt::format("--recipe {} and the adapter '{}' exclude each other; the recipe "
                                  "names its adapters",
                                  recipe_, adapters_.front()));
  }
  if (option && argument && named_ != out_) {
    fail(Code::usage,
         fmt::format("OUT is given twice, as '{}' and as '{}'; give one of them", named_, out_));
  }
  if (argument) out_ = named_;
  if (option || argument) {
    check_out(out_);
  } else if (form_ != Form::plan) {
    fail(Code::usage, "OUT is missing; name the folder to write, as in '-o out'");
  }
}

bool Request::take_last() {
  if (adapters_.empty()) return false;
  const std::string& word = adapters_.back();
  const std::unique_ptr<Disk> disk = system_disk();
  const auto refuse = [&](std::string_view why) {
    fail(Code::usage, fmt::format("OUT is missing: the last argument '{}' {}, so it is read as an "
                                  "adapter; name the folder to write with -o",
                                  shorten(word, 200), why));
  };
  if (word.find_first_of(":@") != std::string::npos) refuse("has a weight or a revision");
  const Disk::Kind kind = disk->kind(word);
  const bool empty = kind == Disk::Kind::folder && disk->list(word).empty();
  if (exists(*disk, word) && !empty) refuse("exists");
  if (kind != Disk::Kind::absent && !empty) refuse("exists");
  bool cached = true;
  try {
    ModelRef ref;
    ref.text = ref.path = word;
    (void)resolve(*disk, ref, planning_.root);
  } catch (const Error& error) {
    cached = error.code() != Code::missing;
  }
  if (cached && !empty) refuse("is in the Hub cache");
  if (adapters_.size() == 1 && recipe_.empty()) {
    fail(Code::usage,
         fmt::format("no adapters: the only one, '{}', does not exist; name adapters, and "
                     "the folder to write with -o",
                     shorten(word, 200)));
  }
  named_ = word;
  adapters_.pop_back();
  return true;
}

bool Request::may_decompose() const { return form_ == Form::fuse || form_ == Form::extract; }

std::unique_ptr<Backend> Request::backend(const Console& console, bool decomposes) const {
  if (device_ == "cpu") return cpu_backend(options_.isa);
  using Decompose = DeviceOptions::Decompose;
  // A folder of libraries that the user names must work.
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
    console.note(
        fmt::format("--device auto: computing on the CPU, because no CUDA device can be used ({})",
                    error.message()));
    return cpu_backend(options_.isa);
  }
}

void Request::add_fusion(CLI::App& command) {
  command
      .add_option("ADAPTER", adapters_,
                  "Folders of PEFT adapters, each with an optional :WEIGHT (default 1)")
      ->type_name("ADAPTER[:WEIGHT]");
  add_out(command, nullptr);
  auto* file = command
                   .add_option("--recipe", recipe_,
                               "A recipe of adapters (docs/adapters.md) in place of the arguments")
                   ->type_name("FILE");
  const auto alone = [file](CLI::Option* option) { return option->excludes(file); };
  alone(command.add_option("--type", type_, "How to combine: 'ingot methods' lists the types"))
      ->type_name("TYPE")
      ->capture_default_str();
  alone(command.add_option("--density", density_,
                           "Share of elements that the types ties, dare and prune keep (required "
                           "by them, no default)"))
      ->type_name("SHARE");
  alone(command.add_option("--majority-sign", majority_sign_,
                           "How the types with ties elect a sign (default: total)"))
      ->type_name("total|frequency");
  add_ranks(command);
  alone(command.add_option(
            "--whole-tensors", whole_tensors_,
            "What to do with tensors that several adapters store in full (default: refuse)"))
      ->type_name("refuse|average");
  alone(command.add_flag("--keep-scaling", keep_scaling_,
                         "Keep the adapters' common alpha / r instead of folding it into A"));
  alone(command.add_option("--compat", compat_,
                           "Compute as a version of PEFT does: svd-scaling-twice as 0.9 to 0.20 "
                           "(peft-0.20 is the same), ia3-plain-sum as all (default: neither)"))
      ->type_name("svd-scaling-twice|peft-0.20|ia3-plain-sum")
      ->delimiter(',');
}

void Request::add_extraction(CLI::App& command) {
  command.add_option("BASE", base_, "The model that the adapter will be for")
      ->required()
      ->type_name("MODEL");
  command.add_option("TUNED", tuned_, "The model to take the difference from")
      ->required()
      ->type_name("MODEL");
  auto* argument = command.add_option("OUT", named_, "The folder to write");
  argument->required()->type_name("DIR");
  add_out(command, argument);
  add_ranks(command);
  command
      .add_option("--bytes", bytes_,
                  "Choose the ranks that keep the most energy in a weight file of at most SIZE "
                  "bytes (in place of --rank)")
      ->type_name("SIZE");
  command
      .add_option("--whole-tensors", whole_tensors_,
                  "Embeddings, heads, norms and biases that changed: save them in full, or skip "
                  "them (default: save)")
      ->type_name("save|skip");
}

void Request::add_ranks(CLI::App& command) {
  command
      .add_option(
          "--rank", rank_,
          form_ == Form::fuse
              ? "Rank of each module of the result, or auto with --energy (default: the largest "
                "rank of the adapters)"
              : "Rank of each module of the adapter, or auto with --energy (required without "
                "--bytes)")
      ->type_name("N|auto");
  command
      .add_option("--for", for_,
                  "The program that will load the adapter: PEFT takes everything, vLLM and "
                  "llama.cpp take factors of linear layers, llama.cpp in one rank (default: peft)")
      ->type_name("peft|vllm|llama.cpp");
  command
      .add_option("--energy", energy_,
                  "With --rank auto: share of the squared norm to keep (required by auto)")
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
      fail(Code::usage, fmt::format("'{}' does not exist, and '{}' after its last colon is not a "
                                    "number; write an adapter and its weight as in {}:0.5",
                                    word, weight, path.empty() ? "ADAPTER" : path));
    }
  }
  if (path.empty())
    fail(Code::usage, fmt::format("'{}' has a weight but no adapter before the colon", word));
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
  set("for", for_);
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
  set("for", for_);
  return text;
}

std::string Request::command() const {
  std::string placed, options;
  for (const CLI::Option* option : command_.get_options()) {
    const auto& names = option->get_lnames();
    const std::string name = names.empty() ? "" : "--" + names.front();
    const bool moot = option->get_description().starts_with("No effect");
    if (option->count() == 0 || moot || kPlanOnly.contains(name)) continue;
    for (const std::string& value : option->results()) {
      if (name.empty()) {  // an argument
        placed += " " + shell_word(value);
      } else if (option->get_items_expected_max() == 0) {  // a flag
        options += value == "false" ? " --no-" + names.front() : " " + name;
      } else {
        options += fmt::format(" {} {}", name, shell_word(value));
      }
    }
  }
  std::string words = "ingot";
  for (const CLI::App* app = &command_; app->get_parent() != nullptr; app = app->get_parent()) {
    const std::string name = form_ == Form::plan ? "merge" : app->get_name();
    words.insert(std::string_view("ingot").size(), " " + name);
  }
  if (form_ == Form::plan && out_.empty()) placed += " OUT";
  return words + placed + options;
}

std::string Request::read_recipe(Disk& disk) const {
  const Disk::Kind kind = disk.kind(recipe_);
  if (kind == Disk::Kind::absent) {
    fail(Code::missing,
         fmt::format("there is no recipe {}{}", recipe_, path_advice(disk, "", recipe_)));
  }
  if (kind != Disk::Kind::folder) return read_text(disk, recipe_);
  if (!out_.empty() && disk.kind(out_) == Disk::Kind::file) {
    fail(Code::usage,
         fmt::format("{} is a folder, and {} a file: the recipe comes first, OUT behind it",
                     recipe_, out_));
  }
  constexpr std::size_t kMost = 5;
  std::vector<std::string> recipes;
  for (const std::string& name : disk.list(recipe_)) {
    if (!name.ends_with(".yml") && !name.ends_with(".yaml")) continue;
    if (recipes.size() < kMost) recipes.push_back(fmt::format("{}/{}", recipe_, name));
  }
  fail(Code::usage,
       fmt::format("{} is a folder, and a recipe is a YAML file{}", recipe_,
                   recipes.empty() ? ": name the file"
                                   : fmt::format(": name one, as {}", fmt::join(recipes, " or "))));
}

std::string Request::worded(std::string text) const {
  return recipe_.empty() ? in_options(std::move(text), command_.get_name()) : text;
}

std::unique_ptr<Backend> Request::obstruct(Disk& disk, Plan& plan, const Console& console,
                                           bool target, Estimate& run) const {
  const auto check = [&plan](const auto& look) {
    try {
      look();
    } catch (const Error& error) {
      plan.problems.push_back({true, error.code(), error.what()});
    }
  };
  std::unique_ptr<Backend> backend;
  check([&] { backend = this->backend(console, !plan.joints().empty()); });
  if (!plan.jobs.empty()) check([&] { run = estimate(plan, options_); });
  const bool look = target || !plan.sound();
  if (look && !out_.empty()) check([&] { check_target(disk, plan, out_, options_); });
  return backend;
}

Plan Request::plan(Disk& disk) const {
  const bool own = recipe_.empty();
  const bool streamed = recipe_ == "-";
  const std::string text = own ? synthesise(disk) : streamed ? read_input() : read_recipe(disk);
  const std::string name = own ? command_.get_name() : streamed ? "standard input" : recipe_;
  const auto made = [&] {
    Recipe recipe =
        parse(text, name, {.allow_unknown_keys = planning_.allow_unknown_keys, .collect = true});
    return build(disk, std::move(recipe), planning_);
  };
  try {
    return made();
  } catch (const Error& error) {
    fail(error.code(), worded(error.what()));
  }
}

int verdict(const Plan& plan) {
  const auto first = std::find_if(plan.problems.begin(), plan.problems.end(),
                                  [](const Problem& problem) { return problem.fatal; });
  return first == plan.problems.end() ? 0 : exit_code(first->code);
}

void report(const Console& console, const Plan& plan, const Request& request) {
  std::uint64_t errors = 0, warnings = 0;
  for (const Problem& problem : plan.problems) {
    const std::string text = request.worded(problem.text);
    if (problem.fatal) keep_failure(text, problem.code);
    if ((problem.fatal ? errors : warnings)++ >= kMostShown) continue;
    if (problem.fatal) {
      console.remark(text);
    } else {
      console.warning(text);
    }
  }
  const auto rest = [&](std::uint64_t count, std::string_view noun) {
    if (count <= kMostShown) return std::string();
    return fmt::format("and {}; ingot plan --json lists all",
                       show_count(count - kMostShown, fmt::format("more {}", noun)));
  };
  if (const std::string text = rest(warnings, "warning"); !text.empty()) console.warning(text);
  if (const std::string text = rest(errors, "error"); !text.empty()) console.remark(text);
}

}  // namespace ingot::tool

#include "foreign.hpp"

#include <array>
#include <utility>

namespace ingot::tool {
namespace {

constexpr auto kTaken = Answer::taken;
constexpr auto kNoted = Answer::noted;
constexpr auto kAdvised = Answer::advised;
constexpr const char* kMerges = "merge plan";

// One line a row, so that the table reads as a table.
// clang-format off
constexpr std::array kRows{
    // mergekit-yaml: all of its options are accepted.
    Foreign{"--allow-crimes", "mergekit", "", kTaken, false, "--allow-crimes"},
    Foreign{"--unsafe-truncate-embeddings", "mergekit", "", kTaken, false, "--unsafe-truncate-embeddings"},
    Foreign{"--out-shard-size", "mergekit", "", kTaken, true, "--shard-size; 5B is 5GB"},
    Foreign{"--random-seed", "mergekit", "", kTaken, true, "--seed"},
    Foreign{"--num-threads", "mergekit", "", kTaken, true, "--threads"},
    Foreign{"--copy-tokenizer", "mergekit", "", kTaken, false, "the tokenizer is copied by default; --no-copy-tokenizer leaves it out"},
    Foreign{"--write-model-card", "mergekit", "", kTaken, false, "README.md is written by default; --no-write-model-card leaves it out"},
    Foreign{"--safe-serialization", "mergekit", "", kTaken, false, "safetensors is the only format that is written"},
    Foreign{"--cuda", "mergekit", "", kTaken, false, "--device cuda"},
    Foreign{"--gpu-rich", "mergekit", "", kTaken, false, "--device cuda"},
    Foreign{"--transformers-cache", "mergekit", "", kNoted, true, "nothing is downloaded; a model is a folder or is in the Hugging Face cache (HF_HUB_CACHE, HF_HOME)"},
    Foreign{"--lora-merge-cache", "mergekit", "", kNoted, true, "no adapter is merged to disk beforehand"},
    Foreign{"--lora-merge-dtype", "mergekit", "", kNoted, true, "no adapter is merged to disk beforehand"},
    Foreign{"--low-cpu-memory", "mergekit", "", kNoted, false, "host memory is bounded by --memory on every device"},
    Foreign{"--clone-tensors", "mergekit", "", kNoted, false, "tensors are streamed, never shared"},
    Foreign{"--trust-remote-code", "mergekit", "", kNoted, false, "no code of a model is ever run; its files are copied as they are"},
    Foreign{"--lazy-unpickle", "mergekit", "", kNoted, false, ".bin files are always read piece by piece, and nothing in them is executed"},
    Foreign{"--read-to-gpu", "mergekit", "", kNoted, false, "the run decides what a device holds"},
    Foreign{"--multi-gpu", "mergekit", "", kNoted, false, "name the devices, as in --device cuda:0,1"},
    Foreign{"--async-write", "mergekit", "", kNoted, false, "writing always overlaps reading and arithmetic"},
    Foreign{"--write-threads", "mergekit", "", kNoted, true, "writing always overlaps reading and arithmetic"},
    // mergekit's other programs.
    Foreign{"--base-model", "mergekit", "extract", kAdvised, true, "the base is the first argument: ingot extract BASE TUNED -o OUT"},
    Foreign{"--model", "mergekit", "extract", kAdvised, true, "the tuned model is the second argument: ingot extract BASE TUNED -o OUT"},
    Foreign{"--max-rank,-r,--r", "mergekit", "extract", kAdvised, true, "use --rank N"},
    Foreign{"--distribute-scale,--no-distribute-scale", "mergekit", "extract", kAdvised, false, "leave it out: the singular values are always in B"},
    Foreign{"--embed-lora,--no-embed-lora,--save-module", "mergekit", "extract", kAdvised, true, "use --whole-tensors save or --whole-tensors skip"},
    Foreign{"--sv-epsilon", "mergekit", "extract", kAdvised, true, "use --rank auto with --energy SHARE"},
    Foreign{"--skip-undecomposable", "mergekit", "extract", kAdvised, false, "use --whole-tensors skip"},
    Foreign{"--include-regex,--exclude-regex,-i,-e", "mergekit", "extract", kAdvised, true, "leave it out: every module that changed is extracted"},
    Foreign{"--intermediate-dir,-I,--lazy", "mergekit", kMerges, kAdvised, true, "merge the recipes one after the other; a later one names the OUT of an earlier one as a model"},
    Foreign{"--tensor-union,--tensor-intersection,-u", "mergekit", kMerges, kAdvised, false, "leave it out: modules that only some models have are explained by 'ingot plan RECIPE'"},
    Foreign{"--load-in-4bit,--load-in-8bit", "mergekit", "", kAdvised, false, "leave it out: memory is bounded by --memory SIZE"},
    Foreign{"--print-yaml,--no-print-yaml", "mergekit", "", kAdvised, false, "leave it out: recipe.yml in OUT is the recipe"},
    // What recipes say and options of others say.
    Foreign{"--merge-method,--method", "mergekit", kMerges, kAdvised, true, "write it in the recipe, as 'merge_method: ties'; 'ingot methods' lists the methods"},
    Foreign{"--base-model,--base,--model,--models,-m", "others", kMerges, kAdvised, true, "name the models in the recipe, under 'models:' and 'base_model:'"},
    Foreign{"--weights,--weight,-w", "PEFT", kMerges, kAdvised, true, "write it in the recipe, in the parameters of each model, as 'weight: 0.5'"},
    Foreign{"--density", "PEFT", kMerges, kAdvised, true, "write it in the recipe, in the parameters of each model, as 'density: 0.5'"},
    Foreign{"--lambda,--normalize,--rescale", "mergekit", kMerges, kAdvised, true, "write it in the recipe, under 'parameters:'"},
    Foreign{"--t", "mergekit", kMerges, kAdvised, true, "write it in the recipe, as 'parameters: {t: 0.5}'"},
    Foreign{"--config,--recipe,--yaml,--config-file,-c", "others", kMerges, kAdvised, true, "the recipe is the first argument: ingot merge RECIPE OUT"},
    Foreign{"--tokenizer,--tokenizer-source", "mergekit", kMerges, kAdvised, true, "write it in the recipe, as 'tokenizer_source: base' or 'tokenizer: {source: base}'"},
    // PEFT.
    Foreign{"--weights,--weight,--scale,--scales,--scaling,-w", "PEFT", "bake adapter", kAdvised, true, "write the weight behind its adapter, as in 'style:0.7'"},
    Foreign{"--weights,--weight,--lora-alpha,--alpha", "PEFT", "extract", kAdvised, true, "leave it out: the factors hold the change at weight 1; give a weight when you bake, as in 'out:0.5'"},
    Foreign{"--combination-type,--method,--merge-method,--mode,--strategy", "PEFT", "adapter", kAdvised, true, "use --type TYPE; 'ingot methods' lists the types"},
    Foreign{"--svd-rank,--r,-r,--lora-r", "PEFT", "adapter extract", kAdvised, true, "use --rank N"},
    Foreign{"--majority-sign-method", "PEFT", "adapter", kAdvised, true, "use --majority-sign total or --majority-sign frequency"},
    Foreign{"--svd-clamp,--svd-full-matrices,--svd-driver", "PEFT", "adapter extract", kAdvised, true, "leave it out: the decomposition is the best of its rank, and nothing is clamped"},
    Foreign{"--combination-type", "PEFT", "bake", kAdvised, true, "'ingot adapter merge' combines adapters; 'ingot bake' then puts the result into a model"},
    Foreign{"--adapters,--adapter,--adapter-name,--adapter-names,--lora,--loras,--peft-model,--lora-path,--adapter-path", "PEFT", "bake adapter", kAdvised, true, "name the adapters as arguments: ingot bake BASE ADAPTER... -o OUT, or ingot adapter merge ADAPTER... -o OUT"},
    Foreign{"--base,--base-model,--model,--model-name-or-path,--base-model-name-or-path,-m", "PEFT", "bake", kAdvised, true, "the base is the first argument: ingot bake BASE ADAPTER... -o OUT"},
    Foreign{"--base,--base-model,--model", "PEFT", "adapter", kAdvised, true, "leave it out: adapters are merged without a base model"},
    Foreign{"--base,--tuned,--finetuned,--finetuned-model,--model-name-or-path,-m", "others", "extract", kAdvised, true, "name the models as arguments: ingot extract BASE TUNED -o OUT"},
    Foreign{"--safe-merge", "PEFT", "", kAdvised, false, "leave it out: results that are not finite are always refused"},
    Foreign{"--merge-and-unload", "PEFT", "", kAdvised, false, "use the command 'ingot bake BASE ADAPTER... -o OUT'"},
    Foreign{"--target-modules,--modules,--include,--exclude", "PEFT", "", kAdvised, true, "leave it out: the adapter's own configuration names its modules"},
    Foreign{"--progressbar,--progress-bar,--no-progress", "PEFT", "", kAdvised, false, "use --progress none"},
    // Common names.
    Foreign{"--output,--output-dir,--output-path,--out-path,--out-dir,--outdir,--output-folder,--save-path,--save-dir,--save-directory,--dest,--destination,--target", "others", "merge plan bake adapter extract", kAdvised, true, "use -o OUT"},
    Foreign{"--overwrite,--overwrite-output-dir,--replace,--clobber,--yes,-y,-f,--assume-yes", "others", "merge plan bake adapter extract", kAdvised, false, "use --force, which replaces only a folder that ingot wrote"},
    Foreign{"--dryrun,-n,--simulate,--check,--no-op", "others", "merge bake adapter extract", kAdvised, false, "use --dry-run, which writes nothing"},
    Foreign{"--dry-run,--dryrun,-n,--simulate,--check,--no-op", "others", "plan", kAdvised, false, "leave it out: 'ingot plan' writes nothing"},
    Foreign{"-v,--verbose", "others", "verify inspect diff", kAdvised, false, "leave it out: --json prints every detail"},
    Foreign{"--continue,--restart,--resume-from", "others", "merge bake adapter extract", kAdvised, false, "use --resume with the same command"},
    Foreign{"--gpu,--gpus,--use-gpu,--use-cuda,--cuda-device,--device-map,--n-gpus", "others", "", kAdvised, true, "use --device cuda or --device cuda:N"},
    Foreign{"--cpu,--no-gpu", "others", "", kAdvised, false, "leave it out or use --device cpu: the CPU is the default"},
    Foreign{"--max-memory,--ram,--mem,--memory-limit,--max-ram,--low-memory,--low-cpu-mem-usage", "others", "", kAdvised, true, "use --memory SIZE, as in --memory 4GiB"},
    Foreign{"--vram,--gpu-memory,--max-gpu-memory,--cuda-memory", "others", "", kAdvised, true, "use --device-memory SIZE, as in --device-memory 8GiB"},
    Foreign{"--workers,--num-workers,--jobs,--num-proc,--nproc,--processes,--cores,--max-workers", "others", "", kAdvised, true, "use --threads N"},
    Foreign{"--max-shard-size,--shard,--shards,--split", "others", "merge plan bake adapter extract", kAdvised, true, "use --shard-size SIZE, as in --shard-size 5GB"},
    Foreign{"--torch-dtype,--precision,--type,--data-type,--out-dtype,--output-dtype,--out-type,--outtype", "others", "merge plan bake extract", kAdvised, true, "use --dtype float32, float16 or bfloat16"},
    Foreign{"--torch-dtype,--precision,--out-dtype,--output-dtype", "others", "adapter", kAdvised, true, "use --dtype float32, float16 or bfloat16"},
    Foreign{"--bf16,--bfloat16", "others", "", kAdvised, false, "use --dtype bfloat16"},
    Foreign{"--fp16,--half,--float16,--f16", "others", "", kAdvised, false, "use --dtype float16"},
    Foreign{"--fp32,--float32,--f32,--full-precision", "others", "", kAdvised, false, "use --dtype float32"},
    Foreign{"--random-state,--rng-seed,--manual-seed", "others", "", kAdvised, true, "use --seed N"},
    Foreign{"--silent,--no-output", "others", "", kAdvised, false, "use --quiet"},
    Foreign{"--debug,--log-level,--log,--info", "others", "", kAdvised, true, "leave it out: --json prints every detail of the run"},
    Foreign{"--format,--output-format,--as-json,--jsonl", "others", "", kAdvised, true, "use --json"},
    Foreign{"--color,--colour,--no-color,--no-colour", "others", "", kAdvised, false, "leave it out: colours are for terminals only, and NO_COLOR=1 turns them off"},
    Foreign{"--cwd,--chdir,--prefix,--model-dir,--models-dir,--base-dir,--base-path,-C", "others", "", kAdvised, true, "use --root DIR, where relative paths of models start"},
    Foreign{"--cache-dir,--hf-home,--cache,--hub-cache", "others", "", kAdvised, true, "set the environment variable HF_HUB_CACHE or HF_HOME"},
    Foreign{"--token,--hf-token,--use-auth-token,--download", "others", "", kAdvised, true, "leave it out: nothing is downloaded; 'hf download NAME' fetches a model into the cache that ingot reads"},
    Foreign{"--push-to-hub,--upload,--hub-model-id", "others", "", kAdvised, true, "leave it out: nothing is uploaded; 'hf upload NAME OUT' does it"},
    Foreign{"--revision,--branch,--commit", "others", "", kAdvised, true, "write it behind the name, as in 'org/model@main'"},
    Foreign{"--no-card,--no-model-card,--no-readme", "others", "merge plan bake adapter extract", kAdvised, false, "use --no-write-model-card"},
    Foreign{"--no-verify,--verify", "others", "merge bake adapter extract", kAdvised, false, "leave it out: 'ingot verify OUT' checks the result afterwards"},
    Foreign{"--num-threads", "others", "verify", kAdvised, true, "use --threads N"},
    Foreign{"--full,--deep,--complete,--thorough", "others", "verify", kAdvised, false, "use --all"},
    Foreign{"--no-inputs,--skip-inputs,--output-only", "others", "verify", kAdvised, false, "use --outputs-only"},
    Foreign{"--limit,--max,--count,--head,-n", "others", "diff", kAdvised, true, "use --top N"},
    Foreign{"--name,--key,--layer,--stats,-t", "others", "inspect", kAdvised, true, "use --tensor NAME"},
    Foreign{"--rank-auto,--auto-rank", "others", "adapter extract", kAdvised, false, "use --rank auto with --energy SHARE"},
    Foreign{"--threshold,--variance,--explained-variance,--energy-threshold", "others", "adapter extract", kAdvised, true, "use --rank auto with --energy SHARE"},
    Foreign{"--max-size,--size,--budget", "others", "extract", kAdvised, true, "use --bytes SIZE, as in --bytes 200MB"},
};

// Commands by the words of others.
constexpr std::array<std::pair<std::string_view, std::string_view>, 34> kCommands{{
    {"run", "merge"}, {"mergekit-yaml", "merge"}, {"mergekit", "merge"}, {"yaml", "merge"}, {"build", "merge"}, {"combine", "merge"},
    {"apply", "bake"}, {"merge-lora", "bake"}, {"merge-and-unload", "bake"}, {"fuse", "bake"}, {"unload", "bake"}, {"lora", "bake"},
    {"add-weighted-adapter", "adapter merge"}, {"merge-adapters", "adapter merge"}, {"merge-adapter", "adapter merge"}, {"adapters", "adapter merge"},
    {"mergekit-extract-lora", "extract"}, {"extract-lora", "extract"}, {"decompose", "extract"},
    {"dry-run", "plan"}, {"estimate", "plan"}, {"simulate", "plan"},
    {"check", "verify"}, {"validate", "verify"},
    {"show", "inspect"}, {"info", "inspect"}, {"ls", "inspect"}, {"stats", "inspect"}, {"list", "inspect"},
    {"compare", "diff"}, {"cmp", "diff"},
    {"benchmark", "bench"}, {"man", "help"}, {"usage", "help"},
}};
// clang-format on

char folded(char c) noexcept {
  if (c >= 'A' && c <= 'Z') return static_cast<char>(c - 'A' + 'a');
  return c == '_' ? '-' : c;
}

// Capital letters count in options of one letter.
bool same(std::string_view a, std::string_view b) noexcept {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a.size() <= 2 ? a[i] != b[i] : folded(a[i]) != folded(b[i])) return false;
  }
  return true;
}

bool among(std::string_view word, std::string_view list, char between) noexcept {
  while (!list.empty()) {
    const std::size_t end = list.find(between);
    if (same(word, list.substr(0, end))) return true;
    list = end == std::string_view::npos ? std::string_view() : list.substr(end + 1);
  }
  return false;
}

}  // namespace

std::span<const Foreign> foreign_options() noexcept { return kRows; }

const Foreign* advice(std::string_view option, std::string_view command) noexcept {
  const Foreign* general = nullptr;
  for (const Foreign& row : kRows) {
    const std::string_view commands = row.commands;
    if (row.answer != Answer::advised || !among(option, row.names, ',')) continue;
    if (command.empty() || among(command, commands, ' ')) return &row;
    if (commands.empty() && general == nullptr) general = &row;
  }
  return general;
}

std::string_view meant_command(std::string_view word) noexcept {
  for (const auto& [theirs, ours] : kCommands) {
    if (same(word, theirs)) return ours;
  }
  return {};
}

}  // namespace ingot::tool

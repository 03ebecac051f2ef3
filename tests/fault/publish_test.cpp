// Where a merge writes: one writer, nothing deleted that ingot did not write, and OUT old or new
// whatever happens while it is replaced.
#include <algorithm>
#include <csignal>
#include <functional>

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault/disk.hpp"
#include "merging.hpp"

namespace ingot::test {
namespace {

using Names = std::vector<std::string>;

Settings small(bool force = false, bool resume = false) {
  Settings settings;
  settings.merge.threads = 1;
  settings.merge.force = force;
  settings.merge.resume = resume;
  settings.plan.shard_bytes = 100'000;
  return settings;
}

Names list(const std::string& folder) { return system_disk()->list(folder); }

std::string error_of(const std::string& recipe, const std::string& out, const Settings& settings,
                     Disk* disk = nullptr) {
  try {
    run_merge(recipe, out, settings, disk);
  } catch (const Error& error) {
    EXPECT_EQ(exit_code(error.code()), 2) << error.what();
    return error.what();
  }
  return "";
}

// The same, whatever the code.
std::string error_of_any(const std::string& recipe, const std::string& out) {
  try {
    run_merge(recipe, out, small());
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

#define EXPECT_SAYS(text, part) EXPECT_NE(std::string(text).find(part), std::string::npos) << (text)

// How a file system replaces one folder by another.
enum class Way { exchange, steps, removal };

// The system's disk; before its n-th change of names the process is killed.
class KillingDisk : public FaultyDisk {
 public:
  KillingDisk(Script& script, Way way, int at) : FaultyDisk(script), way_(way), at_(at) {}

  bool rename(const std::string& from, const std::string& to) override {
    step();
    // An overlay cannot move a folder of its lower layer.
    if (way_ == Way::removal && from.ends_with("/out")) return false;
    return FaultyDisk::rename(from, to);
  }
  bool rename_new(const std::string& from, const std::string& to) override {
    step();
    return FaultyDisk::rename_new(from, to);
  }
  bool exchange(const std::string& a, const std::string& b) override {
    step();
    return way_ == Way::exchange && FaultyDisk::exchange(a, b);
  }
  void remove(const std::string& path) override {
    step();
    FaultyDisk::remove(path);
  }
  void sync_folder(const std::string& path) override {
    step();
    FaultyDisk::sync_folder(path);
  }
  [[nodiscard]] int count() const { return count_; }

 private:
  void step() {
    if (count_++ == at_) ::kill(::getpid(), SIGKILL);
  }

  Way way_;
  int at_;
  int count_ = 0;
};

// Merges in a process of its own that is killed before the n-th change; true if it was.
bool killed(const std::string& recipe, const std::string& out, const Settings& settings, Way way,
            int at) {
  const pid_t child = ::fork();
  if (child == 0) {
    Script script;
    KillingDisk disk(script, way, at);
    try {
      run_merge(recipe, out, settings, &disk);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      ::_exit(1);
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) return true;
  EXPECT_EQ(WEXITSTATUS(status), 0) << "before change " << at;
  return false;
}

// Leaves a merge that broke off with some tensors finished and some not.
void broken_off(const std::string& recipe, const std::string& out, const Settings& settings) {
  const std::string partial = std::filesystem::path(out).parent_path() / ".out.partial";
  Script quiet;
  {
    FaultyDisk disk(quiet);
    run_merge(recipe, out, settings, &disk);
  }
  std::filesystem::remove_all(out);
  for (std::int64_t at = quiet.count;; at -= quiet.count / 40) {
    ASSERT_GT(at, 0);
    std::filesystem::remove_all(partial);
    Script script;
    script.fault = Fault::error;
    script.at = at;
    FaultyDisk disk(script);
    try {
      run_merge(recipe, out, settings, &disk);
      std::filesystem::remove_all(out);
      continue;
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), Code::io) << error.what();
    }
    if (!std::filesystem::exists(partial + "/journal.jsonl")) continue;
    const std::string lines = read_file(partial + "/journal.jsonl");
    const auto count = std::count(lines.begin(), lines.end(), '\n');
    if (count > 3 && count < 15) return;
  }
}

class Replacing : public testing::TestWithParam<Way> {};

TEST_P(Replacing, KilledAnywhereLeavesTheOldOrTheNewAndALaterRunFinishes) {
  Folder folder;
  const std::string out = folder / "out";
  const std::string& older = recipes().at("linear");
  const std::string& newer = recipes().at("passthrough");
  Settings settings = small(true);
  settings.merge.sync = true;
  run_merge(older, folder / "older", small());
  run_merge(newer, folder / "newer", small());
  const auto before = fingerprint(folder / "older"), after = fingerprint(folder / "newer");
  int at = 0, old = 0, now = 0, between = 0;
  for (bool dead = true; dead; ++at) {
    run_merge(older, out, small(true));
    dead = killed(newer, out, settings, GetParam(), at);
    const bool there = std::filesystem::exists(out);
    const auto found = there ? fingerprint(out) : decltype(before)();
    old += found == before ? 1 : 0;
    now += found == after ? 1 : 0;
    between += found != before && found != after ? 1 : 0;
    if (GetParam() == Way::exchange) {
      EXPECT_TRUE(found == before || found == after) << "before change " << at;
    }
    // Any later run settles it first, also one that has nothing else to do.
    (void)error_of(newer, out, small());
    EXPECT_TRUE(fingerprint(out) == before || fingerprint(out) == after) << "before change " << at;
    run_merge(newer, out, small(true, true));
    EXPECT_EQ(fingerprint(out), after) << "before change " << at;
    EXPECT_EQ(list(folder.path()), (Names{"newer", "older", "out"})) << "before change " << at;
    std::filesystem::remove_all(out);
  }
  EXPECT_GT(at, 20);
  EXPECT_GT(old, 3);
  EXPECT_GT(now, 3);
  EXPECT_EQ(between > 0, GetParam() != Way::exchange) << "the kills reach the steps in between";
}

INSTANTIATE_TEST_SUITE_P(Ways, Replacing, testing::Values(Way::exchange, Way::steps, Way::removal),
                         [](const auto& one) {
                           return std::string(one.param == Way::exchange ? "exchange"
                                              : one.param == Way::steps  ? "steps"
                                                                         : "removal");
                         });

TEST(Publishing, KilledAnywhereLeavesNothingOrTheWholeFolder) {
  Folder folder;
  const std::string out = folder / "sub/out";
  const std::string& recipe = recipes().at("linear");
  run_merge(recipe, folder / "whole", small());
  const auto expected = fingerprint(folder / "whole");
  Settings settings = small();
  settings.merge.sync = true;
  int at = 0;
  for (bool dead = true; dead; ++at) {
    dead = killed(recipe, out, settings, Way::exchange, at);
    if (std::filesystem::exists(out)) {
      EXPECT_EQ(fingerprint(out), expected);
    }
    run_merge(recipe, out, small(false, true));
    EXPECT_EQ(fingerprint(out), expected) << "before change " << at;
    EXPECT_EQ(list(folder / "sub"), Names{"out"}) << "before change " << at;
    std::filesystem::remove_all(folder / "sub");
  }
  EXPECT_GT(at, 10);
}

// The disk fails once OUT is there: what came after that cannot take it back.
class LateDisk : public FaultyDisk {
 public:
  LateDisk(Script& script, std::string out) : FaultyDisk(script), out_(std::move(out)) {}
  void sync_folder(const std::string& path) override {
    if (std::filesystem::exists(out_)) fail(Code::io, path + ": Input/output error");
    FaultyDisk::sync_folder(path);
  }

 private:
  std::string out_;
};

TEST(Publishing, AFailureAfterItSaysThatTheOutputIsInPlace) {
  Folder folder;
  const std::string out = folder / "out";
  Settings settings = small();
  settings.merge.sync = true;
  Script script;
  LateDisk disk(script, out);
  try {
    run_merge(recipes().at("linear"), out, settings, &disk);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::io);
    EXPECT_SAYS(std::string(error.what()), "is complete and in place");
  }
  EXPECT_TRUE(std::filesystem::exists(out + "/ingot.json"));
}

// Does something once, before the working folder is renamed: what another program might do
// meanwhile.
class BusyDisk : public FaultyDisk {
 public:
  BusyDisk(Script& script, std::function<void()> act) : FaultyDisk(script), act_(std::move(act)) {}
  bool rename_new(const std::string& from, const std::string& to) override {
    if (act_ && from.ends_with("journal.jsonl")) std::exchange(act_, nullptr)();
    return FaultyDisk::rename_new(from, to);
  }

 private:
  std::function<void()> act_;
};

TEST(Publishing, LeavesWhatAppearedMeanwhileAndKeepsItsOwnWork) {
  for (const bool empty : {false, true}) {
    Folder folder;
    const std::string out = folder / "out";
    if (empty) std::filesystem::create_directory(out);
    Script script;
    BusyDisk disk(script, [&] { write_file(out + "/thesis.txt", "x"); });
    EXPECT_SAYS(error_of(recipes().at("linear"), out, small(), &disk), "--resume");
    EXPECT_EQ(list(out), Names{"thesis.txt"});
    std::filesystem::remove_all(out);
    EXPECT_EQ(run_merge(recipes().at("linear"), out, small(false, true)).resumed, 21U);
    EXPECT_EQ(list(folder.path()), Names{"out"});
  }
}

TEST(Publishing, LeavesAFormerFolderThatWasEditedMeanwhile) {
  Folder folder;
  const std::string out = folder / "out";
  run_merge(recipes().at("linear"), out, small());
  Script script;
  BusyDisk disk(script, [&] { write_file(out + "/README.md", "notes"); });
  EXPECT_SAYS(error_of(recipes().at("ties"), out, small(true), &disk), "README.md");
  EXPECT_EQ(read_file(out + "/README.md"), "notes");
}

TEST(Publishing, LeavesAFormerFolderThatChangedMeanwhile) {
  Folder folder;
  const std::string out = folder / "out";
  run_merge(recipes().at("linear"), out, small());
  Script script;
  BusyDisk disk(script, [&] { write_file(out + "/thesis.txt", "x"); });
  EXPECT_SAYS(error_of(recipes().at("ties"), out, small(true), &disk), "thesis.txt");
  EXPECT_TRUE(std::filesystem::exists(out + "/thesis.txt"));
  std::filesystem::remove(out + "/thesis.txt");
  EXPECT_EQ(run_merge(recipes().at("ties"), out, small(true, true)).resumed, 21U);
}

TEST(Publishing, AnInputThatChangedMeanwhileIsAnErrorAndNothingIsKept) {
  Folder folder;
  std::filesystem::copy(example("models"), folder / "models",
                        std::filesystem::copy_options::recursive);
  for (const char* file : {"python/model.safetensors", "python/tokenizer.json"}) {
    Settings settings = small();
    settings.plan.root = folder.path();
    const std::string path = folder / "models/" + file;
    // Between the last read and the receipt: the journal is flushed then.
    class Meanwhile : public FaultyDisk {
     public:
      Meanwhile(Script& script, std::string path) : FaultyDisk(script), path_(std::move(path)) {}
      void remove(const std::string& path) override {
        if (path.ends_with("/config.json")) {
          std::string bytes = read_file(path_);
          bytes[bytes.size() / 2] ^= 1;
          std::ofstream(path_, std::ios::binary) << bytes;
        }
        FaultyDisk::remove(path);
      }

     private:
      std::string path_;
    };
    Script script;
    Meanwhile disk(script, path);
    try {
      run_merge(recipes().at("linear"), folder / "out", settings, &disk);
      ADD_FAILURE() << "merged a mixture";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::io);
      EXPECT_SAYS(error.what(), file);
    }
    EXPECT_EQ(list(folder.path()), Names{"models"});
  }
}

TEST(Target, HasOneWriterAtATime) {
  Folder folder;
  const std::string out = folder / "out";
  for (const auto& [force, resume] : {std::pair(false, false), {true, false}, {false, true}}) {
    Script script;
    std::string second;
    BusyDisk disk(script, [&, force = force, resume = resume] {
      second = error_of(recipes().at("ties"), out, small(force, resume));
    });
    run_merge(recipes().at("linear"), out, small(), &disk);
    EXPECT_SAYS(second, "another ingot (pid " + std::to_string(::getpid()));
    EXPECT_EQ(list(folder.path()), Names{"out"});
    EXPECT_TRUE(verify(*system_disk(), out,
                       [] {
                         VerifyOptions options;
                         options.root = example("");
                         return options;
                       }())
                    .findings.empty());
    std::filesystem::remove_all(out);
  }
}

TEST(Target, IsReplacedOnlyWhereAReceiptNamesEveryFile) {
  const std::string& recipe = recipes().at("linear");
  Folder folder;
  const std::string out = folder / "out";
  std::filesystem::create_directory(out);
  run_merge(recipe, out, small());  // an empty folder is nobody's
  std::filesystem::create_directory(out + "/empty");
  EXPECT_SAYS(error_of(recipe, out, small(true)), "empty/");
  EXPECT_TRUE(std::filesystem::is_directory(out + "/empty"));
  std::filesystem::remove(out + "/empty");
  // Under a name of the receipt too: another model, an edited card.
  const auto written = fingerprint(out);
  for (const char* name : {"model-00001-of-00004.safetensors", "README.md", "config.json"}) {
    const std::string path = out + "/" + name, bytes = read_file(path);
    std::string other = bytes;
    other[other.size() / 2] = static_cast<char>(other[other.size() / 2] ^ 1);
    for (const std::string& text : {other, bytes + "x", std::string("notes")}) {
      write_file(path, text);
      EXPECT_SAYS(error_of(recipe, out, small(true)), name);
      EXPECT_EQ(read_file(path), text);
    }
    write_file(path, bytes);
  }
  EXPECT_EQ(fingerprint(out), written);
  for (const char* name : {"thesis.txt", ".hidden", "sub/thesis.txt"}) {
    write_file(out + "/" + name, "x");
    const auto before = fingerprint(out);
    EXPECT_SAYS(error_of(recipe, out, small(true)), name);
    EXPECT_EQ(fingerprint(out), before);
    std::filesystem::remove_all(out + "/" +
                                std::string(name).substr(0, std::string(name).find('/')));
  }
  run_merge(recipes().at("ties"), out, small(true));
  // No receipt, one that is cut off, one of something else.
  const std::string receipt = read_file(out + "/ingot.json");
  for (const std::string& text : {std::string(), receipt.substr(0, receipt.size() / 2),
                                  std::string("{\"format\":\"other\"}")}) {
    write_file(out + "/ingot.json", text);
    if (text.empty()) std::filesystem::remove(out + "/ingot.json");
    const auto before = fingerprint(out);
    EXPECT_SAYS(error_of(recipe, out, small(true)), "only what it wrote");
    EXPECT_EQ(fingerprint(out), before);
  }
}

TEST(Target, IsNeverAFolderThatTheMergeReads) {
  Folder folder;
  std::filesystem::copy(example("models"), folder / "models",
                        std::filesystem::copy_options::recursive);
  std::filesystem::copy(folder / "models/chat", folder / "tokens");
  std::filesystem::copy(folder / "models/python", folder / ".inside.partial");
  const std::string text =
      "models: [{model: models/python}, {model: models/c}]\nmerge_method: linear\n"
      "parameters: {weight: 0.5}\ntokenizer_source: " +
      (folder / "tokens") + "\n";
  // Folders that ingot could replace but for what is read from them.
  for (const char* name : {"models/python", "tokens", ".inside.partial"}) {
    write_file(folder / name + "/ingot.json", "{\"format\":\"ingot-receipt-1\"}");
  }
  const auto before = fingerprint(folder.path());
  Settings settings = small(true);
  settings.plan.root = folder.path();
  std::filesystem::create_directory_symlink("tokens", folder / "link");
  for (const char* out : {"models", "models/python", "tokens", "link", "models/../tokens/"}) {
    EXPECT_SAYS(error_of(text, folder / out, settings), "choose another output folder");
  }
  // The working folder too.
  EXPECT_SAYS(error_of(R"(
models: [{model: .inside.partial}, {model: models/c}]
merge_method: linear
parameters: {weight: 0.5}
)",
                       folder / "inside", settings),
              ".inside.partial");
  // Where this process is, and the folder of the relative paths.
  EXPECT_SAYS(error_of(text, std::filesystem::current_path().string(), settings), "current folder");
  EXPECT_SAYS(error_of(text, folder.path(), settings), "choose another output folder");
  std::filesystem::remove(folder / "link");
  EXPECT_EQ(fingerprint(folder.path()), before);
}

TEST(Target, LeavesAForeignWorkingFolder) {
  Folder folder;
  const std::string partial = folder / ".out.partial";
  write_file(partial + "/thesis.txt", "x");
  for (const Settings& settings : {small(), small(true), small(false, true)}) {
    EXPECT_SAYS(error_of(recipes().at("linear"), folder / "out", settings), "in the way");
    EXPECT_EQ(list(folder.path()), Names{".out.partial"});
    EXPECT_EQ(list(partial), Names{"thesis.txt"});
  }
}

TEST(Target, WhatIsInTheWayOfItsOwnFilesIsFoundBeforeTheWork) {
  Folder folder;
  for (const char* name : {".out.journal", ".out.lock"}) {
    write_file(folder / name + "/x", "x");
    EXPECT_NE(error_of_any(recipes().at("linear"), folder / "out"), "");
    EXPECT_EQ(list(folder.path()), Names{name});
    std::filesystem::remove_all(folder / name);
  }
  std::filesystem::create_directory(folder / "elsewhere");
  std::filesystem::create_directory_symlink("elsewhere", folder / ".out.partial");
  EXPECT_SAYS(error_of(recipes().at("linear"), folder / "out", small()), "is a link");
  EXPECT_EQ(list(folder / "elsewhere"), Names{});
}

TEST(Target, EmptyNamesAndRootsAreRefused) {
  for (const std::string& out : {std::string(), std::string("/"), std::string("a\0b", 3)}) {
    EXPECT_NE(error_of(recipes().at("linear"), out, small(true)), "") << out;
  }
}

TEST(Target, ARefusedRunLeavesNothing) {
  Folder folder;
  Settings settings = small();
  settings.merge.memory = 1 << 20;
  EXPECT_SAYS(error_of(recipes().at("linear"), folder / "a/b/out", settings), "--memory");
  EXPECT_EQ(list(folder.path()), Names{});
  settings = small();
  settings.plan.dtype = "nonsense";
  EXPECT_NE(error_of(recipes().at("linear"), folder / "a/b/out", settings), "");
  EXPECT_EQ(list(folder.path()), Names{});
}

// Factors that are not finite are met while merging; nothing of that run blocks the next.
TEST(Target, AFailedRunIsInNobodysWay) {
  Folder folder;
  std::filesystem::copy(example("adapters/python-lora"), folder / "bad");
  const std::string weights = folder / "bad/adapter_model.safetensors";
  std::string bytes = read_file(weights);
  for (std::size_t i = bytes.size() - 64; i < bytes.size(); ++i) bytes[i] = '\xff';
  write_file(weights, bytes);
  const std::string recipe =
      "models: [{model: './models/base+" + folder / "bad" + "'}]\nmerge_method: passthrough\n";
  EXPECT_THROW(run_merge(recipe, folder / "out", small()), Error);
  EXPECT_EQ(list(folder.path()), Names{"bad"});
}

TEST(Resume, OfAFinishedFolderIsDoneAndOfAnotherIsRefused) {
  Folder folder;
  const std::string out = folder / "out";
  std::filesystem::copy(example("models"), folder / "models",
                        std::filesystem::copy_options::recursive);
  Settings settings = small(false, true);
  settings.plan.root = folder.path();
  EXPECT_FALSE(run_merge(recipes().at("linear"), out, settings).complete);
  const auto before = fingerprint(out);
  for (const bool force : {false, true}) {
    settings.merge.force = force;
    const Report again = run_merge(recipes().at("linear"), out, settings);
    EXPECT_TRUE(again.complete);
    EXPECT_EQ(again.resumed, again.tensors);
    EXPECT_EQ(again.bytes_read + again.bytes_written, 0U);
  }
  settings.merge.force = false;
  EXPECT_SAYS(error_of(recipes().at("ties"), out, settings), "--force");
  Settings other = settings;
  other.plan.shard_bytes = 200'000;
  EXPECT_SAYS(error_of(recipes().at("linear"), out, other), "--force");
  // Another model under the same name.
  std::filesystem::copy_file(folder / "models/c/model.safetensors",
                             folder / "models/python/model.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_SAYS(error_of(recipes().at("linear"), out, settings), "--force");
  EXPECT_EQ(fingerprint(out), before);
  settings.merge.force = true;
  EXPECT_FALSE(run_merge(recipes().at("linear"), out, settings).complete);
  EXPECT_NE(fingerprint(out), before);
}

// Everything that can change a byte, each alone: a merge that broke off does not go on.
TEST(Resume, TakesNothingOverFromAnotherJob) {
  Folder folder;
  for (const char* root : {"one", "two"}) {
    std::filesystem::create_directory(folder / root);
    std::filesystem::copy(example("models"), folder / root + "/models",
                          std::filesystem::copy_options::recursive);
    std::filesystem::copy(example("adapters"), folder / root + "/adapters",
                          std::filesystem::copy_options::recursive);
  }
  const std::string recipe =
      "models: [{model: models/base+adapters/prose-lora-patterns}, {model: models/chat}]\n"
      "merge_method: linear\nparameters: {weight: 0.5}\ntokenizer_source: models/chat\n";
  const auto rewrite = [](const std::string& path, char from, char to) {
    std::string text = read_file(path);
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << path;
    text[at] = to;
    std::ofstream(path, std::ios::binary) << text;
  };
  const std::string one = folder / "one/";
  using Change = std::function<void(std::string&, Settings&)>;
  const std::vector<std::pair<const char*, Change>> changes = {
      {"recipe", [](std::string& text, Settings&) { text += "# other\n"; }},
      {"seed", [](std::string&, Settings& s) { s.plan.seed = 7; }},
      {"type", [](std::string&, Settings& s) { s.plan.dtype = "float16"; }},
      {"shards", [](std::string&, Settings& s) { s.plan.shard_bytes = 90'000; }},
      {"hashes", [](std::string&, Settings& s) { s.merge.hash = false; }},
      {"card", [](std::string&, Settings& s) { s.plan.model_card = false; }},
      {"root", [&](std::string&, Settings& s) { s.plan.root = folder / "two"; }},
      {"weights",
       [&](std::string&, Settings&) {
         const std::string path = one + "models/base/model.safetensors";
         std::string bytes = read_file(path);
         bytes.back() = static_cast<char>(bytes.back() ^ 1);
         std::ofstream(path, std::ios::binary) << bytes;
       }},
      {"adapter",
       [&](std::string&, Settings&) {
         rewrite(one + "adapters/prose-lora-patterns/adapter_config.json", '\n', ' ');
       }},
      {"adapter's weights",
       [&](std::string&, Settings&) {
         const std::string path = one + "adapters/prose-lora-patterns/adapter_model.safetensors";
         std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now());
       }},
      {"tokenizer",
       [&](std::string&, Settings&) { rewrite(one + "models/chat/tokenizer.json", '\n', ' '); }},
      {"config",
       [&](std::string&, Settings&) { rewrite(one + "models/chat/config.json", '\n', ' '); }},
      {"same bytes in another file",
       [&](std::string&, Settings&) {
         const std::string path = one + "models/base/model.safetensors";
         std::filesystem::rename(path, path + ".moved");
         std::filesystem::copy_file(path + ".moved", path);
         std::filesystem::remove(path + ".moved");
       }},
  };
  for (const auto& [what, change] : changes) {
    const std::string out = folder / "out";
    Settings settings = small();
    settings.plan.root = folder / "one";
    broken_off(recipe, out, settings);
    const auto left = fingerprint(folder / ".out.partial");
    std::string text = recipe;
    Settings other = settings;
    other.merge.resume = true;
    change(text, other);
    const std::string said = error_of(text, out, other);
    EXPECT_NE(said.find("another merge"), std::string::npos) << what << ": " << said;
    if (std::string(what) == "tokenizer") {
      EXPECT_SAYS(said, "models/chat/tokenizer.json changed since then");
    }
    EXPECT_EQ(fingerprint(folder / ".out.partial"), left) << what;
    other.merge.force = true;
    other.merge.resume = false;
    run_merge(text, out, other);
    EXPECT_EQ(list(folder.path()), (Names{"one", "out", "two"})) << what;
    std::filesystem::remove_all(out);
  }
}

TEST(Resume, ChecksTheBytesThatItKeepsAndTheNamesBesideThem) {
  Folder folder;
  const std::string out = folder / "out", partial = folder / ".out.partial";
  const std::string& recipe = recipes().at("linear");
  const auto refused = [&](int code, const std::string& part) {
    const auto left = fingerprint(partial);
    try {
      run_merge(recipe, out, small(false, true));
      ADD_FAILURE() << "resumed: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(exit_code(error.code()), code) << error.what();
      EXPECT_SAYS(error.what(), part);
    }
    EXPECT_EQ(fingerprint(partial), left);
    EXPECT_FALSE(std::filesystem::exists(out));
  };
  broken_off(recipe, out, small());
  std::filesystem::copy(partial, folder / "saved");
  const std::string journal = partial + "/journal.jsonl", shard = partial + "/" + list(partial)[1];
  const std::string lines = read_file(journal), bytes = read_file(shard);
  const auto put = [](const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  };
  // A bit of a header, and one of a tensor.
  for (const std::size_t at : {std::size_t{20}, bytes.size() - 1}) {
    std::string other = bytes;
    other[at] = static_cast<char>(other[at] ^ 1);
    put(shard, other);
    refused(3, "--force");
  }
  put(shard, bytes + "x");
  refused(3, "expected");
  put(shard, bytes);
  put(partial + "/evil.py", "x");
  refused(2, "evil.py");
  EXPECT_SAYS(error_of(recipe, out, small(true)), "evil.py");
  std::filesystem::remove(partial + "/evil.py");
  // Journals: every bit of every line but the last byte counts.
  std::string deep = "{\"job\":1,\"entry\":" + std::string(100'000, '[') + "\n";
  for (const std::string& text :
       {lines + "{\"job\":1,\"entry\":{}}\n", lines + deep, "{\"fingerprint\":5}\n" + lines,
        std::string("thesis\n"), lines.substr(10)}) {
    put(journal, text);
    refused(3, "journal.jsonl");
  }
  for (std::size_t at = 0; at < lines.size(); at += 97) {
    std::string other = lines;
    other[at] = static_cast<char>(other[at] ^ 4);
    put(journal, other);
    refused(3, "damaged");
  }
  // Cut off anywhere is an interruption: what is whole before it counts.
  std::filesystem::remove_all(partial);
  for (std::size_t at = lines.find('\n') + 1; at < lines.size(); at += 311) {
    std::filesystem::remove_all(out);
    std::filesystem::copy(folder / "saved", partial);
    put(journal, lines.substr(0, at));
    EXPECT_FALSE(run_merge(recipe, out, small(false, true)).complete);
    EXPECT_EQ(list(folder.path()), (Names{"out", "saved"}));
  }
}

// The first line is written before there is any shard.
TEST(Resume, AFirstLineThatWasCutOffIsAMergeThatHadNotBegun) {
  Folder folder;
  const std::string out = folder / "out", partial = folder / ".out.partial";
  for (const char* line : {"", "{\"format\":\"ingot-jour"}) {
    for (const Settings& settings : {small(), small(true), small(false, true)}) {
      write_file(partial + "/journal.jsonl", line);
      run_merge(recipes().at("linear"), out, settings);
      EXPECT_EQ(list(folder.path()), Names{"out"});
      std::filesystem::remove_all(out);
    }
    write_file(partial + "/journal.jsonl", line);
    write_file(partial + "/model.safetensors", "precious");
    EXPECT_SAYS(error_of(recipes().at("linear"), out, small(true)), "model.safetensors");
    EXPECT_EQ(read_file(partial + "/model.safetensors"), "precious");
    std::filesystem::remove_all(partial);
  }
}

TEST(Resume, CountsItsOwnBytesOnly) {
  Folder folder;
  broken_off(recipes().at("linear"), folder / "out", small());
  const Report rest = run_merge(recipes().at("linear"), folder / "out", small(false, true));
  const Report whole = run_merge(recipes().at("linear"), folder / "whole", small());
  EXPECT_GT(rest.resumed, 0U);
  EXPECT_LT(rest.bytes_read, whole.bytes_read);
  EXPECT_LT(rest.bytes_written, whole.bytes_written);
  EXPECT_GT(rest.bytes_read, 0U);
}

TEST(Target, AMountPointIsRefusedBeforeTheWork) {
  Folder folder;
  std::filesystem::create_directory(folder / "out");
  if (::mount("none", (folder / "out").c_str(), "tmpfs", 0, nullptr) != 0) {
    GTEST_SKIP() << "only root may mount";
  }
  EXPECT_SAYS(error_of(recipes().at("linear"), folder / "out", small(true)), "mount point");
  EXPECT_EQ(list(folder.path()), Names{"out"});
  ::umount((folder / "out").c_str());
}

// A folder of an overlay's lower layer can be neither exchanged nor moved.
TEST(Target, AFolderOfAContainersImageIsReplaced) {
  Folder folder;
  for (const char* name : {"lower", "top", "view"}) {
    std::filesystem::create_directory(folder / name);
  }
  run_merge(recipes().at("linear"), folder / "lower/out", small());
  if (::mount("none", (folder / "top").c_str(), "tmpfs", 0, nullptr) != 0) {
    GTEST_SKIP() << "only root may mount";
  }
  for (const char* name : {"upper", "work"}) {
    std::filesystem::create_directory(folder / "top" + "/" + name);
  }
  const std::string options = "lowerdir=" + folder / "lower" + ",upperdir=" + folder / "top/upper" +
                              ",workdir=" + folder / "top/work";
  const bool mounted =
      ::mount("overlay", (folder / "view").c_str(), "overlay", 0, options.c_str()) == 0;
  if (mounted) {
    run_merge(recipes().at("ties"), folder / "view/out", small(true));
    run_merge(recipes().at("ties"), folder / "whole", small());
    EXPECT_EQ(fingerprint(folder / "view/out"), fingerprint(folder / "whole"));
    EXPECT_EQ(list(folder / "view"), Names{"out"});
    ::umount((folder / "view").c_str());
  }
  ::umount((folder / "top").c_str());
  if (!mounted) GTEST_SKIP() << "no overlay can be mounted here";
}

}  // namespace
}  // namespace ingot::test

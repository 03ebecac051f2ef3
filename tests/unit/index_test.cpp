#include "store/index.hpp"

#include <algorithm>

#include <gtest/gtest.h>
#include <unistd.h>

#include "ingot/error.hpp"
#include "store/header.hpp"
#include "support.hpp"

namespace ingot {
namespace {

// A safetensors file of one-byte tensors.
std::string weights(const std::vector<std::string>& names) {
  std::vector<TensorInfo> tensors;
  for (const std::string& name : names) tensors.push_back({name, Dtype::u8, {1}});
  return print_header(tensors, {}) + std::string(names.size(), 'w');
}

std::vector<std::string> names_of(const Checkpoint& model) {
  std::vector<std::string> names;
  for (const Entry& entry : model.entries()) names.push_back(entry.info.name);
  return names;
}

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

TEST(Natural, DigitRunsCompareByValue) {
  EXPECT_TRUE(natural_less("layers.2.w", "layers.10.w"));
  EXPECT_FALSE(natural_less("layers.10.w", "layers.2.w"));
  EXPECT_TRUE(natural_less("a", "b"));
  EXPECT_TRUE(natural_less("a", "a1"));
  EXPECT_TRUE(natural_less("a.9", "a.b"));
  EXPECT_TRUE(natural_less("x99999999999999999999998", "x99999999999999999999999"));
  EXPECT_TRUE(natural_less("x9", "x99999999999999999999999"));
}

TEST(Natural, IsAStrictTotalOrder) {
  const std::vector<std::string> names{"",    "0",   "00",   "01",   "1",    "1a", "01a",
                                       "2",   "10",  "a",    "a0",   "a00",  "a1", "a01b",
                                       "a1b", "a.1", "a.01", "\xff", "a\xff"};
  for (const std::string& a : names) {
    EXPECT_FALSE(natural_less(a, a)) << a;
    for (const std::string& b : names) {
      if (a != b) {
        EXPECT_NE(natural_less(a, b), natural_less(b, a)) << a << " " << b;
      }
      for (const std::string& c : names) {
        if (natural_less(a, b) && natural_less(b, c)) {
          EXPECT_TRUE(natural_less(a, c)) << a << " " << b << " " << c;
        }
      }
    }
  }
}

TEST(Checkpoint, AFolderWithOneFileGivesItsTensorsByName) {
  const auto disk = system_disk();
  const Checkpoint model = Checkpoint::open(*disk, test::example("models/base") + "/", "base");
  EXPECT_EQ(model.path(), test::example("models/base"));
  EXPECT_EQ(model.shown(), "base");
  EXPECT_EQ(model.file_count(), 1U);
  EXPECT_FALSE(model.pickled());
  EXPECT_NE(model.config().find("\"LlamaForCausalLM\""), std::string::npos);
  EXPECT_TRUE(
      std::is_sorted(model.entries().begin(), model.entries().end(),
                     [](const Entry& a, const Entry& b) { return a.info.name < b.info.name; }));
  const Entry* head = model.find("lm_head.weight");
  ASSERT_NE(head, nullptr);
  EXPECT_EQ(head->info.shape, (Shape{509, 64}));
  EXPECT_EQ(model.find("lm_head"), nullptr);
  EXPECT_EQ(model.find(""), nullptr);
  EXPECT_EQ(model.find("zzz"), nullptr);
}

TEST(Checkpoint, ShardsGiveTheSameBytesAsOneFile) {
  const auto disk = system_disk();
  const Checkpoint one = Checkpoint::open(*disk, test::example("models/python"), "one");
  const Checkpoint many = Checkpoint::open(*disk, test::example("models/python-sharded"), "many");
  EXPECT_EQ(many.file_count(), 4U);
  ASSERT_EQ(names_of(one), names_of(many));
  for (std::size_t i = 0; i < one.entries().size(); ++i) {
    const Entry& a = one.entries()[i];
    const Entry& b = many.entries()[i];
    std::vector<std::byte> x(a.info.bytes());
    std::vector<std::byte> y(b.info.bytes());
    read_exact(one.file(a.file), a.offset, x);
    read_exact(many.file(b.file), b.offset, y);
    EXPECT_EQ(x, y) << a.info.name;
  }
}

TEST(Checkpoint, APyTorchFileGivesTheSameBytesAsSafetensors) {
  const auto disk = system_disk();
  const Checkpoint one = Checkpoint::open(*disk, test::example("models/python"), "one");
  const Checkpoint bin = Checkpoint::open(*disk, test::example("models/python-bin"), "bin");
  EXPECT_TRUE(bin.pickled());
  ASSERT_EQ(names_of(one), names_of(bin));
  for (std::size_t i = 0; i < one.entries().size(); ++i) {
    const Entry& a = one.entries()[i];
    const Entry& b = bin.entries()[i];
    ASSERT_TRUE(b.strides.empty()) << b.info.name;
    std::vector<std::byte> x(a.info.bytes());
    std::vector<std::byte> y(b.info.bytes());
    read_exact(one.file(a.file), a.offset, x);
    read_exact(bin.file(b.file), b.offset, y);
    EXPECT_EQ(x, y) << a.info.name;
  }
}

TEST(Checkpoint, PyTorchShardsAreFoundThroughTheirIndex) {
  const test::Folder folder;
  const auto disk = system_disk();
  const std::string bin = test::read_file(test::example("models/python-bin/pytorch_model.bin"));
  test::write_file(folder / "pytorch_model-1.bin", bin);
  std::string map;
  for (const std::string& name :
       names_of(Checkpoint::open(*disk, folder / "pytorch_model-1.bin", "m"))) {
    map.append(map.empty() ? "\"" : ",\"").append(name).append(R"(":"pytorch_model-1.bin")");
  }
  test::write_file(folder / "pytorch_model.bin.index.json", R"({"weight_map":{)" + map + "}}");
  const Checkpoint model = Checkpoint::open(*disk, folder.path(), "m");
  EXPECT_TRUE(model.pickled());
  EXPECT_FALSE(model.entries().empty());
}

TEST(Checkpoint, ShardsStandInNaturalOrder) {
  const test::Folder folder;
  test::write_file(folder / "m-10.safetensors", weights({"a"}));
  test::write_file(folder / "m-9.safetensors", weights({"b"}));
  test::write_file(folder / "model.safetensors.index.json",
                   R"({"weight_map":{"a":"m-10.safetensors","b":"m-9.safetensors"}})");
  const Checkpoint model = Checkpoint::open(*system_disk(), folder.path(), "m");
  EXPECT_EQ(base_name(model.file(0).path()), "m-9.safetensors");
  EXPECT_EQ(model.find("a")->file, 1U);
  EXPECT_EQ(model.find("b")->file, 0U);
  EXPECT_EQ(model.config(), "");
}

TEST(Checkpoint, AnIndexOfTheSingleFileBesideItIsThatFile) {
  const test::Folder folder;
  test::write_file(folder / "model.safetensors", weights({"a"}));
  test::write_file(folder / "model.safetensors.index.json",
                   R"({"weight_map":{"a":"model.safetensors"}})");
  const Checkpoint model = Checkpoint::open(*system_disk(), folder.path(), "m");
  EXPECT_EQ(names_of(model), std::vector<std::string>{"a"});
  EXPECT_TRUE(model.warnings().empty());
}

TEST(Checkpoint, AnIndexWhoseShardsAreGoneGivesWayToTheSingleFile) {
  const test::Folder folder;
  test::write_file(folder / "model.safetensors", weights({"single"}));
  test::write_file(folder / "model.safetensors.index.json",
                   R"({"weight_map":{"sharded":"gone.safetensors"}})");
  const Checkpoint model = Checkpoint::open(*system_disk(), folder.path(), "m");
  EXPECT_EQ(names_of(model), std::vector<std::string>{"single"});
  ASSERT_EQ(model.warnings().size(), 1U);
  EXPECT_NE(model.warnings()[0].find("lists 'gone.safetensors', which is not there"),
            std::string::npos);
  EXPECT_FALSE(model.chosen());
}

TEST(Checkpoint, FilesOfTorchSaveAreReadUnderAnyOfTheirEndings) {
  const test::Folder folder;
  const auto disk = system_disk();
  const std::string bin = test::read_file(test::example("models/python-bin/pytorch_model.bin"));
  test::write_file(folder / "m.bin", bin);
  for (const char* name : {"m.pt", "m.pth"}) {
    test::write_file(folder / name, bin);
    const Checkpoint model = Checkpoint::open(*disk, folder / name, "m");
    EXPECT_TRUE(model.pickled());
    EXPECT_EQ(names_of(model), names_of(Checkpoint::open(*disk, folder / "m.bin", "m")));
  }
}

TEST(Checkpoint, SafetensorsWinOverBinAndOfAnIndexAndTheFileOfItsNameTheUserChooses) {
  const test::Folder folder;
  const auto disk = system_disk();
  test::write_file(folder / "pytorch_model.bin", "not even a zip");
  test::write_file(folder / "model.safetensors", weights({"single"}));
  EXPECT_EQ(names_of(Checkpoint::open(*disk, folder.path(), "m")),
            std::vector<std::string>{"single"});
  test::write_file(folder / "s.safetensors", weights({"sharded"}));
  test::write_file(folder / "model.safetensors.index.json",
                   R"({"weight_map":{"sharded":"s.safetensors"}})");
  try {
    (void)Checkpoint::open(*disk, folder.path(), "m");
    ADD_FAILURE() << "one of two sets of weights was chosen";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::format);
    EXPECT_NE(error.message().find("has both model.safetensors.index.json and model.safetensors"),
              std::string::npos);
  }
  for (const auto& [prefer, name] :
       {std::pair(Prefer::file, "single"), {Prefer::index, "sharded"}}) {
    const Checkpoint model = Checkpoint::open(*disk, folder.path(), "m", prefer);
    EXPECT_EQ(names_of(model), std::vector<std::string>{name});
    EXPECT_TRUE(model.chosen());
    ASSERT_EQ(model.warnings().size(), 1U);
  }
  EXPECT_EQ(names_of(Checkpoint::open(*disk, folder / "model.safetensors", "m")),
            std::vector<std::string>{"single"});
  EXPECT_EQ(names_of(Checkpoint::open(*disk, folder / "model.safetensors.index.json", "m")),
            std::vector<std::string>{"sharded"});
}

TEST(Checkpoint, AFileOfAnyNameOrAnIndexFileMayBeNamedItself) {
  const test::Folder folder;
  const auto disk = system_disk();
  test::write_file(folder / "adapter_model.safetensors", weights({"a"}));
  test::write_file(folder / "config.json", "{}");
  const Checkpoint one = Checkpoint::open(*disk, folder / "adapter_model.safetensors", "m");
  EXPECT_EQ(one.path(), folder.path());
  EXPECT_EQ(one.config(), "{}");
  EXPECT_EQ(names_of(one), std::vector<std::string>{"a"});
  test::write_file(folder / "v2.safetensors.index.json",
                   R"({"weight_map":{"a":"adapter_model.safetensors"}})");
  EXPECT_EQ(names_of(Checkpoint::open(*disk, folder / "v2.safetensors.index.json", "m")),
            std::vector<std::string>{"a"});
  ASSERT_EQ(::symlink("adapter_model.safetensors", (folder / "link.safetensors").c_str()), 0);
  EXPECT_EQ(names_of(Checkpoint::open(*disk, folder / "link.safetensors", "m")),
            std::vector<std::string>{"a"});
}

TEST(Checkpoint, TheHubCacheWithItsLinksToBlobsIsRead) {
  const test::Folder folder;
  const std::string repository = folder / "models--org--name";
  test::write_file(repository + "/blobs/0123abcd", weights({"a"}));
  test::write_file(repository + "/blobs/4567ef01", R"({"hidden_size": 1})");
  test::write_file(repository + "/snapshots/rev/README.md", "");
  const std::string snapshot = repository + "/snapshots/rev";
  ASSERT_EQ(::symlink("../../blobs/0123abcd", (snapshot + "/model.safetensors").c_str()), 0);
  ASSERT_EQ(::symlink("../../blobs/4567ef01", (snapshot + "/config.json").c_str()), 0);
  const Checkpoint model = Checkpoint::open(*system_disk(), snapshot, "org/name");
  EXPECT_EQ(names_of(model), std::vector<std::string>{"a"});
  EXPECT_EQ(model.config(), R"({"hidden_size": 1})");
  EXPECT_EQ(base_name(model.file(0).path()), "model.safetensors");
}

TEST(Checkpoint, AFolderWithoutWeightsSaysWhatWasLookedForAndWhatIsThere) {
  const test::Folder folder;
  const auto disk = system_disk();
  const auto message = [&] {
    try {
      (void)Checkpoint::open(*disk, folder.path(), "m");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::missing);
      return error.message();
    }
    return std::string("no error");
  };
  EXPECT_NE(message().find("none of model.safetensors.index.json, model.safetensors, "),
            std::string::npos);
  EXPECT_NE(message().find("found no weight files"), std::string::npos);
  test::write_file(folder / "model-q4.gguf", "");
  EXPECT_NE(message().find("found 'model-q4.gguf'"), std::string::npos) << message();
  try {
    (void)Checkpoint::open(*disk, folder / "absent", "org/absent");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::missing);
    EXPECT_NE(error.message().find("org/absent"), std::string::npos);
  }
}

TEST(Checkpoint, AFileThatIsNeitherKindIsRefused) {
  const test::Folder folder;
  test::write_file(folder / "model.gguf", "GGUF");
  EXPECT_THROW((void)Checkpoint::open(*system_disk(), folder / "model.gguf", "m"), Error);
}

TEST(Checkpoint, MovesLeaveTensorsAndFilesInPlace) {
  Checkpoint model = Checkpoint::open(*system_disk(), test::example("models/base"), "base");
  const Entry* entry = &model.entries().front();
  const Checkpoint moved = std::move(model);
  EXPECT_EQ(&moved.entries().front(), entry);
  EXPECT_GT(moved.file(entry->file).size(), 0U);
}

}  // namespace
}  // namespace ingot

// The reader of `.bin` checkpoints: finds every tensor of what torch writes, and nothing in a file
// makes it do anything else.
#include "store/pickle.hpp"

#include <gtest/gtest.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <map>

#include "fuzz/memory.hpp"
#include "hostile/archive.hpp"
#include "ingot/error.hpp"
#include "support.hpp"

namespace ingot {
namespace {

using test::checkpoint;
using test::counts;
using test::dict;
using test::global;
using test::integer;
using test::kFalse;
using test::kProto;
using test::little;
using test::MemoryFile;
using test::ordered;
using test::pickled;
using test::storage;
using test::tensor;
using test::text;
using test::tuple;

std::vector<Entry> read(std::string_view bytes) {
  MemoryFile file("model.bin", bytes);
  return read_pickle(file, 3);
}

// One sentence that names the file and holds `phrase`.
testing::AssertionResult refuses(std::string_view bytes, const std::string& phrase) {
  try {
    static_cast<void>(read(bytes));
  } catch (const Error& e) {
    const std::string& said = e.message();
    if (e.code() == Code::format && said.starts_with("model.bin: ") &&
        said.find(phrase) != std::string::npos && said.find('\n') == std::string::npos) {
      return testing::AssertionSuccess();
    }
    return testing::AssertionFailure() << "refused otherwise: " << said;
  }
  return testing::AssertionFailure() << "accepted";
}

// A storage of 24 bytes, and a pickle whose one tensor is `value`.
const test::Members kStorage{{"0", std::string(24, '\x3f')}};
std::string with(const std::string& value) {
  return checkpoint(pickled(dict({{"w", value}})), kStorage);
}
// A pickle of arbitrary opcodes as the value of an entry beside the weights, where anything the
// closed list allows is left out.
std::string beside(const std::string& opcodes) {
  return checkpoint(
      pickled(dict({{"state_dict", dict({{"w", tensor(storage("0", 6), 0, {6}, {1})}})},
                    {"other", opcodes}})),
      kStorage);
}

const std::string kTensor = tensor(storage("0", 6), 0, {2, 3}, {3, 1});

// ---- what torch writes --------------------------------------------------------------------------

// The tensors of a safetensors file, by the format's own definition.
std::map<std::string, std::pair<TensorInfo, std::string>> safetensors(const std::string& bytes) {
  std::uint64_t size = 0;
  for (std::size_t i = 8; i-- > 0;) size = size << 8 | static_cast<unsigned char>(bytes[i]);
  const auto header = nlohmann::json::parse(bytes.substr(8, size));
  std::map<std::string, std::pair<TensorInfo, std::string>> out;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    TensorInfo info{name, dtype_of_name(value["dtype"].get<std::string>()).value(), {}};
    for (const std::uint64_t extent : value["shape"]) EXPECT_TRUE(info.shape.push(extent));
    const std::uint64_t from = value["data_offsets"][0];
    const std::uint64_t to = value["data_offsets"][1];
    out[name] = {info, bytes.substr(8 + size + from, to - from)};
  }
  return out;
}

TEST(Pickle, GivesTheSameTensorsAsTheSafetensorsFileOfTheSameModel) {
  const auto expected =
      safetensors(test::read_file(test::example("models/python/model.safetensors")));
  const std::string bytes = test::read_file(test::example("models/python-bin/pytorch_model.bin"));
  const std::vector<Entry> entries = read(bytes);
  ASSERT_EQ(entries.size(), expected.size());
  for (const Entry& entry : entries) {
    SCOPED_TRACE(entry.info.name);
    ASSERT_TRUE(expected.contains(entry.info.name));
    const auto& [info, data] = expected.at(entry.info.name);
    EXPECT_EQ(entry.info.dtype, info.dtype);
    EXPECT_EQ(entry.info.shape, info.shape);
    EXPECT_TRUE(entry.strides.empty());
    EXPECT_EQ(entry.file, 3U);
    EXPECT_TRUE(bytes.substr(entry.offset, entry.info.bytes()) == data);
  }
}

// The elements of a tensor in row-major order, as hexadecimal bytes.
std::string elements(const std::string& file, const Entry& entry) {
  const Shape& shape = entry.info.shape;
  const std::uint64_t width = bits(entry.info.dtype) / 8;
  std::string out;
  for (std::uint64_t i = 0; i < entry.info.count(); ++i) {
    std::uint64_t at = entry.strides.empty() ? i : 0;
    std::uint64_t rest = i;
    for (int axis = shape.rank(); axis-- > 0 && !entry.strides.empty(); rest /= shape[axis]) {
      at += rest % shape[axis] * entry.strides[static_cast<std::size_t>(axis)];
    }
    for (const char c : file.substr(entry.offset + at * width, width)) {
      out += fmt::format("{:02x}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

// What several versions of torch saved, as they read it back themselves (saved/make.py).
TEST(Pickle, GivesWhatTorchReadsFromItsOwnFilesOrTheReasonWhyNot) {
  const std::string folder = std::string(INGOT_SOURCE) + "/tests/hostile/saved/";
  const auto expected = nlohmann::json::parse(test::read_file(folder + "expected.json"));
  ASSERT_EQ(expected.size(), 18U);
  for (const auto& [file, given] : expected.items()) {
    SCOPED_TRACE(file);
    const std::string bytes = test::read_file(folder + file);
    if (given.contains("refused")) {
      EXPECT_TRUE(refuses(bytes, given["refused"]));
      continue;
    }
    std::map<std::string, Entry> entries;
    for (const Entry& entry : read(bytes)) entries[entry.info.name] = entry;
    EXPECT_EQ(entries.size(), given["tensors"].size());
    for (const auto& [name, tensor] : given["tensors"].items()) {
      SCOPED_TRACE(name);
      ASSERT_TRUE(entries.contains(name));
      const Entry& entry = entries[name];
      const auto shape = tensor["shape"].get<std::vector<std::uint64_t>>();
      EXPECT_EQ(word(entry.info.dtype), tensor["dtype"].get<std::string>());
      EXPECT_EQ(entry.info.shape.text(), fmt::format("[{}]", fmt::join(shape, ", ")));
      EXPECT_EQ(elements(bytes, entry), tensor["hex"].get<std::string>());
    }
  }
}

TEST(Pickle, ReadsHeadersOnly) {
  const std::string bytes =
      checkpoint(pickled(dict({{"w", tensor(storage("0", 1 << 20), 0, {1 << 20}, {1})}})),
                 {{"0", std::string(std::size_t{4} << 20, 'w')}});
  MemoryFile file("model.bin", bytes);
  EXPECT_EQ(read_pickle(file, 0).size(), 1U);
  EXPECT_LT(file.bytes_read(), 4096U);
}

TEST(Pickle, EntriesAreSortedByName) {
  const std::vector<Entry> entries =
      read(checkpoint(pickled(dict({{"b", kTensor}, {"c", kTensor}, {"a", kTensor}})), kStorage));
  ASSERT_EQ(entries.size(), 3U);
  EXPECT_EQ(entries[0].info.name, "a");
  EXPECT_EQ(entries[2].info.name, "c");
  // Three names for one storage share its bytes.
  EXPECT_EQ(entries[0].offset, entries[2].offset);
}

TEST(Pickle, ViewsKeepTheirStridesAndOffset) {
  const std::string bytes = with(tensor(storage("0", 6), 1, {2, 2}, {1, 3}));
  const Entry entry = read(bytes).at(0);
  EXPECT_EQ(entry.strides, (std::vector<std::uint64_t>{1, 3}));
  EXPECT_EQ(entry.info.shape, (Shape{2, 2}));
  EXPECT_EQ(bytes.substr(entry.offset - 4, 24), kStorage[0].second);
}

TEST(Pickle, StridesOfAxesWithoutNeighboursDoNotMatter) {
  EXPECT_TRUE(
      read(with(tensor(storage("0", 6), 0, {1, 2, 1, 3}, {77, 3, 0, 1}))).at(0).strides.empty());
  EXPECT_FALSE(read(with(tensor(storage("0", 6), 0, {3, 2}, {1, 3}))).at(0).strides.empty());
  EXPECT_FALSE(read(with(tensor(storage("0", 6), 0, {3}, {2}))).at(0).strides.empty());
}

TEST(Pickle, ScalarsHaveOneElementAndEmptyTensorsNone) {
  const Entry scalar = read(with(tensor(storage("0", 6), 5, {}, {}))).at(0);
  EXPECT_EQ(scalar.info.shape.rank(), 0);
  EXPECT_EQ(scalar.info.bytes(), 4U);
  const Entry empty = read(with(tensor(storage("0", 6), 99, {0, 7}, {7, 1}))).at(0);
  EXPECT_EQ(empty.info.count(), 0U);
  EXPECT_TRUE(empty.strides.empty());
}

TEST(Pickle, EveryStorageTypeHasItsElementType) {
  const std::vector<std::pair<std::string, Dtype>> types{
      {"FloatStorage", Dtype::f32},       {"HalfStorage", Dtype::f16},
      {"BFloat16Storage", Dtype::bf16},   {"DoubleStorage", Dtype::f64},
      {"LongStorage", Dtype::i64},        {"IntStorage", Dtype::i32},
      {"ShortStorage", Dtype::i16},       {"CharStorage", Dtype::i8},
      {"ByteStorage", Dtype::u8},         {"BoolStorage", Dtype::boolean},
      {"ComplexFloatStorage", Dtype::c64}};
  for (const auto& [type, dtype] : types) {
    const std::int64_t count = 24 * 8 / bits(dtype);
    EXPECT_EQ(read(with(tensor(storage("0", count, type), 0, {count}, {1}))).at(0).info.dtype,
              dtype);
    EXPECT_TRUE(refuses(with(tensor(storage("0", count + 1, type), 0, {1}, {1})), "but it has 24"));
  }
  EXPECT_TRUE(
      refuses(with(tensor(storage("0", 24, "QInt8Storage"), 0, {1}, {1})), "'torch.QInt8Storage'"));
}

std::string untyped(const std::string& dtype, std::int64_t offset, std::int64_t count) {
  const std::string bytes = tuple({text("storage"), global("torch.storage", "UntypedStorage"),
                                   text("0"), text("cpu"), integer(24)}) +
                            "Q";
  return global("torch._utils", "_rebuild_tensor_v3") +
         tuple({bytes, integer(offset), counts({count}), counts({1}), kFalse, ordered(), dtype}) +
         "R";
}

TEST(Pickle, UntypedStoragesTakeTheTensorsElementType) {
  for (const auto& [name, dtype] :
       std::vector<std::pair<std::string, Dtype>>{{"float8_e4m3fn", Dtype::f8_e4m3},
                                                  {"float8_e5m2", Dtype::f8_e5m2},
                                                  {"uint16", Dtype::u16},
                                                  {"uint32", Dtype::u32},
                                                  {"uint64", Dtype::u64},
                                                  {"float8_e8m0fnu", Dtype::f8_e8m0}}) {
    const std::int64_t count = 24 * 8 / bits(dtype);
    const std::string bytes = with(untyped(global("torch", name), 1, count - 1));
    const Entry entry = read(bytes).at(0);
    EXPECT_EQ(entry.info.dtype, dtype);
    EXPECT_EQ(bytes[entry.offset], '\x3f');
    EXPECT_TRUE(refuses(with(untyped(global("torch", name), 1, count)), "reaches element"));
  }
  EXPECT_TRUE(refuses(with(untyped(global("torch", "float8_e4m3fnuz"), 0, 1)), "float8_e4m3fnuz"));
  EXPECT_TRUE(refuses(with(untyped(text("float32"), 0, 1)), "without an element type"));
  EXPECT_TRUE(
      refuses(with(untyped(global("torch", "FloatStorage"), 0, 1)), "without an element type"));
}

TEST(Pickle, ParametersAreTheirTensors) {
  const std::string plain =
      global("torch._utils", "_rebuild_parameter") + tuple({kTensor, "\x88", ordered()}) + "R";
  const std::string stateful = global("torch._utils", "_rebuild_parameter_with_state") +
                               tuple({kTensor, "\x88", ordered(), dict({{"tag", "N"}})}) + "R";
  const std::string first = global("torch._utils", "_rebuild_tensor") +
                            tuple({storage("0", 6), integer(0), counts({2, 3}), counts({3, 1})}) +
                            "R";
  const Entry expected = read(with(kTensor)).at(0);
  for (const std::string& value : {plain, stateful, first}) {
    const std::string bytes = with(value);
    const Entry entry = read(bytes).at(0);
    EXPECT_EQ(entry.info.shape, expected.info.shape);
    EXPECT_EQ(bytes.substr(entry.offset, 24), kStorage[0].second);
  }
}

TEST(Pickle, AnOrderedDictionaryWithItsMetadataIsADictionary) {
  const std::string metadata = dict({{"_metadata", ordered()}});
  const std::string items = "(" + text("w") + kTensor + "u";
  EXPECT_EQ(read(checkpoint(pickled(ordered() + items + metadata + "b"), kStorage)).size(), 1U);
  EXPECT_TRUE(
      refuses(checkpoint(pickled(ordered() + items + dict({{"keys", "N"}}) + "b"), kStorage),
              "sets the state of a dictionary"));
}

TEST(Pickle, LaterProtocolsUseFramesMemoizeAndStackGlobal) {
  const auto word = [](const std::string& s) { return "\x8c" + little(s.size(), 1) + s + "\x94"; };
  const std::string body = "}\x94" + word("w") + word("torch._utils") + word("_rebuild_tensor_v2") +
                           "\x93\x94((" + word("storage") + word("torch") + word("FloatStorage") +
                           "\x93\x94" + word("0") + word("cpu") + "K\x06t\x94QM" + little(0, 2) +
                           "K\x02K\x03\x86\x94K\x03K\x01\x86\x94\x89" + word("collections") +
                           word("OrderedDict") + "\x93\x94)R\x94t\x94R\x94s.";
  for (const std::string proto : {"\x80\x04", "\x80\x05"}) {
    const std::string bytes = checkpoint(proto + "\x95" + little(body.size(), 8) + body, kStorage);
    EXPECT_EQ(read(bytes).at(0).info.shape, (Shape{2, 3}));
    EXPECT_TRUE(refuses(checkpoint(proto + "\x95" + little(body.size() + 1, 8) + body, kStorage),
                        "frame of the wrong length"));
    EXPECT_TRUE(refuses(checkpoint(proto + "\x95" + little(~0ULL, 8) + body, kStorage), "frame"));
    EXPECT_TRUE(refuses(checkpoint(proto + "\x95" + little(4, 8) + body, kStorage),
                        "crosses the end of its frame"));
    EXPECT_TRUE(refuses(checkpoint(proto + "\x95" + little(body.size() + 9, 8) + "\x95" +
                                       little(body.size(), 8) + body,
                                   kStorage),
                        "frame of the wrong length"));
  }
}

// ---- wrappers -----------------------------------------------------------------------------------

TEST(PickleWrapper, StateDictAndModelAreOpenedAndTheirNeighboursLeftOut) {
  const std::string weights = dict({{"w", kTensor}});
  const std::string rest = dict({{"lr", "G" + little(0, 8)},
                                 {"steps",
                                  "]K\x01"
                                  "a"}});
  for (const std::string key : {"state_dict", "model"}) {
    const std::vector<Entry> entries = read(checkpoint(
        pickled(dict({{"epoch", "K\x07"}, {"optimizer", rest}, {key, weights}})), kStorage));
    ASSERT_EQ(entries.size(), 1U);
    EXPECT_EQ(entries[0].info.name, "w");
  }
}

TEST(PickleWrapper, ModelIsOpenedOnlyIfItHoldsTensorsOnly) {
  const std::string mixed = dict({{"w", kTensor}, {"n", "K\x01"}});
  EXPECT_TRUE(refuses(checkpoint(pickled(dict({{"model", mixed}})), kStorage),
                      "has a dictionary under 'model' where a tensor is expected"));
  // A tensor may be called so.
  EXPECT_EQ(read(checkpoint(pickled(dict({{"model", kTensor}})), kStorage)).at(0).info.name,
            "model");
}

TEST(PickleWrapper, WhatWouldBeLostOrIsUnclearIsRefused) {
  const std::string weights = dict({{"w", kTensor}});
  EXPECT_TRUE(
      refuses(checkpoint(pickled(dict({{"state_dict", weights}, {"model", weights}})), kStorage),
              "both 'state_dict' and 'model'"));
  EXPECT_TRUE(refuses(
      checkpoint(pickled(dict({{"state_dict", weights}, {"state_dict", weights}})), kStorage),
      "two entries 'state_dict'"));
  EXPECT_TRUE(refuses(
      checkpoint(pickled(dict({{"state_dict", weights}, {"w", kTensor}})), kStorage), "beside it"));
  EXPECT_TRUE(refuses(checkpoint(pickled(dict({{"w", kTensor}, {"epoch", "K\x07"}})), kStorage),
                      "has an integer under 'epoch'"));
  EXPECT_TRUE(refuses(checkpoint(pickled(dict({{"w", kTensor}, {"w", kTensor}})), kStorage),
                      "two tensors with the name 'w'"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}")), "holds no tensors"));
  EXPECT_TRUE(refuses(checkpoint(pickled(kTensor), kStorage), "holds a tensor instead of"));
  EXPECT_TRUE(refuses(checkpoint(pickled("]")), "holds a list instead of"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}K\x01" + kTensor + "s"), kStorage), "by an integer"));
  EXPECT_TRUE(
      refuses(checkpoint(pickled(dict({{"__metadata__", kTensor}})), kStorage), "unusable"));
  EXPECT_TRUE(refuses(checkpoint(pickled(dict({{"a\xff", kTensor}})), kStorage), "'a\xff'"));
  EXPECT_TRUE(
      refuses(checkpoint(pickled(dict({{"\xed\xa0\x80", kTensor}})), kStorage), "unusable"));
  EXPECT_EQ(read(checkpoint(pickled(dict({{"gewicht.\xc3\xa4", kTensor}})), kStorage)).size(), 1U);
}

TEST(PickleWrapper, NumbersOfTrainingProgramsBesideTheWeightsAreHarmless) {
  const std::string dtype = global("numpy", "dtype") + tuple({text("f8"), kFalse, "\x88"}) + "R" +
                            tuple({"K\x03", text("<"), "N", "N", "N", "J\xff\xff\xff\xff",
                                   "J\xff\xff\xff\xff", "K" + little(0, 1)}) +
                            "b";
  const std::string bytes = global("_codecs", "encode") + tuple({text("x"), text("latin1")}) + "R";
  for (const std::string module : {"numpy.core.multiarray", "numpy._core.multiarray"}) {
    EXPECT_EQ(read(beside(global(module, "scalar") + tuple({dtype, bytes}) + "R")).size(), 1U);
  }
  EXPECT_EQ(read(beside(global("torch", "device") + tuple({text("cpu")}) + "R")).size(), 1U);
  EXPECT_EQ(read(beside(global("torch", "Size") + tuple({counts({1, 2})}) + "R")).size(), 1U);
  EXPECT_EQ(read(beside("\x8a\xff" + std::string(255, '\x7f'))).size(), 1U);
  EXPECT_EQ(read(beside("C\x02xy")).size(), 1U);
}

// ---- forbidden ----------------------------------------------------------------------------------

TEST(PickleForbidden, EveryOpcodeOffTheListIsRefusedByName) {
  const std::vector<std::pair<std::string, std::string>> opcodes{
      {"K\x01K\x02"
       "0",
       "POP"},
      {"(K\x01"
       "1",
       "POP_MARK"},
      {"K\x01"
       "2",
       "DUP"},
      {"F1.5\n", "FLOAT"},
      {"I01\n", "INT"},
      {"L5L\n", "LONG"},
      {"P0\n", "PERSID"},
      {"S'x'\n", "STRING"},
      {"T\x01\0\0\0x", "BINSTRING"},
      {"U\x01x", "SHORT_BINSTRING"},
      {"Vx\n", "UNICODE"},
      {"(d", "DICT"},
      {"g0\n", "GET"},
      {"(S'id'\nios\nsystem\n", "STRING"},
      {"(ios\nsystem\n", "INST"},
      {"(l", "LIST"},
      {"K\x01p0\n", "PUT"},
      {"(" + ordered() + "o", "OBJ"},
      {ordered() + ")\x81", "NEWOBJ"},
      {"\x82\x01", "EXT1"},
      {"\x83\x01\x01", "EXT2"},
      {"\x84\x01\x01\x01\x01", "EXT4"},
      {"\x8b\xff\xff\xff\x7f", "LONG4"},
      {"\x8f", "EMPTY_SET"},
      {"\x8f(\x90", "EMPTY_SET"},
      {"(\x90", "ADDITEMS"},
      {"(\x91", "FROZENSET"},
      {ordered() + ")}\x92", "NEWOBJ_EX"},
      {"\x96" + little(1, 8) + "x", "BYTEARRAY8"},
      {"\x97", "NEXT_BUFFER"},
      {"\x98", "READONLY_BUFFER"}};
  for (const auto& [code, name] : opcodes) {
    EXPECT_TRUE(refuses(beside(code), "uses the opcode " + name + ",")) << name;
  }
}

TEST(PickleForbidden, EveryByteThatIsNoOpcodeIsRefused) {
  for (unsigned code = 0; code < 256; ++code) {
    const std::string bytes = checkpoint(kProto + std::string(1, static_cast<char>(code)));
    EXPECT_THROW(static_cast<void>(read(bytes)), Error) << code;
  }
  EXPECT_TRUE(refuses(checkpoint(kProto + "\xff."), "the byte 0xff, which is not an opcode"));
}

TEST(PickleForbidden, EveryGlobalOffTheListIsRefusedByName) {
  for (const auto& [module, name] :
       std::vector<std::pair<std::string, std::string>>{{"os", "system"},
                                                        {"posix", "system"},
                                                        {"nt", "system"},
                                                        {"subprocess", "Popen"},
                                                        {"builtins", "eval"},
                                                        {"builtins", "exec"},
                                                        {"builtins", "getattr"},
                                                        {"__builtin__", "eval"},
                                                        {"builtins", "dict"},
                                                        {"operator", "attrgetter"},
                                                        {"functools", "partial"},
                                                        {"importlib", "import_module"},
                                                        {"runpy", "run_path"},
                                                        {"torch", "load"},
                                                        {"torch.hub", "load"},
                                                        {"torch", "_utils._rebuild_tensor_v2"},
                                                        {"torch", "nn.Module"},
                                                        {"torch._utils", "os.system"},
                                                        {"torch.storage", "os.system"},
                                                        {"torch._tensor", "_rebuild_from_type_v2"},
                                                        {"torch._utils", "_rebuild_qtensor"},
                                                        {"torch._utils", "_rebuild_sparse_tensor"},
                                                        {"torch.jit._pickle", "build_intlist"},
                                                        {"collections", "OrderedDict.fromkeys"},
                                                        {"collections", "namedtuple"},
                                                        {"numpy.core.multiarray", "_reconstruct"},
                                                        {"numpy", "load"},
                                                        {"_codecs", "lookup"},
                                                        {"copyreg", "_reconstructor"},
                                                        {"collections ", "OrderedDict"},
                                                        {"", ""},
                                                        {"collections.OrderedDict", ""},
                                                        {"Torch", "FloatStorage"}}) {
    const std::string said = "asks for '" + module + "." + name + "'";
    EXPECT_TRUE(refuses(beside(global(module, name)), said)) << said;
    EXPECT_TRUE(refuses(beside(text(module) + text(name) + "\x93"), said)) << said;
    EXPECT_TRUE(refuses(beside(global(module, name) + tuple({text("true")}) + "R"), said)) << said;
  }
  EXPECT_TRUE(refuses(beside(global("os", "system") + tuple({text("x")}) + "R"),
                      "nothing was executed; convert the checkpoint to safetensors"));
}

TEST(PickleForbidden, NothingButTheListedFunctionsIsCalled) {
  const auto called = [](const std::string& callee, const std::string& args = ")") {
    return beside(callee + args + "R");
  };
  EXPECT_TRUE(refuses(called("K\x01"), "calls an integer"));
  EXPECT_TRUE(refuses(called(text("os.system")), "calls a string"));
  EXPECT_TRUE(refuses(called("}"), "calls a dictionary"));
  EXPECT_TRUE(refuses(called(kTensor), "calls a tensor"));
  EXPECT_TRUE(refuses(called(global("torch", "FloatStorage")), "calls 'torch.FloatStorage'"));
  EXPECT_TRUE(refuses(called(global("torch", "float32")), "calls 'torch.float32'"));
  EXPECT_TRUE(refuses(called(ordered()), "calls a dictionary"));
  EXPECT_TRUE(refuses(called(global("numpy", "dtype") + ")R"), "calls a scalar"));
  EXPECT_TRUE(
      refuses(called(global("collections", "OrderedDict"), tuple({"]"})), "gives 1 arguments"));
  EXPECT_TRUE(refuses(called(global("collections", "OrderedDict"), "]"), "without a tuple"));
  EXPECT_TRUE(refuses(called(global("torch", "Size"), tuple({kTensor})), "not made from a tuple"));
}

TEST(PickleForbidden, StatesAreSetOnNothingThatCouldUseThem) {
  const std::string state = dict({{"__class__", text("os")}});
  EXPECT_TRUE(refuses(beside(kTensor + state + "b"), "sets the state of a tensor"));
  EXPECT_TRUE(refuses(beside("}" + state + "b"), "sets the state of a dictionary"));
  EXPECT_TRUE(refuses(beside(ordered() + state + "b"), "sets the state of a dictionary"));
  EXPECT_TRUE(refuses(beside(ordered() + tuple({"N", state}) + "b"), "sets the state of"));
  EXPECT_TRUE(refuses(beside(global("torch", "Size") + state + "b"), "sets the state of a type"));
  EXPECT_TRUE(refuses(beside(global("numpy", "dtype") + ")R" + state + "b"), "sets the state of"));
  EXPECT_TRUE(refuses(beside(storage("0", 6) + state + "b"), "sets the state of a storage"));
}

// ---- malformed ----------------------------------------------------------------------------------

TEST(PickleMalformed, EveryPrefixOfTheFileIsAnError) {
  const std::string whole = with(kTensor);
  ASSERT_EQ(read(whole).size(), 1U);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_TRUE(refuses(std::string_view(whole).substr(0, size), "")) << size;
  }
}

TEST(PickleMalformed, EveryPrefixOfThePickleIsAnError) {
  const std::string whole = pickled(dict({{"w", kTensor}}));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_TRUE(refuses(checkpoint(whole.substr(0, size), kStorage), "the pickle ")) << size;
  }
}

TEST(PickleMalformed, EveryChangedByteOfThePickleGivesTensorsInsideTheFileOrAnError) {
  const std::string whole = pickled(dict({{"w", kTensor}}));
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (unsigned value = 0; value < 256; ++value) {
      std::string changed = whole;
      changed[at] = static_cast<char>(value);
      const std::string bytes = checkpoint(changed, kStorage);
      try {
        for (const Entry& entry : read(bytes)) {
          std::uint64_t last = entry.info.count() - 1;
          if (!entry.strides.empty()) {
            last = 0;
            for (int axis = 0; axis < entry.info.shape.rank(); ++axis) {
              last += (entry.info.shape[axis] - 1) * entry.strides[static_cast<std::size_t>(axis)];
            }
          }
          if (entry.info.count() > 0) {
            EXPECT_LE(entry.offset + (last + 1) * bits(entry.info.dtype) / 8, bytes.size());
          }
        }
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), Code::format) << e.what();
      }
    }
  }
}

TEST(PickleMalformed, ProtocolsOtherThanTwoToFiveAreRefused) {
  for (const char protocol : {'\0', '\1', '\6', '\xff'}) {
    EXPECT_TRUE(refuses(checkpoint("\x80" + std::string(1, protocol) + "}."), "is of protocol"));
  }
  EXPECT_TRUE(refuses(checkpoint("}."), "does not begin with its protocol"));
  EXPECT_TRUE(refuses(checkpoint(kProto + kProto + "}."), "the byte 0x80"));
}

TEST(PickleMalformed, TheStackTheMarksAndTheMemoCannotBeAbused) {
  EXPECT_TRUE(refuses(checkpoint(pickled("")), "empty stack"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}}")), "values left over"));
  EXPECT_TRUE(refuses(checkpoint(pickled("(}")), "values left over"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}") + "x"), "bytes after its end"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}") + "}."), "bytes after its end"));
  EXPECT_TRUE(refuses(beside("t"), "mark that was never set"));  // takes the others' mark
  EXPECT_TRUE(refuses(checkpoint(pickled("t")), "mark that was never set"));
  EXPECT_TRUE(refuses(checkpoint(pickled("]e")), "mark that was never set"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}K\x01(K\x02s")), "empty stack"));  // across a mark
  EXPECT_TRUE(refuses(checkpoint(pickled("}(K\x01u")), "key without a value"));
  EXPECT_TRUE(refuses(checkpoint(pickled("](u")), "sets items of a list"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}(e")), "appends to a dictionary"));
  EXPECT_TRUE(refuses(checkpoint(pickled("K\x01"
                                         "a")),
                      "empty stack"));
  EXPECT_TRUE(refuses(checkpoint(pickled("h" + little(0, 1))), "never written"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}q" + little(0, 1) + "h\x01")), "never written"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}j\xff\xff\xff\xff")), "never written"));
  EXPECT_TRUE(
      refuses(checkpoint(pickled("}q" + little(0, 1) + "q" + little(0, 1))), "out of order"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}q\x01")), "out of order"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}r\xff\xff\xff\xff")), "out of order"));
  EXPECT_TRUE(refuses(checkpoint(pickled("q" + little(0, 1))), "empty stack"));
  EXPECT_TRUE(refuses(checkpoint(pickled("}\x94\x94h\x02")), "never written"));
  EXPECT_TRUE(refuses(checkpoint(pickled("Q")), "empty stack"));
  EXPECT_TRUE(refuses(checkpoint(pickled("R")), "empty stack"));
  EXPECT_TRUE(refuses(checkpoint(pickled("K\x01K\x01\x93")), "other than strings"));
}

TEST(PickleMalformed, LengthsThatLieAreRefused) {
  EXPECT_TRUE(refuses(checkpoint(pickled("X\xff\xff\xff\xff")), "ends inside an opcode"));
  EXPECT_TRUE(refuses(checkpoint(pickled("\x8d" + little(~0ULL, 8))), "ends inside an opcode"));
  EXPECT_TRUE(
      refuses(checkpoint(pickled("\x8e" + little(~0ULL >> 1, 8))), "ends inside an opcode"));
  EXPECT_TRUE(refuses(checkpoint(pickled("B\xff\xff\xff\x7f")), "ends inside an opcode"));
  EXPECT_TRUE(refuses(checkpoint(pickled("\x8a\xff")), "ends inside an opcode"));
  EXPECT_TRUE(refuses(checkpoint(pickled("cos\n" + std::string(1000, 'a'))), "name does not end"));
  EXPECT_TRUE(refuses(checkpoint(pickled("cos")), "name does not end"));
}

TEST(PickleMalformed, KnotsAndDepthAreNoTrouble) {
  // A dictionary that holds itself, a million nested lists, a million nested tuples.
  EXPECT_EQ(read(beside("}\x94" + text("self") + "h" + little(0, 1) + "s")).size(), 1U);
  std::string lists;
  std::string tuples = "N";
  for (int i = 0; i < 1'000'000; ++i) {
    lists += "]";
    tuples += "\x85";
  }
  EXPECT_EQ(read(beside(lists + std::string(999'999, 'a'))).size(), 1U);
  EXPECT_EQ(read(beside(tuples)).size(), 1U);
  EXPECT_TRUE(refuses(checkpoint(pickled("}\x94" + text("self") + "h" + little(0, 1) + "s")),
                      "has a dictionary under 'self'"));
  EXPECT_TRUE(refuses(beside(std::string(5'000'000, 'N')), "more than 4194304 opcodes"));
}

TEST(PickleMalformed, RepeatedWrappersAreNotWalkedRepeatedly) {
  // 200,000 times the same large dictionary under "model" would be 10^10 steps.
  std::string large = "}\x94(";
  for (int i = 0; i < 100'000; ++i) large += "NN";
  std::string many = "}(" + text("model") + "\x94" + large + "u";
  for (int i = 0; i < 200'000; ++i) many += std::string("h") + '\0' + "h\x01";
  EXPECT_TRUE(refuses(checkpoint(pickled(many + "u")), "two entries 'model'"));
}

TEST(PickleMalformed, LongNamesThatAreUsedAgainAndAgainCostNothing) {
  // A name of 20 MB for 500,000 tensors would be 10 TB.
  std::string items = "}(" + text(std::string(20'000'000, 'w')) + "\x94" + kTensor + "\x94";
  for (int i = 0; i < 500'000; ++i) items += std::string("h") + '\0' + "h\x01";
  EXPECT_TRUE(refuses(checkpoint(pickled(items + "u"), kStorage), "by the same string"));
  // The same trick with the name of a storage.
  const std::string key(65, '0');
  EXPECT_TRUE(refuses(checkpoint(pickled(dict({{"w", tensor(storage(key, 6), 0, {6}, {1})}})),
                                 {{key, kStorage[0].second}}),
                      "does not describe a storage"));
}

TEST(PickleMalformed, TensorsThatLeaveTheirStorageAreRefused) {
  constexpr std::int64_t kMax = INT64_MAX;
  const auto lies = [](std::int64_t offset, const std::vector<std::int64_t>& shape,
                       const std::vector<std::int64_t>& strides) {
    return with(tensor(storage("0", 6), offset, shape, strides));
  };
  EXPECT_EQ(read(lies(0, {6}, {1})).size(), 1U);
  EXPECT_TRUE(refuses(lies(0, {7}, {1}), "shape [7] that reaches element 6 of a storage of 6"));
  EXPECT_TRUE(refuses(lies(1, {6}, {1}), "reaches element 6"));
  EXPECT_TRUE(refuses(lies(6, {1}, {1}), "reaches element 6"));
  EXPECT_TRUE(refuses(lies(6, {}, {}), "reaches element 6"));
  EXPECT_TRUE(refuses(lies(0, {2, 3}, {4, 1}), "reaches element 6"));
  EXPECT_TRUE(refuses(lies(0, {2}, {kMax}), "reaches element"));
  EXPECT_TRUE(refuses(lies(kMax, {2}, {kMax}), "reaches element"));
  EXPECT_TRUE(refuses(lies(kMax, {3, 2}, {kMax, 1}), "strides overflow"));
  EXPECT_TRUE(refuses(lies(2, {kMax}, {kMax}), "strides overflow"));
  EXPECT_TRUE(refuses(lies(0, {kMax, 2}, {0, 0}), "impossible shape"));
  EXPECT_TRUE(refuses(lies(0, {kMax, kMax, kMax}, {0, 0, 0}), "impossible shape"));
  EXPECT_TRUE(refuses(lies(0, {-1}, {1}), "not made of counts"));
  EXPECT_TRUE(refuses(lies(0, {2}, {-1}), "not made of counts"));
  EXPECT_TRUE(refuses(lies(-1, {2}, {1}), "invalid offset"));
  EXPECT_TRUE(refuses(lies(0, {2}, {1, 1}), "1 axes and 2 strides"));
  EXPECT_TRUE(refuses(lies(0, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}), "9 axes"));
}

TEST(PickleMalformed, ATinyStorageIsNoHugeTensor) {
  EXPECT_TRUE(
      refuses(with(tensor(storage("0", 6), 0, {std::int64_t{1} << 40}, {0})), "expanded view"));
  EXPECT_TRUE(refuses(with(tensor(storage("0", 6), 0, {4, 3}, {1, 1})), "expanded view"));
}

TEST(PickleMalformed, StoragesMustBeInTheArchiveAndOfTheirSize) {
  EXPECT_TRUE(refuses(with(tensor(storage("1", 6), 0, {1}, {1})), "'m/data/1', which is not in"));
  EXPECT_TRUE(refuses(with(tensor(storage("../data.pkl", 6), 0, {1}, {1})), "not in the archive"));
  EXPECT_TRUE(
      refuses(with(tensor(storage("0", 5), 0, {1}, {1})), "5 elements of float32, but it has 24"));
  EXPECT_TRUE(refuses(with(tensor(storage("0", INT64_MAX), 0, {1}, {1})), "but it has 24 bytes"));
  EXPECT_TRUE(
      refuses(with(tensor(storage("0", (std::int64_t{1} << 62) + 6), 0, {1}, {1})), "24 bytes"));
  EXPECT_TRUE(refuses(with(tensor(storage("0", -6), 0, {1}, {1})), "does not describe a storage"));
  EXPECT_TRUE(refuses(with(tensor("N", 0, {1}, {1})), "without a storage"));
  EXPECT_TRUE(refuses(beside(tuple({text("storage")}) + "Q"), "tuple of five"));
  EXPECT_TRUE(refuses(beside(text("0") + "Q"), "tuple of five"));
  EXPECT_TRUE(
      refuses(beside(tuple({text("module"), "N", "N", "N", "N"}) + "Q"), "does not describe"));
  EXPECT_TRUE(refuses(beside(tuple({text("storage"), global("torch", "float32"), text("0"),
                                    text("cpu"), integer(6)}) +
                             "Q"),
                      "does not describe"));
}

TEST(PickleMalformed, ArgumentsOfTheListedFunctionsAreChecked) {
  const auto rebuilt = [](const std::string& function, std::initializer_list<std::string> args) {
    return with(global("torch._utils", function) + tuple(args) + "R");
  };
  const std::string from = storage("0", 6);
  const std::string zero = integer(0);
  const std::string one = counts({1});
  EXPECT_TRUE(refuses(rebuilt("_rebuild_tensor_v2", {from, zero, one, one}), "gives 4 arguments"));
  EXPECT_TRUE(
      refuses(rebuilt("_rebuild_tensor_v2", {from, zero, one, one, kFalse, "K\x01"}), "hooks"));
  EXPECT_TRUE(
      refuses(rebuilt("_rebuild_tensor_v2", {from, zero, one, one, kFalse, dict({{"h", "N"}})}),
              "backward hooks"));
  EXPECT_TRUE(refuses(rebuilt("_rebuild_tensor_v2", {from, zero, one, one, "K\x01", "N"}),
                      "requires_grad"));
  EXPECT_TRUE(refuses(
      rebuilt("_rebuild_tensor_v2", {from, zero, one, one, kFalse, "N", dict({{"neg", "\x88"}})}),
      "metadata that changes its values"));
  EXPECT_EQ(read(rebuilt("_rebuild_tensor_v2", {from, zero, one, one, kFalse, "N", "}"})).size(),
            1U);
  EXPECT_TRUE(refuses(rebuilt("_rebuild_tensor_v2", {from, zero, integer(1), one, kFalse, "N"}),
                      "whose shape is an integer"));
  EXPECT_TRUE(refuses(rebuilt("_rebuild_tensor_v2", {from, zero, one, tuple({"N"}), kFalse, "N"}),
                      "not made of counts"));
  EXPECT_TRUE(
      refuses(rebuilt("_rebuild_tensor_v2", {from, text("0"), one, one, kFalse, "N"}), "offset"));
  EXPECT_TRUE(refuses(rebuilt("_rebuild_parameter", {"N", kFalse, "N"}), "without a tensor"));
  EXPECT_TRUE(refuses(rebuilt("_rebuild_parameter", {kTensor, kFalse}), "gives 2 arguments"));
}

// ---- other files --------------------------------------------------------------------------------

TEST(PickleFormat, OtherFormatsAreRefusedByNameWithTheRemedy) {
  EXPECT_TRUE(refuses("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.",
                      "torch before 1.6; load it with torch.load(path, weights_only=True)"));
  std::string tar(1024, '\0');
  tar.replace(257, 5, "ustar");
  EXPECT_TRUE(refuses(tar, "torch before 1.6"));
  EXPECT_TRUE(refuses(pickled("}"), "bare pickle"));
  EXPECT_TRUE(refuses("version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"));
  EXPECT_TRUE(refuses("GGUF\3", "GGUF"));
  EXPECT_TRUE(refuses(little(2, 8) + "{\"a\"", "rename it to .safetensors"));
  EXPECT_TRUE(refuses("", "does not begin as the zip archive"));
  EXPECT_TRUE(refuses("hello", "does not begin as the zip archive"));
}

TEST(PickleFormat, TheArchiveMustBeOneFolderWithAPickle) {
  const std::string right = pickled(dict({{"w", kTensor}}));
  EXPECT_TRUE(
      refuses(checkpoint(right, kStorage, {{"n/data.pkl", right}}), "outside the one folder"));
  EXPECT_TRUE(refuses(test::zip({{"data.pkl", right}}).bytes, "outside the one folder"));
  EXPECT_TRUE(refuses(test::zip({{"m/version", "3\n"}}).bytes, "without data.pkl"));
  EXPECT_EQ(read(checkpoint(right, kStorage, {{"m/.data/serialization_id", "1"}})).size(), 1U);
}

TEST(PickleFormat, ByteOrderAndVersionAreChecked) {
  const std::string right = pickled(dict({{"w", kTensor}}));
  const auto archive = [&](const std::string& order, const std::string& version) {
    return test::zip({{"m/data.pkl", right},
                      {"m/byteorder", order},
                      {"m/data/0", kStorage[0].second},
                      {"m/version", version}})
        .bytes;
  };
  EXPECT_EQ(read(archive("little", "2")).size(), 1U);
  EXPECT_EQ(read(archive("little", "10\n")).size(), 1U);
  EXPECT_TRUE(refuses(archive("big", "3\n"), "byte order 'big'"));
  EXPECT_TRUE(refuses(archive("middle", "3\n"), "byte order 'middle'"));
  EXPECT_TRUE(refuses(archive(std::string(65, 'l'), "3\n"), "at most 64 are read"));
  for (const std::string version : {"0", "11", "-1", "", "3x", "\n", "99999999999999999999"}) {
    EXPECT_TRUE(refuses(archive("little", version), "format version")) << version;
  }
  // torch before 2.1 wrote no byte order.
  EXPECT_EQ(read(test::zip({{"m/data.pkl", right}, {"m/data/0", kStorage[0].second}}).bytes).size(),
            1U);
}

}  // namespace
}  // namespace ingot

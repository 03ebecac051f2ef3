#include "store/pickle.hpp"

#include "ingot/error.hpp"
#include "store/header.hpp"
#include "store/machine.hpp"
#include "store/zip.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

namespace ingot {

namespace {

using namespace pickle;

constexpr std::uint64_t kMaxPickle = std::uint64_t{64} << 20;  // 300 tensors take some 50 KB

// UTF-8 without control characters: what may be a tensor's name in a safetensors file.
bool printable(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i++]);
    if (lead < 0x20 || lead == 0x7f) return false;
    if (lead < 0x80) continue;
    const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4) return false;
    std::uint32_t code = lead & (0x3fU >> more);
    for (int k = 0; k < more; ++k) {
      if (i == text.size()) return false;
      const auto next = static_cast<unsigned char>(text[i++]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3fU);
    }
    const bool longer = (more == 2 && code < 0x800) || (more == 3 && code < 0x10000);
    if (longer || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
  }
  return true;
}

bool all_tensors(const Tree& tree, const Value& dict) {
  const std::vector<Value>& items = tree.group(dict);
  for (std::size_t i = 0; i < items.size(); i += 2) {
    if (items[i + 1].kind != Kind::tensor) return false;
  }
  return !items.empty();
}

// The keys and values of the dictionary that holds the weights.
const std::vector<Value>& weights(const std::string& path, const Tree& tree) {
  if (!is_dict(tree.top.kind)) {
    refuse(path, fmt::format("holds {} instead of a dictionary of tensors", word(tree.top.kind)));
  }
  constexpr std::array<std::string_view, 2> kWrappers{"state_dict", "model"};
  std::array<bool, 2> seen{};
  const Value* inner = nullptr;
  const std::vector<Value>& items = tree.group(tree.top);
  for (std::size_t i = 0; i < items.size(); i += 2) {
    if (items[i].kind != Kind::text || !is_dict(items[i + 1].kind)) continue;
    const std::string_view key = tree.text(items[i]);
    for (std::size_t k = 0; k < kWrappers.size(); ++k) {
      if (key != kWrappers[k]) continue;
      if (std::exchange(seen[k], true)) refuse(path, fmt::format("has two entries {}", cite(key)));
      if (k == 1 && !all_tensors(tree, items[i + 1])) continue;
      if (inner != nullptr) refuse(path, "holds weights under both 'state_dict' and 'model'");
      inner = &items[i + 1];
    }
  }
  if (inner == nullptr) return items;
  for (std::size_t i = 0; i < items.size(); i += 2) {
    if (items[i + 1].kind == Kind::tensor) {
      refuse(path, "holds tensors both in a wrapped dictionary and beside it");
    }
  }
  return tree.group(*inner);
}

// That no two keys are one and the same string, before each is copied: a pickle can repeat one of
// many megabytes for two bytes a time.
void check_names(const std::string& path, const std::vector<Value>& items) {
  std::vector<std::uint32_t> texts;
  for (std::size_t i = 0; i < items.size(); i += 2) {
    if (items[i].kind != Kind::text) {
      refuse(path, fmt::format("names a tensor by {}", word(items[i].kind)));
    }
    texts.push_back(items[i].index);
  }
  std::sort(texts.begin(), texts.end());
  if (std::adjacent_find(texts.begin(), texts.end()) != texts.end()) {
    refuse(path, "names two tensors by the same string");
  }
}

Entry entry(const std::string& path, const Tree& tree, const Value& key, const Value& value,
            std::uint32_t index) {
  const std::string_view name = tree.text(key);
  if (!printable(name) || name == "__metadata__") {
    refuse(path, fmt::format("has a tensor with the unusable name {}", cite(name)));
  }
  if (value.kind != Kind::tensor) {
    refuse(path,
           fmt::format("has {} under {} where a tensor is expected", word(value.kind), cite(name)));
  }
  const Tensor& tensor = tree.tensors[value.index];
  return {{std::string(name), tensor.dtype, tensor.shape},
          index,
          tensor.offset,
          tensor.strides,
          {},
          {}};
}

// Files that are often called `.bin` and are something else.
void check_magic(File& file) {
  struct Magic {
    std::size_t offset;
    std::string_view bytes;
    std::string_view what;
  };
  using namespace std::string_view_literals;
  constexpr std::string_view kOld =
      "is in the format of torch before 1.6; load it with torch.load(path, weights_only=True) and "
      "write it with safetensors.torch.save_file";
  constexpr std::array kMagics{
      Magic{0, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"sv, kOld},
      Magic{257, "ustar"sv, kOld},
      Magic{0, "\x80"sv,
            "is a bare pickle, not the zip archive that torch.save writes; nothing was "
            "executed, write it with safetensors.torch.save_file instead"},
      Magic{0, "version https://git-lfs"sv,
            "is a Git LFS pointer, not the weights; run git lfs pull"},
      Magic{0, "GGUF"sv, "is a GGUF file, not a PyTorch checkpoint"},
      Magic{8, "{\""sv,
            "is a safetensors file, not a PyTorch checkpoint; rename it to .safetensors"},
  };
  std::array<char, 512> head{};
  const std::uint64_t size = std::min<std::uint64_t>(file.size(), head.size());
  const auto bytes = std::as_writable_bytes(std::span(head)).first(static_cast<std::size_t>(size));
  read_exact(file, 0, bytes);
  const std::string_view text(head.data(), bytes.size());
  if (text.starts_with("PK\x03\x04")) return;
  for (const Magic& magic : kMagics) {
    if (text.size() >= magic.offset && text.substr(magic.offset).starts_with(magic.bytes)) {
      fail(Code::format, fmt::format("{}: {}", file.path(), magic.what));
    }
  }
  fail(Code::format,
       fmt::format("{}: does not begin as the zip archive that torch.save writes", file.path()));
}

// The bytes of a small member.
std::string load(File& file, const Member& member, std::uint64_t limit) {
  if (member.size > limit) {
    fail(Code::format, fmt::format("{}: zip member {} has {} bytes; at most {} are read",
                                   file.path(), cite(member.name), member.size, limit));
  }
  std::string bytes(static_cast<std::size_t>(member.size), '\0');
  read_exact(file, member.offset, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

std::vector<Entry> entries(const std::string& path, const Tree& tree, std::uint32_t index) {
  const std::vector<Value>& items = weights(path, tree);
  check_names(path, items);
  std::vector<Entry> out;
  out.reserve(items.size() / 2);
  for (std::size_t i = 0; i < items.size(); i += 2) {
    out.push_back(entry(path, tree, items[i], items[i + 1], index));
  }
  std::sort(out.begin(), out.end(),
            [](const Entry& a, const Entry& b) { return a.info.name < b.info.name; });
  for (std::size_t i = 1; i < out.size(); ++i) {
    if (out[i].info.name == out[i - 1].info.name) {
      refuse(path, fmt::format("has two tensors with the name {}", cite(out[i].info.name)));
    }
  }
  if (out.empty()) refuse(path, "holds no tensors");
  return out;
}

}  // namespace

std::vector<Entry> read_pickle(File& file, std::uint32_t index) {
  check_magic(file);
  const std::vector<Member> members = read_zip(file);

  // All members lie in one folder, named after the file that was first written.
  const std::string& first = members.empty() ? std::string() : members.front().name;
  const std::string root = first.substr(0, first.find('/') + 1);
  for (const Member& member : members) {
    if (root.empty() || !member.name.starts_with(root)) {
      fail(Code::format,
           fmt::format("{}: zip member {} is outside the one folder that torch.save makes",
                       file.path(), cite(member.name)));
    }
  }
  const Member* pickle = find_member(members, root + "data.pkl");
  if (pickle == nullptr) {
    fail(Code::format,
         fmt::format("{}: is a zip archive without data.pkl, not a checkpoint", file.path()));
  }
  constexpr std::uint64_t kWord = 64;
  if (const Member* order = find_member(members, root + "byteorder")) {
    const std::string text = load(file, *order, kWord);
    if (text != "little") {
      fail(Code::format, fmt::format("{}: has the byte order {}, only 'little' is read; save it "
                                     "again on a little-endian machine",
                                     file.path(), cite(text)));
    }
  }
  if (const Member* version = find_member(members, root + "version")) {
    const std::string text = load(file, *version, kWord);
    // torch has written 2 and 3 so far, and reads up to 10.
    int number = 0;
    const char* rest = std::from_chars(text.data(), text.data() + text.size(), number).ptr;
    const std::string_view left(rest, static_cast<std::size_t>(text.data() + text.size() - rest));
    if (number < 1 || number > 10 || (left != "" && left != "\n")) {
      fail(Code::format, fmt::format("{}: has the format version {}; 1 to 10 are known",
                                     file.path(), cite(text)));
    }
  }
  const std::string bytes = load(file, *pickle, kMaxPickle);
  return entries(file.path(), execute(file.path(), bytes, members, root + "data/"), index);
}

}  // namespace ingot

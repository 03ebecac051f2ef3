// Writes zip archives and pickles byte by byte, right ones and any kind of wrong one.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace ingot::test {

// `size` little-endian bytes of value.
inline std::string little(std::uint64_t value, std::size_t size) {
  std::string out;
  for (; size > 0; --size, value >>= 8) out.push_back(static_cast<char>(value));
  return out;
}

// ---- zip --------------------------------------------------------------------------------------

// An archive and where its parts begin, for tests that change some of them.
struct Archive {
  std::string bytes;
  std::vector<std::size_t> local;    // local headers
  std::vector<std::size_t> data;     // members
  std::vector<std::size_t> central;  // entries of the directory
  std::size_t directory = 0;
  std::size_t end64 = 0;  // zip64 end record, of the torch style only
  std::size_t end = 0;    // end record

  // The same with `size` bytes at `offset` replaced by `value`.
  [[nodiscard]] std::string with(std::size_t offset, std::uint64_t value, std::size_t size) const {
    std::string out = bytes;
    return out.replace(offset, size, little(value, size));
  }
};

using Members = std::vector<std::pair<std::string, std::string>>;

enum class Style {
  torch,  // sizes behind the data, padding to 64 bytes, zip64 end record
  plain,  // as zip -0
};

inline Archive zip(const Members& members, Style style = Style::torch) {
  const bool torch = style == Style::torch;
  const std::uint64_t flags = torch ? 0x0808 : 0;
  const std::uint64_t crc = 0x1234abcd;  // no reader of checkpoints looks at it
  Archive out;
  for (const auto& [name, bytes] : members) {
    out.local.push_back(out.bytes.size());
    std::string extra;
    if (torch) {
      const std::size_t pad = (64 - (out.bytes.size() + 30 + name.size() + 4) % 64) % 64;
      extra = "FB" + little(pad, 2) + std::string(pad, 'Z');
    }
    const std::string sizes = little(crc, 4) + little(bytes.size(), 4) + little(bytes.size(), 4);
    out.bytes += "PK\3\4" + little(0, 2) + little(flags, 2) + little(0, 2) + little(0, 4) +
                 (torch ? std::string(12, '\0') : sizes) + little(name.size(), 2) +
                 little(extra.size(), 2) + name + extra;
    out.data.push_back(out.bytes.size());
    out.bytes += bytes;
    if (torch) out.bytes += "PK\7\10" + sizes;
  }
  out.directory = out.bytes.size();
  for (std::size_t i = 0; i < members.size(); ++i) {
    const auto& [name, bytes] = members[i];
    out.central.push_back(out.bytes.size());
    out.bytes += "PK\1\2" + little(0, 4) + little(flags, 2) + little(0, 2) + little(0, 4) +
                 little(crc, 4) + little(bytes.size(), 4) + little(bytes.size(), 4) +
                 little(name.size(), 2) + little(0, 12) + little(out.local[i], 4) + name;
  }
  const std::size_t size = out.bytes.size() - out.directory;
  const std::size_t count = members.size();
  if (torch) {
    out.end64 = out.bytes.size();
    out.bytes += "PK\6\6" + little(44, 8) + little(0, 4) + little(0, 8) + little(count, 8) +
                 little(count, 8) + little(size, 8) + little(out.directory, 8);
    out.bytes += "PK\6\7" + little(0, 4) + little(out.end64, 8) + little(1, 4);
  }
  out.end = out.bytes.size();
  out.bytes += "PK\5\6" + little(0, 4) + little(count, 2) + little(count, 2) + little(size, 4) +
               little(out.directory, 4) + little(0, 2);
  return out;
}

// ---- pickle -----------------------------------------------------------------------------------

inline const std::string kProto = "\x80\x02";
inline const std::string kFalse = "\x89";
inline const std::string kReduce = "R";

inline std::string text(const std::string& s) { return "X" + little(s.size(), 4) + s; }
inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string integer(std::int64_t n) {
  return "\x8a\x08" + little(static_cast<std::uint64_t>(n), 8);
}
inline std::string tuple(std::initializer_list<std::string> items) {
  std::string out = "(";
  for (const std::string& item : items) out += item;
  return out + "t";
}
inline std::string counts(const std::vector<std::int64_t>& numbers) {
  std::string out = "(";
  for (const std::int64_t n : numbers) out += integer(n);
  return out + "t";
}
inline std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out = "}(";
  for (const auto& [key, value] : items) out += text(key) + value;
  return out + "u";
}
inline std::string ordered() { return global("collections", "OrderedDict") + ")R"; }

// A storage of `count` elements in the member data/<key>.
inline std::string storage(const std::string& key, std::int64_t count,
                           const std::string& type = "FloatStorage") {
  return tuple({text("storage"), global("torch", type), text(key), text("cpu"), integer(count)}) +
         "Q";
}
inline std::string tensor(const std::string& from, std::int64_t offset,
                          const std::vector<std::int64_t>& shape,
                          const std::vector<std::int64_t>& strides) {
  return global("torch._utils", "_rebuild_tensor_v2") +
         tuple({from, integer(offset), counts(shape), counts(strides), kFalse, ordered()}) + "R";
}

// The bytes of a checkpoint: the pickle in data.pkl, and the storages.
inline std::string checkpoint(const std::string& pickle, const Members& storages = {},
                              const Members& others = {}) {
  Members members{{"m/data.pkl", pickle}, {"m/byteorder", "little"}};
  for (const auto& [key, bytes] : storages) members.emplace_back("m/data/" + key, bytes);
  members.emplace_back("m/version", "3\n");
  members.insert(members.end(), others.begin(), others.end());
  return zip(members).bytes;
}

// A pickle of protocol 2 around the opcodes of one value.
inline std::string pickled(const std::string& value) { return kProto + value + "."; }

}  // namespace ingot::test

#include "store/zip.hpp"

#include "ingot/error.hpp"
#include "store/header.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <span>

namespace ingot {

namespace {

// Signatures, sizes and marks of the format (APPNOTE 6.3.10, sections 4.3 to 4.5).
constexpr std::uint32_t kLocal = 0x04034b50;
constexpr std::uint32_t kCentral = 0x02014b50;
constexpr std::uint32_t kDescriptor = 0x08074b50;
constexpr std::uint32_t kEnd = 0x06054b50;
constexpr std::uint32_t kEnd64 = 0x06064b50;
constexpr std::uint32_t kLocator = 0x07064b50;
constexpr std::size_t kLocalBytes = 30;
constexpr std::size_t kCentralBytes = 46;
constexpr std::size_t kDescriptorBytes = 16;
constexpr std::size_t kDescriptor64Bytes = 24;
constexpr std::size_t kEndBytes = 22;
constexpr std::size_t kEnd64Bytes = 56;
constexpr std::size_t kLocatorBytes = 20;
constexpr std::size_t kTailBytes = kEnd64Bytes + kLocatorBytes + kEndBytes;
constexpr std::uint32_t kSee64 = 0xffffffff;  // "the value is in the zip64 field"
constexpr std::uint16_t kExtra64 = 0x0001;
constexpr std::uint16_t kExtraName = 0x7075;  // a second name, which other readers may prefer
constexpr std::uint16_t kEncrypted = 1U << 0 | 1U << 6 | 1U << 13;
constexpr std::uint16_t kDescribed = 1U << 3;  // sizes follow the data
constexpr std::uint16_t kUtf8 = 1U << 11;

constexpr std::uint64_t kMaxDirectory = std::uint64_t{64} << 20;  // some 700,000 members

// Little-endian fields, one after another. Callers see to it that enough is left.
class Fields {
 public:
  explicit Fields(std::span<const std::byte> data) : data_(data) {}

  [[nodiscard]] std::size_t left() const noexcept { return data_.size(); }

  [[nodiscard]] std::span<const std::byte> take(std::size_t size) {
    const std::span<const std::byte> head = data_.first(size);
    data_ = data_.subspan(size);
    return head;
  }

  void skip(std::size_t size) { data_ = data_.subspan(size); }

  [[nodiscard]] std::uint16_t u16() { return static_cast<std::uint16_t>(number(2)); }
  [[nodiscard]] std::uint32_t u32() { return static_cast<std::uint32_t>(number(4)); }
  [[nodiscard]] std::uint64_t u64() { return number(8); }

 private:
  std::uint64_t number(std::size_t size) {
    std::uint64_t value = 0;
    const std::span<const std::byte> bytes = take(size);
    for (std::size_t i = size; i-- > 0;) value = value << 8 | std::to_integer<unsigned>(bytes[i]);
    return value;
  }

  std::span<const std::byte> data_;
};

// The place of the directory, and its expected size and number of members.
struct End {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::uint64_t count = 0;
};

// One entry of the directory.
struct Record {
  std::string name;
  std::uint16_t flags = 0;
  std::uint32_t crc = 0;
  std::uint64_t size = 0;
  std::uint64_t header = 0;  // offset of the local header
};

class Reader {
 public:
  explicit Reader(File& file) : file_(file) {}

  std::vector<Member> read() {
    const End end = find_end();
    std::vector<Record> records = directory(end);
    std::sort(records.begin(), records.end(),
              [](const Record& a, const Record& b) { return a.header < b.header; });

    std::vector<Member> members;
    members.reserve(records.size());
    std::uint64_t at = 0;  // end of the data before
    const Record* before = nullptr;
    for (Record& record : records) {
      const std::uint64_t start = local(record, before, at, end.offset);
      at = start + record.size;
      before = &record;
      members.push_back({record.name, start, record.size});
    }
    const std::uint64_t gap = gap_after(before, at, end.offset, nullptr);
    if (before != nullptr) described(*before, Fields(load(at, gap)), gap);

    std::sort(members.begin(), members.end(),
              [](const Member& a, const Member& b) { return a.name < b.name; });
    for (std::size_t i = 1; i < members.size(); ++i) {
      if (members[i].name == members[i - 1].name) bad(members[i].name, "occurs twice");
    }
    return members;
  }

 private:
  [[noreturn]] void bad(std::string_view what) const {
    fail(Code::format, fmt::format("{}: the zip archive {}", file_.path(), what));
  }
  [[noreturn]] void bad(std::string_view member, std::string_view what) const {
    fail(Code::format, fmt::format("{}: zip member {} {}", file_.path(), cite(member), what));
  }

  [[nodiscard]] std::span<const std::byte> load(std::uint64_t offset, std::uint64_t bytes) {
    buffer_.resize(bytes);
    read_exact(file_, offset, buffer_);
    return buffer_;
  }

  End find_end() {
    const std::uint64_t size = file_.size();
    if (size < kEndBytes) bad(fmt::format("is cut short: it has only {} bytes", size));
    const std::uint64_t tail = std::min<std::uint64_t>(size, kTailBytes);
    const std::span<const std::byte> bytes = load(size - tail, tail);

    Fields end(bytes.last(kEndBytes));
    // A comment is refused with everything else that may follow: where it is allowed, its bytes may
    // pose as another end record.
    if (end.u32() != kEnd) {
      bad("does not close with its end record: it is cut short, or a comment or other bytes "
          "follow");
    }
    const std::uint16_t disk = end.u16();
    const std::uint16_t first_disk = end.u16();
    const std::uint16_t count_here = end.u16();
    const std::uint16_t count = end.u16();
    const std::uint32_t directory_bytes = end.u32();
    const std::uint32_t directory_offset = end.u32();
    if (disk != 0 || first_disk != 0 || count_here != count) bad("is split over several files");
    if (end.u16() != 0) bad("announces a comment that is not there");

    End out{directory_offset, directory_bytes, count};
    std::uint64_t close = size - kEndBytes;
    if (tail == kTailBytes && Fields(bytes.subspan(kEnd64Bytes)).u32() == kLocator) {
      close = size - tail;
      out = end64(bytes, close);
      if ((count != 0xffff && count != out.count) ||
          (directory_bytes != kSee64 && directory_bytes != out.bytes) ||
          (directory_offset != kSee64 && directory_offset != out.offset)) {
        bad("contradicts itself: its end record and its zip64 end record differ");
      }
    } else if (count == 0xffff || directory_bytes == kSee64 || directory_offset == kSee64) {
      bad("announces a zip64 end record and has none");
    }

    if (out.bytes > close || out.offset != close - out.bytes) {
      bad(fmt::format("has a directory of {} bytes at {} that should end at {}", out.bytes,
                      out.offset, close));
    }
    if (out.bytes > kMaxDirectory) {
      bad(fmt::format("has a directory of {} bytes; at most {} are read", out.bytes,
                      kMaxDirectory));
    }
    if (out.count > out.bytes / kCentralBytes) {
      bad(fmt::format("claims {} members in a directory of {} bytes", out.count, out.bytes));
    }
    return out;
  }

  End end64(std::span<const std::byte> bytes, std::uint64_t offset) const {
    Fields locator(bytes.subspan(kEnd64Bytes + 4));
    if (locator.u32() != 0 || locator.u64() != offset || locator.u32() != 1) {
      bad("has a zip64 locator that does not point at the record before it");
    }
    Fields end(bytes);
    if (end.u32() != kEnd64 || end.u64() != kEnd64Bytes - 12) {
      bad("has a zip64 end record of another form than expected");
    }
    end.skip(4);  // versions
    if (end.u64() != 0) bad("is split over several files");
    const std::uint64_t count_here = end.u64();
    const std::uint64_t count = end.u64();
    if (count_here != count) bad("is split over several files");
    const std::uint64_t directory_bytes = end.u64();
    return {end.u64(), directory_bytes, count};
  }

  std::vector<Record> directory(const End& end) {
    Fields fields(load(end.offset, end.bytes));
    std::vector<Record> records;
    records.reserve(end.count);
    for (std::uint64_t i = 0; i < end.count; ++i) {
      if (fields.left() < kCentralBytes) bad("has a directory that ends inside an entry");
      records.push_back(central(fields));
    }
    if (fields.left() != 0) bad("has a directory with more than the members it counts");
    return records;
  }

  Record central(Fields& fields) const {
    if (fields.u32() != kCentral) bad("has a directory entry without its signature");
    Record record;
    fields.skip(4);  // versions: what is understood is checked by feature
    record.flags = fields.u16();
    const std::uint16_t method = fields.u16();
    fields.skip(4);  // time and date
    record.crc = fields.u32();
    const std::uint32_t packed = fields.u32();
    const std::uint32_t size = fields.u32();
    const std::uint16_t name_bytes = fields.u16();
    const std::uint16_t extra_bytes = fields.u16();
    const std::uint16_t comment_bytes = fields.u16();
    const std::uint16_t disk = fields.u16();
    fields.skip(6);  // attributes only matter to those who extract
    const std::uint32_t header = fields.u32();
    if (fields.left() < std::size_t{name_bytes} + extra_bytes + comment_bytes) {
      bad("has a directory that ends inside an entry");
    }
    const std::span<const std::byte> name = fields.take(name_bytes);
    record.name.resize(name_bytes);
    if (name_bytes != 0) std::memcpy(record.name.data(), name.data(), name_bytes);
    check_name(record.name);
    const std::span<const std::byte> extra = fields.take(extra_bytes);

    if ((record.flags & kEncrypted) != 0) bad(record.name, "is encrypted");
    if (method != 0) {
      bad(record.name, fmt::format("is compressed (method {}), as TorchScript archives are and "
                                   "checkpoints never; save the state_dict() of the model instead",
                                   method));
    }
    if ((record.flags & ~(kDescribed | kUtf8)) != 0) {
      bad(record.name, fmt::format("has unknown flags {:#06x}", record.flags));
    }
    if (comment_bytes != 0) bad(record.name, "carries a comment");
    if (disk != 0) bad(record.name, "is in another part of a split archive");

    std::uint64_t wide_packed = packed;
    record.size = size;
    record.header = header;
    widen(record.name, extra, {&record.size, &wide_packed, &record.header});
    if (wide_packed != record.size) {
      bad(record.name,
          fmt::format("is stored but has two sizes, {} and {}", wide_packed, record.size));
    }
    return record;
  }

  // Replaces each value that says so by its zip64 field, in the format's fixed order.
  void widen(const std::string& name, std::span<const std::byte> extra,
             std::initializer_list<std::uint64_t*> values) const {
    const auto wanted = static_cast<std::size_t>(std::count_if(
        values.begin(), values.end(), [](const std::uint64_t* v) { return *v == kSee64; }));
    bool found = false;
    Fields fields(extra);
    while (fields.left() != 0) {
      if (fields.left() < 4) bad(name, "has extra fields that end too early");
      const std::uint16_t id = fields.u16();
      const std::uint16_t size = fields.u16();
      if (size > fields.left()) bad(name, "has extra fields that end too early");
      Fields field(fields.take(size));
      if (id == kExtraName) bad(name, "has a second name in its extra fields");
      if (id != kExtra64) continue;
      if (found || size != 8 * wanted) bad(name, "has a zip64 field that does not fit its entry");
      found = true;
      for (std::uint64_t* value : values) {
        if (*value == kSee64) *value = field.u64();
      }
    }
    if (wanted != 0 && !found) bad(name, "announces a zip64 field and has none");
  }

  void check_name(std::string_view name) const {
    bool fine = !name.empty() && name.back() != '/' && !(name.size() > 1 && name[1] == ':');
    for (std::size_t start = 0; start < name.size();) {
      const std::size_t stop = std::min(name.find('/', start), name.size());
      const std::string_view part = name.substr(start, stop - start);
      fine = fine && !part.empty() && part != "." && part != "..";
      start = stop + 1;
    }
    for (const char c : name) {
      fine = fine && c != '\\' && c != '\x7f' && (c < 0 || c >= ' ');
    }
    if (!fine) bad(name, "has a name that is not a plain relative path");
  }

  // The bytes between the end of one member's data and what follows (`after`, or the directory):
  // its data descriptor, if it has one, and nothing else.
  std::uint64_t gap_after(const Record* before, std::uint64_t at, std::uint64_t next,
                          const Record* after) const {
    const auto what = [&] {
      return after != nullptr ? fmt::format("member {}", cite(after->name)) : "the directory";
    };
    if (next < at) {
      bad(before->name, fmt::format("overlaps {}: it ends at {}, after {}", what(), at, next));
    }
    const std::uint64_t gap = next - at;
    const bool described = before != nullptr && (before->flags & kDescribed) != 0;
    if (described ? gap != kDescriptorBytes && gap != kDescriptor64Bytes : gap != 0) {
      bad(fmt::format("has {} bytes at {}, before {}, that belong to no member", gap, at, what()));
    }
    return gap;
  }

  // Checks the data descriptor of a member against the directory.
  void described(const Record& record, Fields fields, std::uint64_t bytes) const {
    if (bytes == 0) return;
    const bool wide = bytes == kDescriptor64Bytes;
    const bool same = fields.u32() == kDescriptor && fields.u32() == record.crc &&
                      (wide ? fields.u64() : fields.u32()) == record.size &&
                      (wide ? fields.u64() : fields.u32()) == record.size;
    if (!same) bad(record.name, "has a data descriptor that contradicts the directory");
  }

  // Checks what lies between two members' data and the local header against the directory; returns
  // where the data start.
  std::uint64_t local(const Record& record, const Record* before, std::uint64_t at,
                      std::uint64_t limit) {
    const std::uint64_t gap = gap_after(before, at, record.header, &record);
    const std::uint64_t fixed = kLocalBytes + record.name.size();
    if (record.header > limit || limit - record.header < fixed) {
      bad(record.name,
          fmt::format("has its local header at {}, inside the directory", record.header));
    }
    Fields fields(load(at, gap + fixed));
    if (before != nullptr) described(*before, Fields(fields.take(gap)), gap);

    const bool opens = fields.u32() == kLocal;
    fields.skip(2);  // version
    const std::uint16_t flags = fields.u16();
    const std::uint16_t method = fields.u16();
    fields.skip(4);  // time and date: torch writes other ones in the directory
    const std::uint32_t crc = fields.u32();
    std::uint64_t packed = fields.u32();
    std::uint64_t size = fields.u32();
    const std::uint16_t name_bytes = fields.u16();
    const std::uint16_t extra_bytes = fields.u16();
    if (!opens) bad(record.name, fmt::format("has no local header at {}", record.header));
    if (name_bytes != record.name.size() ||
        std::memcmp(fields.take(name_bytes).data(), record.name.data(), name_bytes) != 0) {
      bad(record.name, "has another name in its local header");
    }
    if (flags != record.flags || method != 0) {
      bad(record.name, "has other flags or another method in its local header");
    }
    const std::uint64_t start = record.header + fixed + extra_bytes;
    if (start > limit || record.size > limit - start) {
      bad(record.name,
          fmt::format("claims {} bytes at {}, more than there are before the directory at {}",
                      record.size, start, limit));
    }
    // With a descriptor these three are zero here and stand behind the data.
    if ((flags & kDescribed) != 0 && crc == 0 && packed == 0 && size == 0) return start;
    if (packed == kSee64 || size == kSee64) {
      widen(record.name, load(record.header + fixed, extra_bytes), {&size, &packed});
    }
    if (crc != record.crc || size != record.size || packed != record.size) {
      bad(record.name, "has another size or checksum in its local header");
    }
    return start;
  }

  File& file_;
  std::vector<std::byte> buffer_;
};

}  // namespace

std::vector<Member> read_zip(File& file) { return Reader(file).read(); }

const Member* find_member(const std::vector<Member>& members, std::string_view name) noexcept {
  const auto at = std::lower_bound(members.begin(), members.end(), name,
                                   [](const Member& m, std::string_view n) { return m.name < n; });
  return at != members.end() && at->name == name ? &*at : nullptr;
}

}  // namespace ingot

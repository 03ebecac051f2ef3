// Files and checkpoints: what is on disk, by tensor name. Knows nothing of merging.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ingot/tensor.hpp"

namespace ingot {

// An open file. Calls on one object may come from several threads at once.
class File {
 public:
  virtual ~File() = default;
  File() = default;
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  [[nodiscard]] virtual const std::string& path() const noexcept = 0;
  // Bytes. Of a file opened to read: as it was when opened, so that shrinking later is noticed.
  [[nodiscard]] virtual std::uint64_t size() = 0;

  // Reads up to data.size() bytes at offset; returns how many, 0 at end of file. May return fewer.
  [[nodiscard]] virtual std::size_t read(std::uint64_t offset, std::span<std::byte> data) = 0;
  // Writes up to data.size() bytes at offset; returns how many, at least one.
  [[nodiscard]] virtual std::size_t write(std::uint64_t offset,
                                          std::span<const std::byte> data) = 0;
  // Gives the file exactly this size and its blocks, so that a full disk is met now and not later.
  virtual void reserve(std::uint64_t bytes) = 0;
  // Returns once everything written is on stable storage. A failure is an Error, never a warning.
  virtual void sync() = 0;

  // Descriptors for the asynchronous ring and for mapping; -1 where the file has none (a test's
  // faulty file). `direct` bypasses the page cache and demands 4 KiB alignment.
  [[nodiscard]] virtual int descriptor() const noexcept { return -1; }
  [[nodiscard]] virtual int direct() const noexcept { return -1; }
};

// Reads or writes all of data, retrying short transfers. End of file is Error{io} naming the file,
// where it ends and how many bytes are missing.
void read_exact(File& file, std::uint64_t offset, std::span<std::byte> data);
void write_exact(File& file, std::uint64_t offset, std::span<const std::byte> data);

// A state of a file or folder: equal identities mean the same object, unchanged in between.
struct Identity {
  std::uint64_t device = 0, inode = 0, size = 0;
  std::int64_t modified = 0, changed = 0;  // nanoseconds since 1970: of the content, of anything

  friend bool operator==(const Identity&, const Identity&) = default;
};

// A lock file that this process holds. The destructor removes the file; the operating system
// releases the lock however the process ends.
class Lock {
 public:
  virtual ~Lock() = default;
  Lock() = default;
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
};

// A file system. The one of the machine is system_disk(); tests put a failing one in its place.
class Disk {
 public:
  virtual ~Disk() = default;

  [[nodiscard]] virtual std::unique_ptr<File> open(const std::string& path) = 0;    // to read
  [[nodiscard]] virtual std::unique_ptr<File> create(const std::string& path) = 0;  // truncates
  [[nodiscard]] virtual std::unique_ptr<File> update(const std::string& path) = 0;  // read + write

  // Links are followed; one that leads nowhere is `other`.
  enum class Kind { absent, file, folder, other };
  [[nodiscard]] virtual Kind kind(const std::string& path) = 0;
  // True if the path itself is a symbolic link. A disk without links has none.
  [[nodiscard]] virtual bool is_link(const std::string& /*path*/) { return false; }
  // The absolute path with every symbolic link followed. A disk without links has nothing to do.
  [[nodiscard]] virtual std::string resolve(const std::string& path) { return path; }
  // Names (not paths) in a folder, sorted.
  [[nodiscard]] virtual std::vector<std::string> list(const std::string& folder) = 0;
  virtual void make_folder(const std::string& path) = 0;  // and its parents; existing is fine
  // Renames. A folder may take the place of an empty folder, never of anything else. False where
  // the file system cannot move this folder (an overlay's lower layer); every other failure throws.
  [[nodiscard]] virtual bool rename(const std::string& from, const std::string& to) = 0;
  // Renames, and returns false and does nothing if `to` exists.
  [[nodiscard]] virtual bool rename_new(const std::string& from, const std::string& to) = 0;
  // Exchanges two existing paths atomically; false where the file system cannot.
  [[nodiscard]] virtual bool exchange(const std::string& a, const std::string& b) = 0;
  // Removes a file, a link or an empty folder; absent is fine. Nothing here removes more at once.
  virtual void remove(const std::string& path) = 0;
  virtual void sync_folder(const std::string& path) = 0;
  // Nothing if there is nothing at the path. Links are followed.
  [[nodiscard]] virtual std::optional<Identity> identity(const std::string& path) = 0;
  // True if another file system, or another part of one, is mounted at the path.
  [[nodiscard]] virtual bool mount_point(const std::string&) { return false; }
  // False if nothing can be made in this folder, or where it is absent in the nearest above it that
  // is there.
  [[nodiscard]] virtual bool writable(const std::string& /*folder*/) { return true; }
  // Creates the file `path`, or takes it over from a process that is gone, and writes `text` to
  // it. Null if another process holds it, whose text is then in `holder`. Works on network file
  // systems that have locks; where there are none, a file that exists is Error{usage}, since nobody
  // can know whether its writer lives.
  [[nodiscard]] virtual std::unique_ptr<Lock> lock(const std::string& path, const std::string& text,
                                                   std::string& holder) = 0;
  // Free space of the file system that holds, or would hold, the path.
  [[nodiscard]] virtual std::uint64_t free_bytes(const std::string& path) = 0;
};

[[nodiscard]] std::unique_ptr<Disk> system_disk();

// The whole of a small text file (at most `limit` bytes; larger is Error{format}).
[[nodiscard]] std::string read_text(Disk& disk, const std::string& path,
                                    std::uint64_t limit = 100'000'000);

// Throws Error{format} unless the text is JSON that may be built as a tree: at most 128 levels deep
// and so many values. `where` names it in the message.
void check_json(std::string_view text, const std::string& where, std::size_t values = 5'000'000);

// `folder`/`name`, for every file that is read from the folder of a model or adapter. It may be a
// link to another file of the folder or, in a Hub cache, to a blob of the same repository; a link
// that leads elsewhere is Error{format}, so that a downloaded folder cannot name files of its user.
// An absent file, a link to one, and anything but a file are Error{missing}.
[[nodiscard]] std::string member(Disk& disk, const std::string& folder, const std::string& name);
// The same; nothing where the folder has nothing of that name.
[[nodiscard]] std::optional<std::string> seek_member(Disk& disk, const std::string& folder,
                                                     const std::string& name);

// Lets tensors be computed on where they lie in the page cache. While a Guard lives, a mapped file
// that shrinks or cannot be read ends in an Error and not in SIGBUS; without one, bytes are copied
// first.
//
// A program makes one in main, before its other threads, and keeps it to the end: it installs a
// signal handler, which a library must not do unasked. A second one at the same time is
// Error{internal}.
class Guard {
 public:
  Guard();
  ~Guard();  // puts the previous handler back
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
};

// A block of a tensor that is put together of parts of stored ones, or cut out of one.
struct Patch {
  // One of the tensor's three axes (missing leading axes have length 1): its elements begin,
  // begin + pace, ... (count of them) are stored 0, stride, 2 stride, ... from the patch's first.
  struct Axis {
    std::uint64_t begin = 0, count = 1, pace = 1, stride = 0;
  };
  std::uint32_t file = 0;    // index into Checkpoint::files()
  std::uint64_t offset = 0;  // of the first element
  std::array<Axis, 3> axes;
};

// Where the bytes of one tensor lie.
struct Entry {
  TensorInfo info;
  std::uint32_t file = 0;    // index into Checkpoint::files()
  std::uint64_t offset = 0;  // of the first element
  // Elements between neighbours along each axis, for a view stored out of row-major order (`.bin`
  // only); empty for the usual dense tensor.
  std::vector<std::uint64_t> strides;
  // The blocks of a tensor that no file holds as it is (Checkpoint::arrange). Every element is in
  // one of them; `file` and `offset` are those of the first. At most three axes.
  std::vector<Patch> patches;
  std::string origin;  // the stored tensor, or "first to last"

  // True if its bytes lie in its file one after the other.
  [[nodiscard]] bool dense() const noexcept { return strides.empty() && patches.empty(); }
};

// Which weights of a folder count that has an index and the single file of its name.
enum class Prefer : std::uint8_t { neither, index, file };

// A model's tensors, from safetensors or PyTorch files (`.bin`, `.pt`, `.pth`), single or sharded.
//
// Only headers are read. Every rule of the format is checked; a violation is Error{format} naming
// file, tensor, expected and found. Index files are checked against the shards.
class Checkpoint {
 public:
  // `path` is a folder, a file of weights or an index file. `shown` is the name used in receipts.
  // In a folder safetensors are looked for before `.bin`; shards and config.json must lie in the
  // folder or below it (or in the blobs of the same Hub cache repository).
  //
  // An index beside the single file of its name: where the index places all tensors in that file
  // they are one; where it names shards that are gone the single file counts, with a warning; else
  // `prefer` decides, and without it this is an Error{format} that names both. Where a shard holds
  // a tensor that the index places in another one, the index decides, with a warning.
  [[nodiscard]] static Checkpoint open(Disk& disk, const std::string& path, std::string shown,
                                       Prefer prefer = Prefer::neither);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  [[nodiscard]] const std::string& path() const noexcept;  // the folder (or the file's folder)
  [[nodiscard]] const std::string& shown() const noexcept;
  [[nodiscard]] const std::vector<Entry>& entries() const noexcept;  // sorted by name
  [[nodiscard]] const Entry* find(std::string_view name) const noexcept;
  // Puts other entries in place of those read: the same elements, under other names and in other
  // shapes. Sorts them.
  void arrange(std::vector<Entry> entries);
  // Opened weight files, shards in natural order. File::path() is the whole path; its last
  // component is the name in the folder.
  [[nodiscard]] File& file(std::uint32_t index) const;
  [[nodiscard]] std::uint32_t file_count() const noexcept;
  [[nodiscard]] bool pickled() const noexcept;
  // The text of config.json, empty if there is none.
  [[nodiscard]] const std::string& config() const noexcept;
  // What was passed over on opening: sentences.
  [[nodiscard]] const std::vector<std::string>& warnings() const noexcept;
  // True if `prefer` chose between two sets of weights.
  [[nodiscard]] bool chosen() const noexcept;

 private:
  struct Body;
  explicit Checkpoint(std::unique_ptr<Body> body);
  std::unique_ptr<Body> body_;
};

// Orders names as people count: digit runs by value, so layers.2 comes before layers.10.
[[nodiscard]] bool natural_less(std::string_view a, std::string_view b) noexcept;

}  // namespace ingot

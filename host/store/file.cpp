#include "store/file.hpp"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "ingot/store.hpp"

namespace ingot {

Error system_error(std::string_view action, int number) {
  const bool absent = number == ENOENT || number == ENOTDIR;
  std::string text = fmt::format("cannot {}: {}", action, std::generic_category().message(number));
  if (number == EMFILE) text += "; raise the limit with ulimit -n";
  return {absent ? Code::missing : Code::io, std::move(text)};
}

Error end_of_file(std::string_view path, std::uint64_t offset, std::uint64_t wanted) {
  return {Code::io, fmt::format("{} has no bytes at offset {}, where {} more are needed; it is "
                                "truncated, or changed while it was read",
                                path, offset, wanted)};
}

namespace {

// Repeats a system call that a signal interrupted.
template <class Call>
auto retry(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

class Descriptor {
 public:
  explicit Descriptor(int number) noexcept : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  [[nodiscard]] int get() const noexcept { return number_; }

 private:
  int number_;
};

struct stat status(int descriptor, const std::string& path) {
  struct stat result {};
  if (::fstat(descriptor, &result) != 0) throw system_error("examine " + path, errno);
  return result;
}

std::uint64_t free_bytes_at(const std::string& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0) {
    throw system_error("ask for the free space of " + path, errno);
  }
  if (info.f_blocks == 0) return UINT64_MAX;  // the file system does not say
  return std::uint64_t{info.f_bavail} * info.f_frsize;
}

class MachineFile final : public File {
 public:
  MachineFile(std::string path, int flags)
      : path_(std::move(path)),
        writable_((flags & O_ACCMODE) != O_RDONLY),
        // O_NONBLOCK: opening a FIFO or a device to look at it must not wait for its other end.
        buffered_(
            retry([&] { return ::open(path_.c_str(), flags | O_NONBLOCK | O_CLOEXEC, 0666); })) {
    if (buffered_.get() < 0) {
      throw system_error(fmt::format("{} {}", writable_ ? "write" : "open", path_), errno);
    }
    const struct stat info = status(buffered_.get(), path_);
    if (!S_ISREG(info.st_mode)) {
      fail(Code::format, path_ + (S_ISDIR(info.st_mode) ? " is a folder; a file is expected here"
                                                        : " is not a regular file"));
    }
    opened_size_ = static_cast<std::uint64_t>(info.st_size);
    // Left set, it would make the ring fail reads that have to wait for the disk.
    if (::fcntl(buffered_.get(), F_SETFL, flags & O_ACCMODE) != 0) {
      throw system_error("prepare " + path_, errno);
    }
  }

  [[nodiscard]] const std::string& path() const noexcept override { return path_; }

  // A file opened to read keeps the size that was checked: should it shrink meanwhile, the bytes
  // that are gone are an error and not an early end.
  [[nodiscard]] std::uint64_t size() override {
    if (!writable_) return opened_size_;
    return static_cast<std::uint64_t>(status(buffered_.get(), path_).st_size);
  }

  [[nodiscard]] std::size_t read(std::uint64_t offset, std::span<std::byte> data) override {
    const ssize_t count = retry([&] {
      return ::pread(buffered_.get(), data.data(), data.size(), static_cast<off_t>(offset));
    });
    if (count < 0) throw system_error(fmt::format("read {} at byte {}", path_, offset), errno);
    return static_cast<std::size_t>(count);
  }

  [[nodiscard]] std::size_t write(std::uint64_t offset, std::span<const std::byte> data) override {
    if (data.empty()) return 0;
    const ssize_t count = retry([&] {
      return ::pwrite(buffered_.get(), data.data(), data.size(), static_cast<off_t>(offset));
    });
    if (count > 0) return static_cast<std::size_t>(count);
    throw system_error(fmt::format("write {} bytes to {} at byte {}", data.size(), path_, offset),
                       count == 0 ? EIO : errno);
  }

  void reserve(std::uint64_t bytes) override {
    const std::string action = fmt::format("reserve {} bytes for {}", bytes, path_);
    const auto size = static_cast<off_t>(bytes);
    if (size < 0) throw system_error(action, EFBIG);
    // Asked first, so that a reservation that cannot succeed does not fill the disk on the way.
    const struct stat before = status(buffered_.get(), path_);
    const std::uint64_t owned = static_cast<std::uint64_t>(before.st_blocks) * 512;
    const std::uint64_t needed = bytes - std::min(bytes, owned);
    const std::uint64_t free = free_bytes_at(path_);
    int error = needed > free ? ENOSPC : 0;
    if (error == 0 && size > 0 &&
        retry([&] { return ::fallocate(buffered_.get(), 0, 0, size); }) != 0) {
      error = errno;
      (void)!::ftruncate(buffered_.get(), before.st_size);  // gives back what was taken
      if (error == EOPNOTSUPP) error = 0;                   // the check above is all there is
    }
    if (error == 0 && retry([&] { return ::ftruncate(buffered_.get(), size); }) != 0) error = errno;
    if (error == ENOSPC || error == EDQUOT) {
      throw system_error(
          fmt::format("{}: {} more bytes are needed and {} are free", action, needed, free), error);
    }
    if (error != 0) throw system_error(action, error);
  }

  void sync() override {
    if (retry([&] { return ::fdatasync(buffered_.get()); }) != 0) {
      throw system_error("bring " + path_ + " to stable storage", errno);
    }
  }

  [[nodiscard]] int descriptor() const noexcept override { return buffered_.get(); }

  [[nodiscard]] int direct() const noexcept override {
    std::call_once(tried_, [this] {
      // By descriptor, so that it is the same file even if the path has been renamed since.
      const std::string self = "/proc/self/fd/" + std::to_string(buffered_.get());
      direct_ = ::open(self.c_str(), (writable_ ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
    });
    return direct_;
  }

  ~MachineFile() override {
    if (direct_ >= 0) ::close(direct_);
  }

 private:
  std::string path_;
  bool writable_;
  Descriptor buffered_;
  std::uint64_t opened_size_ = 0;
  mutable std::once_flag tried_;
  mutable int direct_ = -1;
};

class MachineDisk final : public Disk {
 public:
  [[nodiscard]] std::unique_ptr<File> open(const std::string& path) override {
    return std::make_unique<MachineFile>(path, O_RDONLY);
  }
  // What is written never goes through a link that somebody left in the output folder.
  [[nodiscard]] std::unique_ptr<File> create(const std::string& path) override {
    return std::make_unique<MachineFile>(path, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW);
  }
  [[nodiscard]] std::unique_ptr<File> update(const std::string& path) override {
    return std::make_unique<MachineFile>(path, O_RDWR | O_NOFOLLOW);
  }

  [[nodiscard]] Kind kind(const std::string& path) override {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0) {
      if (S_ISREG(info.st_mode)) return Kind::file;
      return S_ISDIR(info.st_mode) ? Kind::folder : Kind::other;
    }
    const int error = errno;
    if (error == ENOENT || error == ELOOP) {  // a link to nowhere is something all the same
      return ::lstat(path.c_str(), &info) == 0 ? Kind::other : Kind::absent;
    }
    if (error == ENOTDIR || error == ENAMETOOLONG) return Kind::absent;
    throw system_error("examine " + path, error);
  }

  [[nodiscard]] std::string resolve(const std::string& path) override {
    std::error_code error;
    std::string real = std::filesystem::canonical(path, error).string();
    if (error) throw system_error("find " + path, error.value());
    return real;
  }

  [[nodiscard]] std::vector<std::string> list(const std::string& folder) override {
    std::vector<std::string> names;
    std::error_code error;
    for (std::filesystem::directory_iterator at(folder, error), end; !error && at != end;
         at.increment(error)) {
      names.push_back(at->path().filename().string());
    }
    if (error) throw system_error("list " + folder, error.value());
    std::sort(names.begin(), names.end());
    return names;
  }

  void make_folder(const std::string& path) override {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) throw system_error("make the folder " + path, error.value());
  }

  void rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) {
      throw system_error(fmt::format("rename {} to {}", from, to), errno);
    }
  }

  void exchange(const std::string& a, const std::string& b) override {
    if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return;
    const int error = errno;
    if (error != EINVAL && error != ENOSYS) {
      throw system_error(fmt::format("exchange {} and {}", a, b), error);
    }
    exchange_in_steps(*this, a, b);
  }

  void remove(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) throw system_error("remove " + path, error.value());
  }

  void sync_folder(const std::string& path) override {
    const Descriptor folder(
        retry([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
    if (folder.get() < 0) throw system_error("open the folder " + path, errno);
    // EINVAL: this file system has no such operation on folders (some network ones).
    if (retry([&] { return ::fsync(folder.get()); }) != 0 && errno != EINVAL) {
      throw system_error("bring the folder " + path + " to stable storage", errno);
    }
  }

  [[nodiscard]] std::uint64_t free_bytes(const std::string& path) override {
    std::filesystem::path at(path);
    while (at.has_relative_path() && kind(at.string()) == Kind::absent) at = at.parent_path();
    return free_bytes_at(at.empty() ? "." : at.string());
  }
};

}  // namespace

void read_exact(File& file, std::uint64_t offset, std::span<std::byte> data) {
  while (!data.empty()) {
    const std::size_t count = file.read(offset, data);
    if (count == 0) throw end_of_file(file.path(), offset, data.size());
    offset += count;
    data = data.subspan(count);
  }
}

void write_exact(File& file, std::uint64_t offset, std::span<const std::byte> data) {
  while (!data.empty()) {
    const std::size_t count = file.write(offset, data);
    offset += count;
    data = data.subspan(count);
  }
}

void exchange_in_steps(Disk& disk, const std::string& a, const std::string& b) {
  const std::string aside = b + ".exchange";
  if (disk.kind(aside) != Disk::Kind::absent) {
    fail(Code::io, fmt::format("cannot exchange {} and {}: {} is in the way", a, b, aside));
  }
  disk.rename(b, aside);
  try {
    disk.rename(a, b);
  } catch (...) {
    disk.rename(aside, b);
    throw;
  }
  disk.rename(aside, a);
}

std::unique_ptr<Disk> system_disk() { return std::make_unique<MachineDisk>(); }

std::string read_text(Disk& disk, const std::string& path, std::uint64_t limit) {
  const std::unique_ptr<File> file = disk.open(path);
  const std::uint64_t size = file->size();
  if (size > limit) {
    fail(Code::format,
         fmt::format("{} has {} bytes; at most {} are expected of such a file", path, size, limit));
  }
  std::string text(size, '\0');
  read_exact(*file, 0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

}  // namespace ingot

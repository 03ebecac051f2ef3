#include "store/file.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <memory>
#include <mutex>
#include <system_error>
#include <utility>

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
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
  [[nodiscard]] int release() noexcept { return std::exchange(number_, -1); }

 private:
  int number_;
};

struct stat status(int descriptor, const std::string& path) {
  struct stat result {};
  if (::fstat(descriptor, &result) != 0) throw system_error("examine " + path, errno);
  return result;
}

Identity identity_of(const struct stat& info) {
  const auto nanoseconds = [](const timespec& time) {
    return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  };
  return {info.st_dev, info.st_ino, static_cast<std::uint64_t>(info.st_size),
          nanoseconds(info.st_mtim), nanoseconds(info.st_ctim)};
}

// Every lock file begins so: a file that does not is somebody else's.
constexpr std::string_view kLockStart = "{\"ingot\":\"lock\"";

class MachineLock final : public Lock {
 public:
  MachineLock(std::string path, int descriptor) : path_(std::move(path)), file_(descriptor) {}
  // Removed while the lock is held, so that the next process either finds no file or notices that
  // the one it has opened is gone.
  ~MachineLock() override { ::unlink(path_.c_str()); }

 private:
  std::string path_;
  Descriptor file_;
};

std::unique_ptr<Lock> lock_file(const std::string& path, const std::string& text,
                                std::string& holder) {
  for (;;) {
    constexpr int kFlags = O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int number = retry([&] { return ::open(path.c_str(), kFlags | O_CREAT | O_EXCL, 0666); });
    const bool created = number >= 0;
    if (!created && errno == EEXIST) {
      number = retry([&] { return ::open(path.c_str(), kFlags); });
      if (number < 0 && errno == ENOENT) continue;  // its holder has just removed it
    }
    if (number < 0) throw system_error("create the lock file " + path, errno);
    Descriptor file(number);
    const struct stat opened = status(number, path);
    holder.resize(4096);
    const ssize_t count =
        S_ISREG(opened.st_mode) ? ::pread(number, holder.data(), holder.size(), 0) : -1;
    holder.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
    // A lock file without text was left by a process that ended between two system calls.
    if (!S_ISREG(opened.st_mode) || (!holder.empty() && !holder.starts_with(kLockStart))) {
      fail(Code::usage, path +
                            " is not a lock file of ingot: move it away, or choose another "
                            "output folder");
    }
    if (retry([&] { return ::flock(number, LOCK_EX | LOCK_NB); }) != 0) {
      if (errno == EWOULDBLOCK) return nullptr;
      // No locks on this file system: that the file could be created is all there is.
      if (!created) {
        fail(Code::usage,
             fmt::format(
                 "{} exists, and this file system has no locks that show whether the process that "
                 "made it ({}) still runs: if no other ingot works there, remove the file",
                 path, holder.substr(0, holder.find('\n'))));
      }
    }
    struct stat now {};
    if (::stat(path.c_str(), &now) != 0 || now.st_dev != opened.st_dev ||
        now.st_ino != opened.st_ino) {
      continue;  // its former holder removed it between the opening and the locking
    }
    if (::ftruncate(number, 0) != 0 ||
        ::pwrite(number, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
      const int error = errno;
      ::unlink(path.c_str());
      throw system_error("write the lock file " + path, error);
    }
    return std::make_unique<MachineLock>(path, file.release());
  }
}

// True for file systems that show the kernel's state, in which nothing can be made whatever the
// permissions say.
bool of_kernel(std::int64_t type) {
  constexpr std::int64_t kTypes[] = {PROC_SUPER_MAGIC,   SYSFS_MAGIC,         DEVPTS_SUPER_MAGIC,
                                     CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC,
                                     SECURITYFS_MAGIC};
  return std::find(std::begin(kTypes), std::end(kTypes), type) != std::end(kTypes);
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
      std::array<char, 32> self{};  // no allocation here, which could fail
      *fmt::format_to_n(self.data(), self.size() - 1, "/proc/self/fd/{}", buffered_.get()).out =
          '\0';
      direct_ = ::open(self.data(), (writable_ ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
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

  [[nodiscard]] bool is_link(const std::string& path) override {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0 && S_ISLNK(info.st_mode);
  }

  [[nodiscard]] std::string resolve(const std::string& path) override {
    std::error_code error;
    std::string real = std::filesystem::canonical(path, error).string();
    if (error) throw system_error("find " + path, error.value());
    return real;
  }

  [[nodiscard]] std::vector<std::string> list(const std::string& folder) override {
    // std::filesystem's iterators allocate in functions that are declared not to fail.
    const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(folder.c_str()), ::closedir);
    if (open == nullptr) throw system_error("list " + folder, errno);
    std::vector<std::string> names;
    for (errno = 0; const dirent* entry = ::readdir(open.get()); errno = 0) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
    }
    if (errno != 0) throw system_error("list " + folder, errno);
    std::sort(names.begin(), names.end());
    return names;
  }

  void make_folder(const std::string& path) override {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) throw system_error("make the folder " + path, error.value());
  }

  [[nodiscard]] bool rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) == 0) return true;
    if (errno == EXDEV) return false;
    throw system_error(fmt::format("rename {} to {}", from, to), errno);
  }

  [[nodiscard]] bool rename_new(const std::string& from, const std::string& to) override {
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) {
      return true;
    }
    if (errno == EEXIST) return false;
    if (errno != EINVAL && errno != ENOSYS) {
      throw system_error(fmt::format("rename {} to {}", from, to), errno);
    }
    // This file system cannot do both at once. Between the two a folder could only take the place
    // of an empty one.
    struct stat info {};
    if (::lstat(to.c_str(), &info) == 0) return false;
    if (::rename(from.c_str(), to.c_str()) == 0) return true;
    if (errno == EEXIST || errno == ENOTEMPTY || errno == ENOTDIR || errno == EISDIR) return false;
    throw system_error(fmt::format("rename {} to {}", from, to), errno);
  }

  [[nodiscard]] bool exchange(const std::string& a, const std::string& b) override {
    if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
    // EXDEV: an overlay's lower layer.
    if (errno == EINVAL || errno == ENOSYS || errno == EXDEV || errno == EOPNOTSUPP) return false;
    throw system_error(fmt::format("exchange {} and {}", a, b), errno);
  }

  void remove(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove(path, error);
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

  [[nodiscard]] std::optional<Identity> identity(const std::string& path) override {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0) return identity_of(info);
    if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == ENAMETOOLONG) {
      return std::nullopt;
    }
    throw system_error("examine " + path, errno);
  }

  [[nodiscard]] bool mount_point(const std::string& path) override {
    struct statx info {};
    if (::statx(AT_FDCWD, path.c_str(), AT_NO_AUTOMOUNT, STATX_TYPE, &info) == 0 &&
        (info.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT) != 0) {
      return (info.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
    }
    // Kernels before 5.8 do not say; another device than the parent's is what they show.
    struct stat own {
    }, above{};
    return ::stat(path.c_str(), &own) == 0 && ::stat((path + "/..").c_str(), &above) == 0 &&
           (own.st_dev != above.st_dev || own.st_ino == above.st_ino);
  }

  [[nodiscard]] std::unique_ptr<Lock> lock(const std::string& path, const std::string& text,
                                           std::string& holder) override {
    return lock_file(path, text, holder);
  }

  [[nodiscard]] std::uint64_t free_bytes(const std::string& path) override {
    std::filesystem::path at(path);
    while (at.has_relative_path() && kind(at.string()) == Kind::absent) at = at.parent_path();
    return free_bytes_at(at.empty() ? "." : at.string());
  }
  [[nodiscard]] bool writable(const std::string& folder) override {
    std::filesystem::path at(folder);
    while (at.has_relative_path() && kind(at.string()) == Kind::absent) at = at.parent_path();
    const std::string path = at.empty() ? "." : at.string();
    struct statfs info {};
    return kind(path) == Kind::folder && ::access(path.c_str(), W_OK | X_OK) == 0 &&
           ::statfs(path.c_str(), &info) == 0 && !of_kernel(info.f_type);
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

// The program where the system has no more to give: memory, threads, io_uring. It is run in a child
// per shortage, from its main() on, and whatever happens there is an end in order.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <vector>

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.hpp"

int ingot_main(int count, char** words);  // the program's, compiled under this name

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define INGOT_SANITIZED 1
#endif

namespace {

struct Shortage {
  long memory = -1;      // the allocation that fails, from 0; -1: none
  bool lasting = false;  // and all later ones
  long threads = -1;     // that there can be at once beside the first; -1: any number
  int ring = 0;          // what io_uring_setup fails with; 0: it does not
};

// Only a child arms these, before it has threads.
bool armed = false;
Shortage shortage;
std::atomic<long> allocations = 0, alive = 0;

struct Start {
  void* (*work)(void*);
  void* argument;
};

bool denied() noexcept {
  if (!armed) return false;
  const long n = allocations.fetch_add(1, std::memory_order_relaxed);
  return shortage.memory >= 0 &&
         (n == shortage.memory || (shortage.lasting && n > shortage.memory));
}

}  // namespace

#ifndef INGOT_SANITIZED  // whose own would be replaced by these

extern "C" {
void* __libc_malloc(std::size_t bytes);
void* __libc_calloc(std::size_t count, std::size_t bytes);
void* __libc_realloc(void* memory, std::size_t bytes);
void* __libc_memalign(std::size_t alignment, std::size_t bytes);

void* malloc(std::size_t bytes) {
  if (!denied()) return __libc_malloc(bytes);
  errno = ENOMEM;
  return nullptr;
}
void* calloc(std::size_t count, std::size_t bytes) {
  if (!denied()) return __libc_calloc(count, bytes);
  errno = ENOMEM;
  return nullptr;
}
void* realloc(void* memory, std::size_t bytes) {
  if (!denied()) return __libc_realloc(memory, bytes);
  errno = ENOMEM;
  return nullptr;
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  if (!denied()) return __libc_memalign(alignment, bytes);
  errno = ENOMEM;
  return nullptr;
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) {
  if (denied()) return ENOMEM;
  *memory = __libc_memalign(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*work)(void*),
                   void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(::dlsym(RTLD_NEXT, "pthread_create"));
  if (!armed || shortage.threads < 0) return create(thread, attributes, work, argument);
  if (alive.fetch_add(1) >= shortage.threads) {
    --alive;
    return EAGAIN;
  }
  static std::array<Start, 4096> starts;
  static std::atomic<std::size_t> next = 0;
  Start& start = starts[next++ % starts.size()];
  start = {work, argument};
  return create(
      thread, attributes,
      [](void* known) -> void* {
        const Start own = *static_cast<Start*>(known);
        void* const result = own.work(own.argument);
        --alive;
        return result;
      },
      &start);
}
}

#else

void* operator new(std::size_t bytes) {
  if (denied()) {
    if (const std::new_handler handler = std::get_new_handler()) handler();
    throw std::bad_alloc();
  }
  void* const memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](std::size_t bytes) { return ::operator new(bytes); }
// std::stable_sort's; a sanitizer's own would not go with the delete below.
void* operator new(std::size_t bytes, const std::nothrow_t& /*tag*/) noexcept {
  return denied() ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
}
void* operator new[](std::size_t bytes, const std::nothrow_t& tag) noexcept {
  return ::operator new(bytes, tag);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

#endif

namespace ingot::test {
namespace {

// Lets io_uring_setup fail in this process from now on.
void deny_ring(int error) {
  constexpr auto kNumber = static_cast<unsigned>(offsetof(seccomp_data, nr));
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kNumber),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{4, code};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    ::_exit(99);
  }
}

struct Ended {
  int status = 0;  // of waitpid
  long allocations = 0;
  [[nodiscard]] bool in_order() const { return WIFEXITED(status); }
  [[nodiscard]] int code() const { return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }
};

class ShortageTest : public ::testing::Test {
 protected:
  ShortageTest()
      : shared_(static_cast<long*>(::mmap(nullptr, sizeof(long), PROT_READ | PROT_WRITE,
                                          MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~ShortageTest() override { ::munmap(shared_, sizeof(long)); }

  Ended run(const std::vector<std::string>& words, const Shortage& wanted) {
    const pid_t child = ::fork();
    if (child == 0) {
      const int messages =
          ::open((folder_ / "messages").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
      ::dup2(messages, 1);
      ::dup2(messages, 2);
      const rlimit none{0, 0};
      ::setrlimit(RLIMIT_CORE, &none);
      ::alarm(60);  // a run that hangs is killed
      std::vector<std::string> copy{"ingot"};
      copy.insert(copy.end(), words.begin(), words.end());
      std::vector<char*> pointers;
      for (std::string& word : copy) pointers.push_back(word.data());
      if (wanted.ring != 0) deny_ring(wanted.ring);
      shortage = wanted;
      armed = true;
      const int code = ingot_main(static_cast<int>(pointers.size()), pointers.data());
      armed = false;
      *shared_ = allocations;
      ::_exit(code);
    }
    Ended ended;
    ::waitpid(child, &ended.status, 0);
    ended.allocations = *shared_;
    return ended;
  }
  Ended run(const std::vector<std::string>& words) { return run(words, {}); }

  std::string messages() { return read_file(folder_ / "messages"); }

  void clear(const std::string& name) {
    std::filesystem::remove_all(folder_ / name);
    std::filesystem::remove_all(folder_ / ("." + name + ".partial"));
  }

  // Fails allocations of a command one after the other, `share` of them; `weights` is the file of
  // weights that it writes, if any.
  void starve(std::vector<std::string> words, const std::string& weights) {
    const std::string out = folder_ / "out";
    const bool writes = !weights.empty();
    if (writes) words.insert(words.end(), {"-o", out, "--no-sync"});
    if (writes && words.front() == "merge") {
      words.erase(std::find(words.begin(), words.end(), "-o"));
    }
    const Ended whole = run(words);
    ASSERT_TRUE(whole.code() == 0 || (whole.code() == 1 && !writes)) << messages();
    const std::string expected = writes ? read_file(out + "/" + weights) : "";
    const bool all = std::getenv("INGOT_EXHAUSTIVE") != nullptr;
#ifdef INGOT_SANITIZED
    const long runs = 24;
#else
    const long runs = 120;
#endif
    const long step = all ? 1 : std::max(1L, whole.allocations / runs);
    int turn = 0;
    for (const bool lasting : {false, true}) {
      for (long n = lasting ? 0 : step / 2; n < whole.allocations; n += step) {
        clear("out");
        const Ended ended = run(words, {.memory = n, .lasting = lasting});
        const std::string where = std::to_string(n) + (lasting ? " and all later" : " alone");
        ASSERT_TRUE(ended.in_order()) << where << ": " << messages();
        ASSERT_TRUE(ended.code() == whole.code() || ended.code() == 4)
            << where << ": " << messages();
        if (ended.code() == 4) {
          ASSERT_NE(messages().find("memory"), std::string::npos) << where << ": " << messages();
        }
        if (!writes) continue;
        // OUT is there whole or not at all; there although the code is 4 where only the report of
        // it is wanting.
        if (std::filesystem::exists(out)) {
          ASSERT_EQ(read_file(out + "/" + weights), expected) << where;
        } else if (++turn % 8 == 0) {
          std::vector<std::string> again = words;
          again.emplace_back("--resume");
          ASSERT_EQ(run(again).code(), 0) << where << ": " << messages();
          ASSERT_EQ(read_file(out + "/" + weights), expected) << where;
        }
      }
    }
  }

  std::vector<std::string> merge() {
    return {"merge",
            example("recipes/ties.yml"),
            folder_ / "out",
            "--no-sync",
            "--root",
            example(""),
            "-j",
            "4"};
  }

  Folder folder_;
  long* shared_;
};

TEST_F(ShortageTest, AnyAllocationOfAMergeMayFail) {
  starve({"merge", example("recipes/ties.yml"), "--root", example(""), "-j", "2"},
         "model.safetensors");
}

TEST_F(ShortageTest, AnyAllocationOfABakeMayFail) {
  starve({"bake", example("models/base"), example("adapters/c-lora"), "-j", "2"},
         "model.safetensors");
}

TEST_F(ShortageTest, AnyAllocationOfAMergeOfAdaptersMayFail) {
  starve({"adapter", "merge", example("adapters/c-lora"), example("adapters/python-lora"), "--type",
          "svd", "-j", "2"},
         "adapter_model.safetensors");
}

TEST_F(ShortageTest, AnyAllocationOfAnExtractionMayFail) {
  starve({"extract", example("models/base"), example("models/python"), "--rank", "4", "-j", "2"},
         "adapter_model.safetensors");
}

TEST_F(ShortageTest, AnyAllocationOfALookMayFail) {
  starve({"plan", example("recipes/ties.yml"), "--root", example(""), "--tensors"}, "");
  starve({"inspect", example("models/base")}, "");
  starve({"diff", example("models/base"), example("models/python")}, "");
}

TEST_F(ShortageTest, AnyAllocationOfAVerificationMayFail) {
  ASSERT_EQ(run(merge()).code(), 0) << messages();
  std::filesystem::rename(folder_ / "out", folder_ / "made");
  starve({"verify", folder_ / "made", "--root", example(""), "-j", "2"}, "");
}

#ifndef INGOT_SANITIZED

TEST_F(ShortageTest, ThreadsThatDoNotStartAreDoneWithout) {
  ASSERT_EQ(run(merge()).code(), 0) << messages();
  const std::string expected = read_file(folder_ / "out/model.safetensors");
  for (long threads = 0; threads < 24; ++threads) {
    for (const int ring : {0, ENOSYS}) {  // without io_uring reads and writes have threads too
      clear("out");
      const Ended ended = run(merge(), {.threads = threads, .ring = ring});
      ASSERT_TRUE(ended.in_order()) << threads << ": " << messages();
      // One that shows how far it is, one that computes and one that writes is the least.
      ASSERT_EQ(ended.code(), threads < 3 ? 4 : 0) << threads << ": " << messages();
      ASSERT_EQ(std::filesystem::exists(folder_ / "out"), threads >= 3) << threads;
      if (threads < 3) {
        ASSERT_NE(messages().find("cannot start a thread"), std::string::npos) << messages();
      } else {
        ASSERT_EQ(read_file(folder_ / "out/model.safetensors"), expected) << threads;
      }
    }
  }
}

TEST_F(ShortageTest, VerificationAndExtractionManageWithoutTheirThreads) {
  ASSERT_EQ(run(merge()).code(), 0) << messages();
  const std::vector<std::string> verify{"verify", folder_ / "out", "--root", example(""), "-j",
                                        "4"};
  EXPECT_EQ(run(verify, {.threads = 0}).code(), 4) << messages();
  EXPECT_EQ(run(verify, {.threads = 2}).code(), 0) << messages();
  const std::vector<std::string> extract{"extract",
                                         example("models/base"),
                                         example("models/python"),
                                         "--rank",
                                         "auto",
                                         "--energy",
                                         "0.5",
                                         "-o",
                                         folder_ / "adapter",
                                         "-j",
                                         "4"};
  EXPECT_EQ(run(extract, {.threads = 0}).code(), 4) << messages();
  EXPECT_EQ(run(extract, {.threads = 3}).code(), 0) << messages();
}

#endif

TEST_F(ShortageTest, RingsThatTheKernelRefusesAreReplacedByThreads) {
  ASSERT_EQ(run(merge()).code(), 0) << messages();
  const std::string expected = read_file(folder_ / "out/model.safetensors");
  for (const int error : {ENOSYS, EPERM, ENOMEM, EMFILE}) {
    clear("out");
    auto words = merge();
    words.insert(words.end(), {"--storage", "direct"});
    ASSERT_EQ(run(words, {.ring = error}).code(), 0) << error << ": " << messages();
    EXPECT_EQ(read_file(folder_ / "out/model.safetensors"), expected) << error;
  }
}

}  // namespace
}  // namespace ingot::test

// The simulated devices: streams as queues, one thread that empties them.
#include "runtime.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include "annotate.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// Device work of one stream in order. Under ThreadSanitizer a stream has a fiber of its own, so
// that only enqueueing, events and waiting order its accesses with those of others.
struct emu_event {
  std::uint64_t asked = 0;  // records enqueued
  std::uint64_t done = 0;   // records passed
  bool dead = false;
  std::chrono::steady_clock::time_point time;
};

namespace emu {
namespace {

struct Work {
  std::unique_ptr<std::function<void()>> act;  // null: a record or a wait
  emu_event* record = nullptr;
  emu_event* wait = nullptr;
  std::uint64_t ticket = 0;  // which record of the event
  std::uint64_t number = 0;  // global order of enqueueing
};

}  // namespace
}  // namespace emu

struct emu_stream {
  int device = 0;
  std::deque<emu::Work> queue;
  bool busy = false;
  char token = 0;
  void* fiber = nullptr;
};

namespace emu {
namespace {

struct Allocation {
  std::size_t bytes = 0;
  int device = 0;  // -1: pinned host memory
};

// Memory of a device: rubbish, as there, but in what is larger than kArena the operating system's
// lazy zeros and a page behind that nobody may touch, since AddressSanitizer marks every byte that
// malloc gives and takes. Null if there is none.
constexpr std::size_t kPage = 4096, kArena = std::size_t{8} << 20;

std::size_t pages(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

char* take(std::size_t bytes) {
  const std::size_t size = pages(bytes);
  if (bytes <= kArena) {
    void* memory = std::aligned_alloc(kPage, size);
    if (memory != nullptr) std::memset(memory, 0xCD, bytes);
    return static_cast<char*>(memory);
  }
  void* memory = ::mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(memory);
  if (::mprotect(begin + size, kPage, PROT_NONE) != 0) die("no page behind an arena");
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(begin + bytes, size - bytes);
#endif
  return begin;
}

void give(char* memory, std::size_t bytes) {
  if (bytes <= kArena) {
    std::free(memory);
    return;
  }
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(memory, pages(bytes));
#endif
  ::munmap(memory, pages(bytes) + kPage);
}

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

class Runtime {
 public:
  Runtime() {
    Setup setup;
    if (const char* text = std::getenv("EMU_SEED")) setup.seed = std::strtoull(text, nullptr, 10);
    if (const char* text = std::getenv("EMU_DEVICES")) setup.devices = std::atoi(text);
    plug(setup);
    worker_ = std::thread([this] { work(); });
  }
  ~Runtime() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  void plug(const Setup& setup) {
    const std::lock_guard lock(mutex_);
    if (!streams_.empty() || !allocations_.empty()) die("plug: the old machine is still in use");
    setup_ = setup;
    state_ = setup.seed * 0x9e3779b97f4a7c15ULL + 1;
    traffic_ = {};
    error_ = cudaSuccess;
    used_.assign(static_cast<std::size_t>(std::max(setup.devices, 0)), 0);
    events_.clear();
  }
  Traffic traffic() {
    const std::lock_guard lock(mutex_);
    Traffic t = traffic_;
    t.live = streams_.size() + allocations_.size();
    for (const auto& e : events_) t.live += e->dead ? 0U : 1U;
    return t;
  }
  Setup setup() {
    const std::lock_guard lock(mutex_);
    return setup_;
  }

  // Every call that can fail passes here first.
  cudaError_t begin() {
    ++traffic_.calls;
    if (error_ != cudaSuccess && setup_.lost) return note(error_);
    if (error_ != cudaSuccess) return note(std::exchange(error_, cudaSuccess));
    if (setup_.fail_call != 0 && traffic_.calls == setup_.fail_call) {
      if (setup_.lost) error_ = setup_.failure;
      return note(setup_.failure);
    }
    return cudaSuccess;
  }
  cudaError_t note(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
  }

  cudaError_t allocate(void** memory, std::size_t bytes, int device) {
    const std::lock_guard lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    if (bytes == 0) {
      *memory = nullptr;
      return cudaSuccess;
    }
    if (device >= 0) {
      std::uint64_t& used = used_[static_cast<std::size_t>(device)];
      if (bytes > setup_.memory - used) return note(cudaErrorMemoryAllocation);
      used += bytes;
      traffic_.peak = std::max(traffic_.peak, used);
    }
    *memory = take(bytes);
    if (*memory == nullptr) return note(cudaErrorMemoryAllocation);
    allocations_[static_cast<char*>(*memory)] = {bytes, device};
    ++traffic_.allocations;
    return cudaSuccess;
  }
  cudaError_t free(void* memory, bool host) {
    std::unique_lock lock(mutex_);
    const cudaError_t e = begin();
    if (memory == nullptr) return e;
    // Freeing waits for the device, as cudaFree does.
    drain(lock);
    const auto at = allocations_.find(static_cast<char*>(memory));
    if (at == allocations_.end() || (at->second.device < 0) != host)
      die("freed memory that was not allocated so");
    if (!host) used_[static_cast<std::size_t>(at->second.device)] -= at->second.bytes;
    give(at->first, at->second.bytes);
    allocations_.erase(at);
    return e;
  }

  cudaError_t create(cudaStream_t* stream) {
    const std::lock_guard lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    streams_.push_back(std::make_unique<emu_stream>());
    *stream = streams_.back().get();
    (*stream)->device = current_device;
#if defined(__SANITIZE_THREAD__)
    (*stream)->fiber = __tsan_create_fiber(0);
#endif
    return cudaSuccess;
  }
  cudaError_t destroy(cudaStream_t stream) {
    std::unique_lock lock(mutex_);
    const cudaError_t e = begin();
    check(stream);
    wait(lock, [&] { return stream->queue.empty() && !stream->busy; });
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(stream->fiber);
#endif
    std::erase_if(streams_, [&](const auto& s) { return s.get() == stream; });
    return e;
  }
  cudaError_t synchronize(cudaStream_t stream) {
    std::unique_lock lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    check(stream);
    wait(lock, [&] { return stream->queue.empty() && !stream->busy; });
    acquire(&stream->token);
    return pending();
  }

  cudaError_t create(cudaEvent_t* event) {
    const std::lock_guard lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    events_.push_back(std::make_unique<emu_event>());
    *event = events_.back().get();
    return cudaSuccess;
  }
  cudaError_t destroy(cudaEvent_t event) {
    const std::lock_guard lock(mutex_);
    const cudaError_t e = begin();
    check(event);
    event->dead = true;  // its memory stays: a second use must be found
    return e;
  }
  cudaError_t record(cudaEvent_t event, cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    check(event);
    Work w;
    w.record = event;
    w.ticket = ++event->asked;
    push(stream, std::move(w));
    return cudaSuccess;
  }
  cudaError_t wait(cudaStream_t stream, cudaEvent_t event) {
    const std::lock_guard lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    check(event);
    if (event->asked == 0) return cudaSuccess;  // never recorded: nothing to wait for
    Work w;
    w.wait = event;
    w.ticket = event->asked;
    push(stream, std::move(w));
    return cudaSuccess;
  }
  cudaError_t synchronize(cudaEvent_t event) {
    std::unique_lock lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    check(event);
    const std::uint64_t ticket = event->asked;
    wait(lock, [&] { return event->done >= ticket; });
    acquire(event);
    return pending();
  }
  cudaError_t elapsed(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    const std::lock_guard lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    if (start->done < start->asked || end->done < end->asked) return note(cudaErrorNotReady);
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return cudaSuccess;
  }

  cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                   cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    if (bytes == 0) return cudaSuccess;
    const bool in = kind == cudaMemcpyHostToDevice, out = kind == cudaMemcpyDeviceToHost;
    const int to_kind = side(to, bytes), from_kind = side(from, bytes);
    if ((to_kind >= 0) == out || (from_kind >= 0) == in)
      die("a copy's pointers do not lie where its kind says");
    (in ? traffic_.bytes_in : traffic_.bytes_out) += bytes;
    if ((in && from_kind != -1) || (out && to_kind != -1)) ++traffic_.unpinned;
    Work w;
    w.act = task([=] { std::memmove(to, from, bytes); });
    push(stream, std::move(w));
    return cudaSuccess;
  }
  cudaError_t fill(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    if (bytes == 0) return cudaSuccess;
    if (side(memory, bytes) < 0) die("cudaMemsetAsync outside device memory");
    Work w;
    w.act = task([=] { std::memset(memory, value, bytes); });
    push(stream, std::move(w));
    return cudaSuccess;
  }
  cudaError_t launch(cudaStream_t stream, dim3 grid, dim3 block, std::function<void()> body) {
    const std::lock_guard lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    if (std::uint64_t{grid.x} * grid.y * grid.z == 0 || threads == 0 || threads > 1024 ||
        grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffU)
      return note(cudaErrorInvalidConfiguration);
    if (check(stream)->device != current_device) die("a launch while another device is current");
    ++traffic_.kernels;
    Work w;
    w.act = task([=, seed = setup_.seed] { run(grid, block, seed, body); });
    push(stream, std::move(w));
    return cudaSuccess;
  }
  cudaError_t memory(std::size_t* free, std::size_t* total) {
    const std::lock_guard lock(mutex_);
    if (const cudaError_t e = begin()) return e;
    *total = setup_.memory;
    *free = setup_.memory - used_[static_cast<std::size_t>(current_device)];
    return cudaSuccess;
  }
  cudaError_t probe(bool counted) {
    const std::lock_guard lock(mutex_);
    if (counted && setup_.absent != cudaSuccess) return note(setup_.absent);
    return begin();
  }

 private:
  emu_stream* check(emu_stream* stream) {
    if (std::none_of(streams_.begin(), streams_.end(),
                     [&](const auto& s) { return s.get() == stream; }))
      die(stream == nullptr ? "the default stream is never used" : "use of a destroyed stream");
    return stream;
  }
  void check(emu_event* event) {
    if (event == nullptr || event->dead) die("use of a destroyed event");
  }
  // Where a range lies: a device's number, -1 pinned, -2 ordinary host memory.
  int side(const void* memory, std::size_t bytes) {
    const char* p = static_cast<const char*>(memory);
    auto at = allocations_.upper_bound(const_cast<char*>(p));
    if (at == allocations_.begin()) return -2;
    --at;
    if (p >= at->first + at->second.bytes) return -2;
    if (p + bytes > at->first + at->second.bytes) die("a copy runs past the end of its memory");
    return at->second.device;
  }
  template <class F>
  static std::unique_ptr<std::function<void()>> task(F&& act) {
    return std::make_unique<std::function<void()>>(std::forward<F>(act));
  }
  void push(emu_stream* stream, Work work) {
    check(stream);
    work.number = ++numbers_;
    release(&stream->token);
    stream->queue.push_back(std::move(work));
    changed_.notify_all();
  }
  template <class F>
  void wait(std::unique_lock<std::mutex>& lock, F&& ready) {
    ++waiters_;
    changed_.notify_all();
    changed_.wait(lock, ready);
    --waiters_;
  }
  void drain(std::unique_lock<std::mutex>& lock) {
    wait(lock, [&] {
      return std::all_of(streams_.begin(), streams_.end(),
                         [](const auto& s) { return s->queue.empty() && !s->busy; });
    });
  }
  cudaError_t pending() {
    if (error_ == cudaSuccess) return cudaSuccess;
    const cudaError_t e = error_;
    if (!setup_.lost) error_ = cudaSuccess;
    return note(e);
  }
  std::uint64_t random() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1dULL;
  }

  // A stream whose first piece of work may run now: the oldest, the newest, or any.
  emu_stream* choose() {
    std::vector<emu_stream*> can;
    for (const auto& s : streams_)
      if (!s->queue.empty() && (s->queue.front().wait == nullptr ||
                                s->queue.front().wait->done >= s->queue.front().ticket))
        can.push_back(s.get());
    if (can.empty()) return nullptr;
    const auto older = [](emu_stream* a, emu_stream* b) {
      return a->queue.front().number < b->queue.front().number;
    };
    if (setup_.seed == 0) return *std::min_element(can.begin(), can.end(), older);
    if (setup_.seed == 1) return *std::max_element(can.begin(), can.end(), older);
    return can[random() % can.size()];
  }

  void work() {
    release(&started_);
    std::unique_lock lock(mutex_);
    for (;;) {
      emu_stream* stream = nullptr;
      changed_.wait(lock, [&] {
        if (stop_) return true;
        if (setup_.lazy && waiters_ == 0) return false;
        stream = choose();
        return stream != nullptr;
      });
      if (stop_) return;
      stream->busy = true;
      Work w = std::move(stream->queue.front());
      stream->queue.pop_front();
      bool failed = false;
      if (w.act) {
        ++traffic_.work;
        failed = error_ != cudaSuccess;  // nothing runs between a failure and its report
        if (setup_.fail_work != 0 && traffic_.work == setup_.fail_work) {
          failed = true;
          error_ = setup_.failure;
        }
      }
      lock.unlock();
      perform(*stream, failed ? nullptr : w.act.get(), w.wait, w.record);
      {
        const Backstage quiet;
        w.act.reset();
      }
      lock.lock();
      if (w.record != nullptr) {
        w.record->done = std::max(w.record->done, w.ticket);
        w.record->time = std::chrono::steady_clock::now();
      }
      stream->busy = false;
      changed_.notify_all();
    }
  }

  void perform(emu_stream& stream, const std::function<void()>* act, emu_event* wait,
               emu_event* record) {
#if defined(__SANITIZE_THREAD__)
    void* self = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(stream.fiber, __tsan_switch_to_fiber_no_sync);
#endif
    acquire(&started_);  // a stream's fiber uses the thread's own variables
    acquire(&stream.token);
    if (wait != nullptr) acquire(wait);
    if (act != nullptr) (*act)();
    if (record != nullptr) release(record);
    release(&stream.token);
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(self, __tsan_switch_to_fiber_no_sync);
#endif
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  Setup setup_;
  Traffic traffic_;
  std::vector<std::unique_ptr<emu_stream>> streams_;
  std::vector<std::unique_ptr<emu_event>> events_;
  std::map<char*, Allocation> allocations_;
  std::vector<std::uint64_t> used_ = {0};
  cudaError_t error_ = cudaSuccess;  // of work that failed, reported by the next call
  std::uint64_t numbers_ = 0, state_ = 1;
  int waiters_ = 0;
  bool stop_ = false;
  char started_ = 0;  // token: the worker's start
  std::thread worker_;
};

// The runtime is one per process, as the real one is.
Runtime& runtime() {
  static Runtime instance;
  return instance;
}

}  // namespace

void plug(const Setup& setup) {
  runtime().plug(setup);
  current_device = 0;
  last_error = cudaSuccess;
}
Traffic traffic() { return runtime().traffic(); }

cudaError_t enqueue(cudaStream_t stream, dim3 grid, dim3 block, std::function<void()> body) {
  return runtime().launch(stream, grid, block, std::move(body));
}

}  // namespace emu

using emu::runtime;

cudaError_t cudaDriverGetVersion(int* version) {
  *version = runtime().setup().driver;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  if (const cudaError_t e = runtime().probe(true)) return e;
  *count = runtime().setup().devices;
  return *count == 0 ? runtime().note(cudaErrorNoDevice) : cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (const cudaError_t e = runtime().probe(false)) return e;
  const emu::Setup setup = runtime().setup();
  if (device < 0 || device >= setup.devices) return runtime().note(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "Emulated device");
  properties->totalGlobalMem = setup.memory;
  properties->major = 9;
  properties->multiProcessorCount = setup.multiprocessors;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t e = runtime().probe(false)) return e;
  if (device < 0 || device >= runtime().setup().devices)
    return runtime().note(cudaErrorInvalidDevice);
  emu::current_device = device;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return runtime().memory(free, total);
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  return runtime().allocate(memory, bytes, emu::current_device);
}
cudaError_t cudaFree(void* memory) { return runtime().free(memory, false); }
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  return runtime().allocate(memory, bytes, -1);
}
cudaError_t cudaFreeHost(void* memory) { return runtime().free(memory, true); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (flags != cudaStreamNonBlocking) emu::die("a stream that waits for the default stream");
  return runtime().create(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return runtime().destroy(stream); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return runtime().synchronize(stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return runtime().wait(stream, event);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return runtime().create(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return runtime().destroy(event); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return runtime().record(event, stream);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return runtime().synchronize(event); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return runtime().elapsed(milliseconds, start, end);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return runtime().copy(to, from, bytes, kind, stream);
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  return runtime().fill(memory, value, bytes, stream);
}
cudaError_t cudaGetLastError() { return std::exchange(emu::last_error, cudaSuccess); }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError:
      return "cudaErrorInitializationError";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case cudaErrorECCUncorrectable:
      return "cudaErrorECCUncorrectable";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
  }
  return "unknown";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorECCUncorrectable:
      return "uncorrectable ECC error encountered";
    default:
      return "emulated error";
  }
}

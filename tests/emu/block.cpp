// Fibers, barriers and warp meetings: one block of CUDA threads on one OS thread.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <sys/mman.h>

#include "annotate.hpp"
#include "emu.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Leaves what a function must keep on the stack it is called on, `from` to find it by, and goes on
// where `to` left the same. swapcontext enters the kernel twice; sanitizers enter it at every
// longjmp.
extern "C" void emu_switch(void** from, void* to);
asm(R"(
  .text
  .p2align 4
  .type emu_switch, @function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emu_switch, .-emu_switch
)");

constinit thread_local uint3 threadIdx, blockIdx;
constinit thread_local dim3 blockDim, gridDim;

namespace emu {
namespace {

constexpr std::size_t kStack = std::size_t{256} << 10;
constexpr std::size_t kGuard = 4096;
constexpr std::size_t kSharedMost = 48 << 10;  // static shared memory of any architecture
constexpr std::size_t kRedzone = 256;

enum class State { fresh, ready, at_barrier, at_meeting, done };

// What emu_switch finds on a new stack: six registers, `start` to return to, and nowhere to return
// from that. A function starts 8 bytes off a multiple of 16.
void* prepare(char* end, void (*start)()) {
  const auto top = reinterpret_cast<std::uintptr_t>(end) & ~std::uintptr_t{15};
  void** const at = reinterpret_cast<void**>(top) - 8;
  std::fill_n(at, 8, nullptr);
  at[6] = reinterpret_cast<void*>(start);
  return at;
}

// A stack on which CUDA threads run, one at a time.
struct Carrier {
  void* top = nullptr;  // where it goes on, while it does not run
  char* mapping = nullptr;
  char* stack = nullptr;
  std::size_t size = 0;
  bool started = false;
  void* fake_stack = nullptr;
  void* fiber = nullptr;
};

struct Thread {
  uint3 index;
  unsigned rank = 0;
  State state = State::done;
  Place place;
  Meeting* meeting = nullptr;
  Carrier* carrier = nullptr;
  unsigned generation = 0;  // barriers passed
};

// What belongs to one block. Kept until the grid ends where ThreadSanitizer looks on: fresh memory
// and fresh tokens per block keep two blocks unordered.
struct Room {
  char barrier_token[2];
  char warp_token[32];
  char shared_token;
  struct Object {
    const void* site;
    std::size_t offset;
  };
  std::vector<Object> objects;
  std::size_t used = kRedzone;
  std::unique_ptr<unsigned char[]> memory;
};
constexpr std::size_t kRoom = kSharedMost + 64 * kRedzone;

struct Warp {
  std::uint32_t live = 0;
  std::vector<Meeting*> open, spare;
};

class Machine {
 public:
  Machine() = default;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine();

  void run(dim3 grid, dim3 block, std::uint64_t seed, const std::function<void()>& body);
  int barrier(int predicate, Place place);
  Meeting& meet(const char* operation, unsigned mask, const void* value, std::size_t bytes,
                bool fence, Place place);
  void leave(Meeting& meeting, bool fence);
  void pause();
  void* shared(const void* site, std::size_t bytes, std::size_t alignment);
  [[nodiscard]] unsigned lane() const { return current_->rank % 32; }
  [[nodiscard]] bool running() const { return body_ != nullptr; }

 private:
  [[noreturn]] void deadlock();
  void run_block();
  void enter(Thread& thread);
  void assign(Thread& thread);
  void suspend();
  bool take_next();
  void finish();
  void wake(Warp& warp);
  bool open_barrier();
  Carrier& carrier(unsigned index);
  void to_carrier(Carrier& carrier);
  void to_home(Carrier& carrier);
  static void carry();
  std::uint64_t random();

  std::vector<std::unique_ptr<Carrier>> carriers_;
  std::vector<Carrier*> idle_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<unsigned> order_;
  std::vector<std::unique_ptr<Room>> rooms_;
  std::vector<std::unique_ptr<Meeting>> meetings_;
  const std::function<void()>* body_ = nullptr;
  Thread* current_ = nullptr;
  Room* room_ = nullptr;
  unsigned count_ = 0, live_ = 0, cursor_ = 0, waiting_ = 0;
  unsigned votes_[2] = {}, result_[2] = {};
  std::uint64_t seed_ = 0, state_ = 0, block_ = 0;
  void* home_ = nullptr;
  const void* home_stack_ = nullptr;
  std::size_t home_size_ = 0;
  void* home_fake_ = nullptr;
  void* home_fiber_ = nullptr;
  char start_token_ = 0, done_token_ = 0, fence_token_ = 0;

  friend void ::emu::fence();
};

thread_local Machine machine;

Machine::~Machine() {
  for (auto& c : carriers_) {
#if defined(__SANITIZE_THREAD__)
    if (c->fiber != nullptr) __tsan_destroy_fiber(c->fiber);
#endif
    ::munmap(c->mapping, kStack + kGuard);
  }
}

std::uint64_t Machine::random() {  // xorshift64*
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  return state_ * 0x2545f4914f6cdd1dULL;
}

Carrier& Machine::carrier(unsigned index) {
  while (carriers_.size() <= index) {
    auto c = std::make_unique<Carrier>();
    void* p = ::mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);
    if (p == MAP_FAILED || ::mprotect(p, kGuard, PROT_NONE) != 0) die("no memory for fiber stacks");
    c->mapping = static_cast<char*>(p);
    c->stack = c->mapping + kGuard;
    // Tops of equally aligned stacks would share a few cache sets.
    c->size = kStack - carriers_.size() % 64 * 320;
    carriers_.push_back(std::move(c));
  }
  return *carriers_[index];
}

void Machine::to_carrier(Carrier& c) {
  if (!c.started) {
    c.started = true;
    c.top = prepare(c.stack + c.size, &Machine::carry);
#if defined(__SANITIZE_THREAD__)
    c.fiber = __tsan_create_fiber(0);
#endif
  }
#if defined(__SANITIZE_THREAD__)
  home_fiber_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(c.fiber, __tsan_switch_to_fiber_no_sync);
#elif defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&home_fake_, c.stack, c.size);
#endif
  emu_switch(&home_, c.top);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(home_fake_, nullptr, nullptr);
#endif
}

void Machine::to_home(Carrier& c) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(home_fiber_, __tsan_switch_to_fiber_no_sync);
#elif defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&c.fake_stack, home_stack_, home_size_);
#endif
  emu_switch(&c.top, home_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(c.fake_stack, &home_stack_, &home_size_);
#endif
}

// The life of a carrier: one CUDA thread after the other, without a switch while none has to wait.
void Machine::carry() {
  Machine& m = machine;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.home_stack_, &m.home_size_);
#endif
  for (;;) {
    acquire(&m.start_token_);
    try {
      (*m.body_)();
    } catch (...) {
      die("an exception left a kernel");
    }
    release(&m.done_token_);
    Carrier* c = nullptr;
    {
      const Backstage quiet;
      c = m.current_->carrier;
      m.finish();
      if (m.take_next()) continue;
      m.idle_.push_back(c);
    }
    m.to_home(*c);
  }
}

void Machine::assign(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
}

void Machine::enter(Thread& thread) {
  if (thread.state == State::fresh) {
    if constexpr (kThreadSanitizer) {
      // A fiber of its own for every thread, and not one that the block before used: a fiber's
      // own past is ordered.
      thread.carrier = &carrier(static_cast<unsigned>(2 * thread.rank + (block_ & 1U)));
    } else {
      if (idle_.empty()) idle_.push_back(&carrier(static_cast<unsigned>(carriers_.size())));
      thread.carrier = idle_.back();
      idle_.pop_back();
    }
  }
  thread.state = State::ready;
  assign(thread);
  to_carrier(*thread.carrier);
  current_ = nullptr;
}

void Machine::suspend() { to_home(*current_->carrier); }

bool Machine::take_next() {
  if (kThreadSanitizer || cursor_ == count_) return false;
  Thread& next = threads_[order_[cursor_]];
  if (next.state != State::fresh) return false;
  ++cursor_;
  next.carrier = current_->carrier;
  next.state = State::ready;
  assign(next);
  return true;
}

void Machine::finish() {
  Warp& warp = warps_[current_->rank / 32];
  current_->state = State::done;
  --live_;
  warp.live &= ~(1U << lane());
  wake(warp);
}

// Closes the meetings whose last missing lane has come or gone.
void Machine::wake(Warp& warp) {
  for (Meeting* m : warp.open) {
    if (m->closed || (m->mask & warp.live & ~m->arrived) != 0) continue;
    m->closed = true;
    const std::size_t first = static_cast<std::size_t>(&warp - warps_.data()) * 32;
    for (std::size_t i = first; i < std::min<std::size_t>(first + 32, count_); ++i)
      if (threads_[i].state == State::at_meeting && threads_[i].meeting == m)
        threads_[i].state = State::ready;
  }
}

bool Machine::open_barrier() {
  if (waiting_ == 0 || waiting_ != live_) return false;
  const Thread* first = nullptr;
  for (unsigned i = 0; i < count_; ++i) {
    Thread& t = threads_[i];
    if (t.state != State::at_barrier) continue;
    if (first == nullptr) first = &t;
    if (!(t.place == first->place)) deadlock();
    t.state = State::ready;
  }
  const unsigned parity = first->generation & 1U;
  result_[parity] = votes_[parity];
  votes_[parity ^ 1U] = 0;
  waiting_ = 0;
  return true;
}

void Machine::run_block() {
  live_ = count_;
  waiting_ = 0;
  votes_[0] = votes_[1] = 0;
  for (Warp& w : warps_) w.live = 0;
  for (unsigned i = 0; i < count_; ++i) {
    Thread& t = threads_[i];
    t.state = State::fresh;
    t.generation = 0;
    warps_[i / 32].live |= 1U << i % 32;
  }
  while (live_ > 0) {
    if (seed_ > 1)
      for (unsigned i = count_; i > 1; --i) std::swap(order_[i - 1], order_[random() % i]);
    bool moved = false;
    for (cursor_ = 0; cursor_ < count_;) {
      Thread& t = threads_[order_[cursor_++]];
      if (t.state != State::fresh && t.state != State::ready) continue;
      moved = true;
      enter(t);
    }
    if (live_ > 0 && !open_barrier() && !moved) deadlock();
  }
}

void Machine::run(dim3 grid, dim3 block, std::uint64_t seed, const std::function<void()>& body) {
  if (body_ != nullptr) die("a kernel launched a kernel");
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) die("a block has 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffU || grid.y > 65535 ||
      grid.z > 65535)
    die("the grid is empty or too large");
  const Backstage quiet;
  body_ = &body;
  blockDim = block;
  gridDim = grid;
  seed_ = seed;
  state_ = seed * 0x9e3779b97f4a7c15ULL + 1;
  count_ = static_cast<unsigned>(threads);
  threads_.assign(count_, {});
  order_.resize(count_);
  warps_.assign((count_ + 31) / 32, {});
  meetings_.clear();
  for (unsigned i = 0; i < count_; ++i) {
    order_[i] = seed == 1 ? count_ - 1 - i : i;
    threads_[i].rank = i;
    threads_[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  // A random walk over the blocks: a step coprime to their number visits each once.
  std::uint64_t step = 1, at = 0;
  if (seed > 1) {
    step = random() % blocks + 1;
    while (std::gcd(step, blocks) != 1) ++step;
    at = random() % blocks;
  }
  release(&start_token_);
  for (std::uint64_t i = 0; i < blocks; ++i) {
    block_ = seed == 1 ? blocks - 1 - i : at;
    at = (at + step) % blocks;
    blockIdx = {static_cast<unsigned>(block_ % grid.x),
                static_cast<unsigned>(block_ / grid.x % grid.y),
                static_cast<unsigned>(block_ / grid.x / grid.y)};
    if (rooms_.empty() || kThreadSanitizer) rooms_.push_back(std::make_unique<Room>());
    room_ = rooms_.back().get();
    room_->objects.clear();
    room_->used = kRedzone;
    run_block();
  }
  body_ = nullptr;
  acquire(&done_token_);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(rooms_[0]->memory.get(), rooms_[0]->memory ? kRoom : 0);
#endif
  if constexpr (kThreadSanitizer) rooms_.clear();
}

int Machine::barrier(int predicate, Place place) {
  void* token = nullptr;
  unsigned parity = 0;
  {
    const Backstage quiet;
    parity = current_->generation & 1U;
    token = &room_->barrier_token[parity];
  }
  release(token);
  int result = 0;
  {
    const Backstage quiet;
    current_->state = State::at_barrier;
    current_->place = place;
    ++waiting_;
    votes_[parity] += predicate != 0 ? 1 : 0;
    suspend();
    ++current_->generation;
    result = static_cast<int>(result_[parity]);
  }
  acquire(token);
  return result;
}

Meeting& Machine::meet(const char* operation, unsigned mask, const void* value, std::size_t bytes,
                       bool fence, Place place) {
  if (fence) release(&room_->warp_token[current_->rank / 32]);
  const Backstage quiet;
  Warp& warp = warps_[current_->rank / 32];
  const std::uint32_t bit = 1U << lane();
  if ((mask & bit) == 0) die("a lane calls a warp operation whose mask does not name it");
  Meeting* m = nullptr;
  for (Meeting* open : warp.open)
    if (open->mask == mask && !open->closed && (open->arrived & bit) == 0) m = open;
  if (m == nullptr) {
    if (warp.spare.empty()) {
      meetings_.push_back(std::make_unique<Meeting>());
      warp.spare.push_back(meetings_.back().get());
    }
    m = warp.spare.back();
    warp.spare.pop_back();
    m->operation = operation;
    m->place = place;
    m->mask = mask;
    m->arrived = m->left = 0;
    m->closed = false;
    warp.open.push_back(m);
  }
  if (std::strcmp(m->operation, operation) != 0)
    die("lanes of one mask meet in different warp operations");
  std::memcpy(m->value[lane()], value, bytes);
  m->arrived |= bit;
  current_->meeting = m;
  current_->place = place;
  wake(warp);
  if (!m->closed) {
    current_->state = State::at_meeting;
    suspend();
  }
  return *m;
}

void Machine::leave(Meeting& m, bool fence) {
  {
    const Backstage quiet;
    m.left |= 1U << lane();
    if (m.left == m.arrived) {
      Warp& warp = warps_[current_->rank / 32];
      std::erase(warp.open, &m);
      warp.spare.push_back(&m);
    }
  }
  if (fence) acquire(&room_->warp_token[current_->rank / 32]);
}

void Machine::pause() {
  const Backstage quiet;
  if (seed_ > 1 && random() % 8 == 0) suspend();
}

void* Machine::shared(const void* site, std::size_t bytes, std::size_t alignment) {
  void* object = nullptr;
  {
    const Backstage quiet;
    for (const Room::Object& o : room_->objects)
      if (o.site == site) object = room_->memory.get() + o.offset;
  }
  if (object != nullptr) {
    acquire(&room_->shared_token);
    return object;
  }
  {
    const Backstage quiet;
    Room& room = *room_;
    if (!room.memory) room.memory = std::make_unique_for_overwrite<unsigned char[]>(kRoom);
    if (room.objects.empty()) {
#if defined(__SANITIZE_ADDRESS__)
      ASAN_UNPOISON_MEMORY_REGION(room.memory.get(), kRoom);
#endif
      // Rubbish that differs between seeds: nobody may rely on zeros or on the block before.
      std::memset(room.memory.get(), static_cast<int>(0xCD ^ (seed_ * 0x35 & 0xff)), kRoom);
#if defined(__SANITIZE_ADDRESS__)
      ASAN_POISON_MEMORY_REGION(room.memory.get(), kRoom);
#endif
    }
    if (alignment > kRedzone) die("shared memory aligned to more than 256 bytes");
    const auto base = reinterpret_cast<std::uintptr_t>(room.memory.get());
    const std::size_t offset = (base + room.used + alignment - 1) / alignment * alignment - base;
    room.used = offset + bytes + kRedzone;
    if (room.used > kRoom || bytes > kSharedMost) die("a block has 48 KiB of static shared memory");
    room.objects.push_back({site, offset});
    object = room.memory.get() + offset;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(object, bytes);
#endif
  }
  release(&room_->shared_token);
  return object;
}

void Machine::deadlock() {
  std::string text = "threads of one block wait for each other:";
  for (unsigned i = 0; i < count_;) {
    const Thread& t = threads_[i];
    unsigned last = i;
    while (last + 1 < count_ && threads_[last + 1].state == t.state &&
           (t.state == State::done || threads_[last + 1].place == t.place))
      ++last;
    text += "\n  threads " + std::to_string(i) + "-" + std::to_string(last);
    if (t.state == State::done) {
      text += " have returned";
    } else {
      const bool warp = t.state == State::at_meeting;
      text += std::string(" at ") + (warp ? t.meeting->operation : "__syncthreads") + " in " +
              t.place.file + ":" + std::to_string(t.place.line);
    }
    i = last + 1;
  }
  die(text.c_str());
}

}  // namespace

void die(const char* text) {
  std::fprintf(stderr, "emu: %s", text);
  if (machine.running())
    std::fprintf(stderr, " (block %u,%u,%u thread %u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z,
                 threadIdx.x, threadIdx.y, threadIdx.z);
  std::fputc('\n', stderr);
  std::abort();
}

void run(dim3 grid, dim3 block, std::uint64_t seed, const std::function<void()>& body) {
  machine.run(grid, block, seed, body);
}
int barrier(int predicate, Place place) { return machine.barrier(predicate, place); }
const Meeting& meet(const char* operation, unsigned mask, const void* value, std::size_t bytes,
                    bool fence, Place place) {
  return machine.meet(operation, mask, value, bytes, fence, place);
}
void leave(const Meeting& meeting, bool fence) {
  machine.leave(const_cast<Meeting&>(meeting), fence);
}
void pause() { machine.pause(); }
void* shared(const void* site, std::size_t bytes, std::size_t alignment) {
  return machine.shared(site, bytes, alignment);
}
int lane() { return static_cast<int>(machine.lane()); }

void fence() {
  release(&machine.fence_token_);
  machine.pause();
  acquire(&machine.fence_token_);
}

}  // namespace emu

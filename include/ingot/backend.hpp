// The seam between the engine and the machines that do arithmetic.
//
// The engine moves bytes and decides what is measured; a backend turns one chunk of a tensor into
// sums, counts or output bytes. Every call is a pure function of its arguments, gives the same bits
// on every backend, and may be made from several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ingot/dtype.hpp"
#include "ingot/math/fold.hpp"

namespace ingot {

namespace linalg {
class Solver;
}
namespace math {
class Facts;
}

// Elements of a chunk: every chunk but a tensor's last has exactly this many, so a chunk starts at
// a multiple of 1 MiB in every input and in the output, and of fold tiles (64 of math::kTile).
inline constexpr std::uint64_t kChunk = std::uint64_t{1} << 20;

// The arithmetic of one output tensor as a backend sees it: formula, types, no names.
struct Work {
  math::Rule rule;
  std::vector<Dtype> inputs;  // the base first if rule.base, then the sources in file order
  Dtype output = Dtype::f32;
  math::Overflow overflow = math::Overflow::saturate;
};

// A backend's own copy of one tensor's inputs (device memory); see Backend::reside.
class Residence {
 public:
  virtual ~Residence() = default;
};

// A low-rank product in f32: B (height x rank) times A (rank x width), both row-major, times a
// scale. math/product.hpp has the formula.
struct Product {
  std::span<const float> a, b;
  std::uint32_t rank = 0;
  std::uint64_t width = 0;
  float scale = 1.0F;
  // Sums may be taken in any order and rounded in between (BLAS, cuBLAS): bounded class.
  bool fast = false;
};

// A backend's own form of a product's factors; see Backend::stage.
class Factors {
 public:
  virtual ~Factors() = default;
};

// Consecutive elements of one tensor, and what is known of the tensor so far.
struct Chunk {
  const Work* work = nullptr;
  std::uint64_t first = 0;  // index of the first element in the whole tensor, multiple of
                            // math::kTile; of kChunk for everything but apply
  std::uint32_t count = 0;  // 1 to kChunk, never across a multiple of kChunk
  // First byte of the chunk in each input, in the order of Work::inputs; element-aligned only.
  // May be null where `residence` holds the chunk.
  const std::byte* const* inputs = nullptr;
  Residence* residence = nullptr;
  const math::Facts* facts = nullptr;
  // Facts of all lines of the tensor: fact i of line l at lines[i * count + l], count as
  // math::line_shape() has it. Null where no pass has made any.
  const double* lines = nullptr;
};

// Bounds on the keys of one stream of an order pass, low <= high.
struct Bracket {
  int stream = 0;
  std::int32_t low = 0;
  std::int32_t high = 0;
};

// An element strictly between a bracket's bounds.
struct Candidate {
  std::int32_t key = 0;
  std::uint32_t index = 0;  // within the chunk
};

// How the keys of a chunk lie to a bracket. Where low == high, ties are counted in
// at_high.
struct Verdict {
  std::uint32_t above = 0;
  std::uint32_t at_high = 0;
  std::uint32_t at_low = 0;
  std::vector<Candidate> between;  // by index; cut off when `overflowed`
  bool overflowed = false;         // more than `limit` candidates: `between` is not complete
};

// What became of the task vectors of a chunk. Sums of integers and maxima: independent of order.
struct Tally {
  std::uint64_t kept[math::kSources] = {};  // elements of each source that the mask let through
  std::uint64_t conflicts = 0;              // elements where kept, non-zero terms disagree in sign
  std::uint32_t change = 0;  // bits of the largest |merged - base| in f32, before encode

  void add(const Tally& other);
};

// What a device did and what it cost: sums over all calls. A share of the run's time near 1 shows
// what bounds the run.
struct Activity {
  std::string device;   // "cuda:0 NVIDIA H200"
  double copy_in = 0;   // seconds, of the stream that copies to the device, ...
  double kernels = 0;   // ... the one that computes, ...
  double copy_out = 0;  // ... and the one that copies back
  double waiting = 0;   // seconds that callers waited, added up over threads
  std::uint64_t bytes_in = 0, bytes_out = 0;
  std::uint64_t kernel_bytes = 0;  // tensors' bytes that kernels read and wrote
  std::uint64_t memory = 0;        // bytes of device memory held
  // Bytes per second of bare copies, measured when the activity is asked for the first time: over
  // the link in, out, and within the device (read and written). 0: not measured.
  double link_in = 0, link_out = 0, copy = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // One line for the report: "cpu, AVX-512 (v4)", "cuda:0 NVIDIA H200".
  [[nodiscard]] virtual std::string describe() const = 0;

  // True if inputs must lie in memory of allocate() (pinned): the engine then never maps files, and
  // hands over whole chunks.
  [[nodiscard]] virtual bool staged() const { return false; }

  // Host memory for staging, at least 4 KiB-aligned; pinned where the backend copies from it.
  // Throws Error{memory} with requested and free bytes.
  [[nodiscard]] virtual std::byte* allocate(std::size_t bytes) = 0;
  virtual void release(std::byte* memory, std::size_t bytes) noexcept = 0;

  // Room for all inputs of a tensor in the backend's own memory, or null: the engine then passes
  // host pointers with every call. The CPU always returns null.
  [[nodiscard]] virtual std::unique_ptr<Residence> reside(const Work& work) = 0;
  // Copies a chunk's inputs into its residence.
  virtual void admit(const Chunk& chunk) = 0;

  // What order passes need, `pass` being the pass's number among the method's.
  //
  // Keys of runs of 64 elements, one run in every `stride` elements at hashed places. Appends to
  // keys[n] for each stream streams[n].
  virtual void sample(const Chunk& chunk, int pass, std::span<const int> streams,
                      std::uint32_t stride, std::span<std::vector<std::int32_t>> keys) = 0;

  // Counts against all brackets in one sweep; those of one stream stand together.
  virtual void verify(const Chunk& chunk, int pass, std::span<const Bracket> brackets,
                      std::uint32_t limit, std::span<Verdict> verdicts) = 0;

  // Adds to counts[(key >> 16) + 32768], or, given `prefix`, to counts[key & 0xffff] of the keys
  // with key >> 16 == *prefix: 65,536 counts either way.
  virtual void histogram(const Chunk& chunk, int pass, int stream, const std::int32_t* prefix,
                         std::span<std::uint64_t> counts) = 0;

  // Index within the chunk of the n-th (from 0) element whose key equals `key`.
  [[nodiscard]] virtual std::uint32_t locate(const Chunk& chunk, int pass, int stream,
                                             std::int32_t key, std::uint32_t n) = 0;

  // The sums of a fold or lines pass, in the shapes of math/fold.hpp. Sum n of
  //   a tensor, over tile t of the chunk:     sums[n * tiles + t], tiles = ceil(count /
  //   math::kTile) rows, over segment s of the chunk:      sums[n * segments + s], math::segments()
  //   of them columns, over column c of the chunk:    sums[n * columns + c], all columns of the
  //   tensor;
  //                                           the pass's start where the chunk has none of it
  virtual void fold(const Chunk& chunk, int pass, std::span<double> sums) = 0;

  // Takes a product's factors; their memory must outlive what is returned.
  [[nodiscard]] virtual std::unique_ptr<Factors> stage(const Product& product) = 0;
  // values = elements [first, first + values.size()) of a tensor, decoded from `own` (null: zeros),
  // plus each product in turn. All products have the tensor's width and agree in `fast`.
  virtual void amend(Dtype dtype, const std::byte* own, std::span<const Factors* const> products,
                     std::uint64_t first, std::span<float> values) = 0;

  // One output tensor's chunk: formula, one rounding, encode. Items are independent; a backend may
  // batch small ones.
  struct Item {
    Chunk chunk;                  // with its facts
    std::byte* output = nullptr;  // element-aligned
    Tally* tally = nullptr;       // added to
  };
  virtual void apply(std::span<const Item> items) = 0;

  // What decomposes, for callers in several threads.
  [[nodiscard]] virtual linalg::Solver& solver() = 0;

  // What each device did so far; empty where the arithmetic is the CPU's. Between calls only, as
  // its first use measures the device.
  [[nodiscard]] virtual std::vector<Activity> activity() const { return {}; }
};

// The CPU backend. `isa` is "v2", "v3", "v4" or empty for the best this machine has; a wish it
// cannot fulfil is Error{device}.
[[nodiscard]] std::unique_ptr<Backend> cpu_backend(const std::string& isa);

struct DeviceOptions {
  std::string device = "cuda";                    // "cuda", "cuda:1", "cuda:0,1"
  std::uint64_t memory = std::uint64_t{2} << 30;  // ceiling on each device's memory, bytes
  bool fast_product = false;                      // products with `fast` will come: opens cuBLAS
  std::string libraries = {};                     // folder of cuBLAS; empty: the search path
  // Decompositions will come: opens cuBLAS and cuSOLVER, which get the memory that tensors would
  // stay in. Where they cannot be opened, that is an error, or (if_possible) LAPACK decomposes and
  // solver() says why.
  enum class Decompose : std::uint8_t { no, if_possible, must } decompose = Decompose::no;
};

// The CUDA backend over one or several devices. Throws Error{device} with one sentence where it
// cannot be used (no driver, a driver too old, no such device, a build without CUDA), Error{memory}
// if a device has too little free, Error{usage} for a text that names no device. It never falls
// back.
[[nodiscard]] std::unique_ptr<Backend> cuda_backend(const DeviceOptions& options);

// How fast a device did one thing.
struct Rate {
  std::string what;         // "ties, base and 3"
  std::uint64_t bytes = 0;  // read and written
  double seconds = 0;       // median of several runs, by the device's clock
  bool on_device = false;   // in the device's own memory: to compare with "copy on the device"
};

// Measures the first device that the options name: its link in both directions, alone and together,
// its own copy rate, every kind of kernel on generated weights. Takes a second or two and up to
// options.memory. Throws as cuda_backend() does.
[[nodiscard]] std::vector<Rate> device_rates(const DeviceOptions& options);

// Which cuBLAS and cuSOLVER would be used, in one line with their versions and places: those in
// `folder`, or without one those of the search path. Throws Error{device} if one is missing.
[[nodiscard]] std::string device_libraries(const std::string& folder);

}  // namespace ingot

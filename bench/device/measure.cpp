// What the gates of a device need beside `ingot bench`: a merge whose inputs already lie in pinned
// memory, next to bare copies of the same bytes; many small tensors alone and together; pages of
// files handed to the device. Prints JSON. Needs a device, or, in emulated builds, shows that it
// runs.
//
//   measure [--device cuda] [--device-memory BYTES] [--layers 1] [--hidden 4096] [--rounds 5]
//
// A layer has the seven matrices of Llama-2-7B's, scaled by --hidden; the inputs are a base and
// three fine-tunes in bfloat16.

#include <cuda_runtime.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "check.hpp"
#include "ingot/backend.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/methods.hpp"
#include "measure/measure.hpp"
#include "memory.hpp"
#include "probe.hpp"
#include "stream.hpp"

namespace {

using namespace ingot;

constexpr unsigned kModels = 4;
constexpr int kThreads = 6;  // calls under way, as the engine has them

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of each of several runs, after one that does not count.
std::vector<double> times(int rounds, const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i <= rounds; ++i) {
    const double start = now();
    work();
    if (i > 0) seconds.push_back(now() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

std::string json(const std::vector<double>& seconds) {
  char text[128];
  std::snprintf(text, sizeof text, "{\"median\": %.6g, \"least\": %.6g, \"most\": %.6g}",
                seconds[seconds.size() / 2], seconds.front(), seconds.back());
  return text;
}

struct Options {
  DeviceOptions device;
  std::uint64_t layers = 1, hidden = 4096;
  int rounds = 5;
};

// One tensor: where its elements begin in each model, and how many there are.
struct Part {
  std::uint64_t first, count;
};

class Measure {
 public:
  explicit Measure(const Options& options)
      : options_(options), backend_(cuda_backend(options.device)) {
    const std::uint64_t square = options.hidden * options.hidden;
    const std::uint64_t wide = square * 11008 / 4096 / math::kTile * math::kTile;
    for (std::uint64_t layer = 0; layer < options.layers; ++layer)
      for (const std::uint64_t count : {square, square, square, square, wide, wide, wide}) {
        parts_.push_back({elements_, count});
        elements_ += count;
      }
    for (unsigned m = 0; m < kModels; ++m) models_.emplace_back(2 * elements_);
    output_.emplace_back(2 * elements_);
    fill();
  }

  void print() {
    const gpu::Card card = gpu::probe(options_.device.device).front();
    int driver = 0, runtime = 0;
    gpu::check(cudaDriverGetVersion(&driver), "asking for the driver's version");
    gpu::check(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version");
#if defined(INGOT_EMULATED)
    const char* emulated = "true";
#else
    const char* emulated = "false";
#endif
    std::printf(
        "{\"device\": {\"name\": \"%s\", \"memory\": %llu, \"processors\": %d, "
        "\"driver\": %d, \"runtime\": %d, \"emulated\": %s},\n",
        card.name.c_str(), static_cast<unsigned long long>(card.memory), card.processors, driver,
        runtime, emulated);
    std::printf(" \"bytes_in\": %llu, \"bytes_out\": %llu, \"elements\": %llu,\n",
                static_cast<unsigned long long>(2 * elements_ * kModels),
                static_cast<unsigned long long>(2 * elements_),
                static_cast<unsigned long long>(elements_));
    for (const char* method : {"linear", "ties", "dare_linear"})
      std::printf(" \"pinned_%s\": %s,\n", method,
                  json(times(options_.rounds, [&] { merge(method); })).c_str());
    std::printf(" \"bare_copies\": %s,\n", json(times(options_.rounds, [&] { copies(); })).c_str());
    small();
    pages();
  }

 private:
  [[nodiscard]] const std::byte* at(unsigned model, std::uint64_t element) const {
    return models_[model].data() + 2 * element;
  }

  // Weights like a model's; the fine-tunes move by coarse updates. One page, repeated.
  void fill() {
    constexpr std::uint64_t page = std::uint64_t{1} << 16;
    std::vector<std::uint16_t> words(page);
    for (unsigned m = 0; m < kModels; ++m) {
      for (std::uint64_t i = 0; i < page; ++i) {
        const auto bell = [](std::uint64_t z) {
          z *= 0x9e3779b97f4a7c15ULL;
          z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
          z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
          z ^= z >> 31;
          double sum = 0;
          for (int b = 0; b < 8; ++b) sum += static_cast<double>(z >> (8 * b) & 0xff);
          return (sum - 1020.0) / 209.0;
        };
        const double x = 0.02 * bell(i + 1) + (m == 0 ? 0.0 : 2e-3 * bell((m << 20) + i + 1));
        words[i] = math::Codec<math::Format::bf16>::encode(static_cast<float>(x),
                                                           math::Overflow::saturate);
      }
      for (std::uint64_t e = 0; e < elements_; e += page)
        std::memcpy(models_[m].data() + 2 * e, words.data(), 2 * std::min(page, elements_ - e));
    }
    std::memset(output_.front().data(), 0, 2 * elements_);
  }

  // No rescaling: what is measured here takes one pass, or for TIES its selection and one.
  [[nodiscard]] static Work work(const char* method, std::uint64_t count) {
    Work work;
    math::Rule& rule = work.rule;
    rule.method = math::find(method);
    rule.base = math::method(rule.method).card.base == math::Base::origin;
    rule.sources = static_cast<int>(kModels) - (rule.base ? 1 : 0);
    rule.elements = count;
    math::set_defaults(rule);
    (void)math::set_global(rule, "normalize", 1);
    (void)math::set_global(rule, "rescale", 0);
    for (int s = 0; s < rule.sources; ++s) {
      (void)math::set_local(rule, s, "weight", 0.3 + 0.1 * s);
      (void)math::set_local(rule, s, "density", 0.5);
      rule.stream[s] = 77 + static_cast<unsigned>(s);
    }
    work.inputs.assign(kModels, Dtype::bf16);
    work.output = Dtype::bf16;
    return work;
  }

  // One tensor as the engine takes it: uploaded once if its threshold needs more than one look.
  void merge_part(const char* method, const Part& part) {
    const Work work = Measure::work(method, part.count);
    const std::uint64_t chunks = (part.count + kChunk - 1) / kChunk;
    std::vector<std::vector<const std::byte*>> inputs(chunks);
    std::vector<Chunk> list(chunks);
    for (std::uint64_t c = 0; c < chunks; ++c) {
      for (unsigned m = 0; m < kModels; ++m) inputs[c].push_back(at(m, part.first + c * kChunk));
      list[c] = {.work = &work,
                 .first = c * kChunk,
                 .count = static_cast<std::uint32_t>(std::min(kChunk, part.count - c * kChunk)),
                 .inputs = inputs[c].data(),
                 .residence = nullptr};
    }
    std::unique_ptr<Residence> room;
    if (math::measured(work.rule)) {
      room = backend_->reside(work);
      for (Chunk& chunk : list) {
        if (room == nullptr) break;
        chunk.residence = room.get();
        backend_->admit(chunk);
      }
    }
    const std::string name = method;
    Measuring measuring(work.rule, name, room == nullptr);
    while (!measuring.done()) {
      for (const std::uint32_t c : measuring.chunks()) measuring.visit(*backend_, list[c]);
      measuring.advance();
    }
    const Measurements& known = measuring.known();
    for (Chunk& chunk : list) {
      chunk.facts = &known.facts;
      chunk.lines = known.lines.empty() ? nullptr : known.lines.data();
    }
    for (const Chunk& chunk : list) {
      Tally tally;
      const Backend::Item item{chunk, output_.front().data() + 2 * (part.first + chunk.first),
                               &tally};
      backend_->apply({&item, 1});
    }
  }

  void merge(const char* method) {
    std::atomic<std::size_t> next{0};
    std::vector<std::exception_ptr> errors(kThreads);
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t)
      threads.emplace_back([&, t] {
        try {
          for (std::size_t i = next++; i < parts_.size(); i = next++) merge_part(method, parts_[i]);
        } catch (...) {
          errors[static_cast<std::size_t>(t)] = std::current_exception();
        }
      });
    threads.clear();
    for (const std::exception_ptr& error : errors)
      if (error) std::rethrow_exception(error);
  }

  // The same bytes over the link, both ways at once, nothing else.
  void copies() {
    constexpr std::uint64_t piece = std::uint64_t{8} << 20;
    const gpu::Device in(piece), out(piece);
    const gpu::Stream up, down;
    for (unsigned m = 0; m < kModels; ++m)
      for (std::uint64_t e = 0; e < 2 * elements_; e += piece)
        gpu::check(
            cudaMemcpyAsync(in.data(), models_[m].data() + e, std::min(piece, 2 * elements_ - e),
                            cudaMemcpyHostToDevice, up.get()),
            "copying to it");
    for (std::uint64_t e = 0; e < 2 * elements_; e += piece)
      gpu::check(
          cudaMemcpyAsync(output_.front().data() + e, out.data(),
                          std::min(piece, 2 * elements_ - e), cudaMemcpyDeviceToHost, down.get()),
          "copying from it");
    gpu::check(cudaStreamSynchronize(up.get()), "waiting for the device");
    gpu::check(cudaStreamSynchronize(down.get()), "waiting for the device");
  }

  // Norms and biases: one call for all, and one call each.
  void small() {
    constexpr std::uint64_t count = 4096;
    const std::uint64_t many = std::min<std::uint64_t>(256, elements_ / count);
    const Work work = Measure::work("linear", count);
    const math::Facts facts = math::begin(work.rule);
    std::vector<std::vector<const std::byte*>> inputs(many);
    std::vector<Tally> tallies(many);
    std::vector<Backend::Item> items(many);
    for (std::uint64_t n = 0; n < many; ++n) {
      for (unsigned m = 0; m < kModels; ++m) inputs[n].push_back(at(m, n * count));
      items[n].chunk = {.work = &work,
                        .first = 0,
                        .count = count,
                        .inputs = inputs[n].data(),
                        .residence = nullptr,
                        .facts = &facts};
      items[n].output = output_.front().data() + 2 * n * count;
      items[n].tally = &tallies[n];
    }
    const auto together = times(options_.rounds, [&] { backend_->apply(items); });
    const auto alone = times(options_.rounds, [&] {
      for (const Backend::Item& item : items) backend_->apply({&item, 1});
    });
    std::printf(
        " \"small\": {\"tensors\": %llu, \"elements\": %llu, \"together\": %s, \"alone\": %s},\n",
        static_cast<unsigned long long>(many), static_cast<unsigned long long>(count),
        json(together).c_str(), json(alone).c_str());
  }

  // Pages of a cached file, registered with the device instead of copied into pinned memory first.
  void pages() {
#if defined(INGOT_EMULATED)
    std::printf(" \"pages\": {\"works\": false, \"why\": \"simulated devices have no pages\"}}\n");
#else
    const std::uint64_t bytes = std::min<std::uint64_t>(2 * elements_, std::uint64_t{256} << 20);
    std::FILE* const file = std::tmpfile();
    if (file == nullptr) throw std::runtime_error("cannot make a temporary file");
    if (std::fwrite(models_[0].data(), 1, bytes, file) != bytes || std::fflush(file) != 0)
      throw std::runtime_error("cannot write a temporary file");
    void* const memory =
        mmap(nullptr, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fileno(file), 0);
    if (memory == MAP_FAILED) throw std::runtime_error("cannot map a temporary file");
    const double start = now();
    const cudaError_t error = cudaHostRegister(memory, bytes, cudaHostRegisterReadOnly);
    const double registered = now() - start;
    if (error != cudaSuccess) {
      std::printf(" \"pages\": {\"works\": false, \"why\": \"%s\"}}\n", gpu::words(error).c_str());
      (void)cudaGetLastError();
    } else {
      const gpu::Device device(bytes);
      const gpu::Stream stream;
      const auto copy = times(options_.rounds, [&] {
        gpu::check(
            cudaMemcpyAsync(device.data(), memory, bytes, cudaMemcpyHostToDevice, stream.get()),
            "copying to it");
        gpu::check(cudaStreamSynchronize(stream.get()), "waiting for the device");
      });
      const double before = now();
      gpu::check(cudaHostUnregister(memory), "giving pages back");
      std::printf(
          " \"pages\": {\"works\": true, \"bytes\": %llu, \"register\": %.6g, "
          "\"unregister\": %.6g, \"copy\": %s}}\n",
          static_cast<unsigned long long>(bytes), registered, now() - before, json(copy).c_str());
    }
    munmap(memory, bytes);
    std::fclose(file);
#endif
  }

  Options options_;
  std::unique_ptr<Backend> backend_;
  std::vector<Part> parts_;
  std::uint64_t elements_ = 0;
  std::vector<gpu::Pinned> models_, output_;
};

}  // namespace

int main(int argc, char** argv) try {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i], value = argv[i + 1];
    if (key == "--device")
      options.device.device = value;
    else if (key == "--device-memory")
      options.device.memory = std::stoull(value);
    else if (key == "--layers")
      options.layers = std::stoull(value);
    else if (key == "--hidden")
      options.hidden = std::stoull(value);
    else if (key == "--rounds")
      options.rounds = std::stoi(value);
    else
      throw std::invalid_argument("unknown option " + key);
  }
  Measure(options).print();
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "measure: %s\n", error.what());
  return 1;
}

// The honest reference for a merge: the same bytes in and out through the same ring, no arithmetic.
//
//   bench-copy [--direct|--buffered] [--no-sync] OUT OUT_BYTES INPUT...
//
// Reads every input once and writes OUT_BYTES bytes, spread evenly over the reads, 2 MiB a request,
// eight of each in flight; then syncs. Prints bytes and seconds.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "ingot/store.hpp"
#include "store/ring.hpp"

namespace {

using namespace ingot;
constexpr std::uint64_t kPiece = std::uint64_t{2} << 20;
constexpr std::size_t kDepth = 8;

}  // namespace

int main(int argc, char** argv) try {
  bool direct = true, sync = true;
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--direct")
      direct = true;
    else if (arg == "--buffered")
      direct = false;
    else if (arg == "--no-sync")
      sync = false;
    else
      words.push_back(arg);
  }
  if (words.size() < 3) {
    std::fputs("usage: bench-copy [--direct|--buffered] [--no-sync] OUT OUT_BYTES INPUT...\n",
               stderr);
    return 2;
  }
  const auto disk = system_disk();
  std::vector<std::unique_ptr<File>> inputs;
  std::uint64_t in_bytes = 0;
  for (std::size_t i = 2; i < words.size(); ++i) {
    inputs.push_back(disk->open(words[i]));
    in_bytes += inputs.back()->size() / kPiece * kPiece;
  }
  const std::uint64_t out_bytes = (std::stoull(words[1]) + kPiece - 1) / kPiece * kPiece;
  const auto begin = std::chrono::steady_clock::now();
  const auto out = disk->create(words[0]);
  out->reserve(out_bytes);

  const std::unique_ptr<std::byte, void (*)(void*)> memory(
      static_cast<std::byte*>(std::aligned_alloc(4096, 2 * kDepth * kPiece)), std::free);
  const auto ring = make_ring(2 * kDepth, true);
  std::vector<std::uint64_t> free_reads, free_writes;  // tokens; a token is also a piece of memory
  for (std::uint64_t t = 0; t < kDepth; ++t) {
    free_reads.push_back(t);
    free_writes.push_back(kDepth + t);
  }
  std::uint64_t read = 0, written = 0, input = 0, at = 0;
  while (read < in_bytes || written < out_bytes || ring->pending() > 0) {
    const auto buffer = [&](std::uint64_t token) {
      return std::span(memory.get() + token * kPiece, kPiece);
    };
    if (read < in_bytes && !free_reads.empty()) {
      while (at + kPiece > inputs[input]->size()) {
        ++input;
        at = 0;
      }
      ring->submit(
          {inputs[input].get(), at, buffer(free_reads.back()), false, direct, free_reads.back()});
      free_reads.pop_back();
      at += kPiece;
      read += kPiece;
    } else if (written < out_bytes && !free_writes.empty() &&
               (read == in_bytes || written * in_bytes <= read * out_bytes)) {
      ring->submit(
          {out.get(), written, buffer(free_writes.back()), true, direct, free_writes.back()});
      free_writes.pop_back();
      written += kPiece;
    } else {
      const Completion completion = ring->wait();
      if (completion.error) std::rethrow_exception(completion.error);
      (completion.token < kDepth ? free_reads : free_writes).push_back(completion.token);
    }
  }
  if (sync) out->sync();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("{\"bytes\": %llu, \"seconds\": %.6f, \"ring\": \"%s\"}\n",
              static_cast<unsigned long long>(in_bytes + out_bytes), seconds,
              ring->describe().c_str());
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench-copy: %s\n", error.what());
  return 1;
}

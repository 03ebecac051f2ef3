#include "engine/writer.hpp"

#include <optional>
#include <utility>

#include "engine/arena.hpp"

namespace ingot {
namespace {

// Requests in flight. Eight of 2 MiB reach the rate of a direct copy (bench/README.md, "store").
constexpr unsigned kDepth = 8;

}  // namespace

Writer::Writer(bool allow_uring, std::function<void(std::exception_ptr)> failed)
    // The ring is made here and not by the thread: what cannot be had is the maker's to know.
    : failed_(std::move(failed)), ring_(make_ring(kDepth, allow_uring)) {
  thread_.start(1, [this](int) { loop(); });
}

Writer::~Writer() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    queue_.clear();
  }
  ready_.notify_all();
  thread_.join();
}

void Writer::push(Write write) {
  {
    const std::lock_guard lock(mutex_);
    if (closing_) return;
    queue_.push_back(std::move(write));
  }
  ready_.notify_one();
}

void Writer::loop() {
  try {
    std::uint64_t token = 0;
    for (;;) {
      std::optional<Write> write;
      {
        std::unique_lock lock(mutex_);
        if (ring_->pending() == 0) {
          ready_.wait(lock, [this] { return closing_ || !queue_.empty(); });
        }
        if (closing_ && queue_.empty() && ring_->pending() == 0) return;
        if (!queue_.empty()) {
          write = std::move(queue_.front());
          queue_.pop_front();
        }
      }
      if (!write) {
        const Completion completion = ring_->wait();
        if (completion.error) std::rethrow_exception(completion.error);
        const auto node = flying_.extract(completion.token);
        node.mapped()();
        continue;
      }
      // Head up to the first page boundary, whole pages, tail.
      const std::uint64_t begin = write->offset, end = begin + write->data.size();
      const std::uint64_t first = std::min(round_up(begin, kPage), end);
      const std::uint64_t last = std::max(first, end / kPage * kPage);
      if (write->file->direct() < 0 || last == first) {
        write_exact(*write->file, begin, write->data);
        write->done();
        continue;
      }
      if (first > begin) write_exact(*write->file, begin, write->data.first(first - begin));
      if (end > last) write_exact(*write->file, last, write->data.subspan(last - begin));
      const auto pages = write->data.subspan(first - begin, last - first);
      flying_.emplace(token, std::move(write->done));
      ring_->submit(
          {write->file,
           first,
           {const_cast<std::byte*>(pages.data()), pages.size()},  // a Transfer goes both ways
           true,
           true,
           token++});
    }
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
      queue_.clear();
    }
    failed_(std::current_exception());
  }
}

}  // namespace ingot

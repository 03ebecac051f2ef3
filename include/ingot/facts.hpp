// What is known of a tensor when its formula runs, without its type.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

#include "ingot/math/method.hpp"

namespace ingot::math {

// Facts without their type, for the engine, which moves them and does not look inside: as many
// bytes as the method and its number of sources need.
class Facts {
 public:
  // Room for the facts of a method, each as its type's defaults say.
  template <class Lens, class Combine>
  [[nodiscard]] static Facts of(int sources) {
    Facts facts;
    facts.sources_ = sources;
    facts.blocks_.resize(detail::Layout<Lens, Combine>::bytes(sources) / sizeof(Block));
    const View<Lens, Combine> view = facts.view<Lens, Combine>();
    new (view.whole) typename Combine::Facts();
    for (int s = 0; s < sources; ++s) {
      new (view.lens + s) typename Lens::Facts();
      new (view.source + s) typename Combine::Source();
    }
    return facts;
  }

  template <class Lens, class Combine>
  [[nodiscard]] View<Lens, Combine> view() {
    using Layout = detail::Layout<Lens, Combine>;
    std::byte* data = blocks_.data()->bytes;
    return {reinterpret_cast<typename Combine::Facts*>(data),
            reinterpret_cast<typename Lens::Facts*>(data + Layout::lens()),
            reinterpret_cast<typename Combine::Source*>(data + Layout::source(sources_)), sources_};
  }
  template <class Lens, class Combine>
  [[nodiscard]] Known<Lens, Combine> known() const {
    return math::known<Lens, Combine>(data(), sources_);
  }

  [[nodiscard]] int sources() const noexcept { return sources_; }
  [[nodiscard]] const std::byte* data() const noexcept { return blocks_.data()->bytes; }
  [[nodiscard]] std::size_t bytes() const noexcept { return blocks_.size() * sizeof(Block); }

 private:
  struct alignas(16) Block {
    std::byte bytes[16];
  };
  std::vector<Block> blocks_;
  int sources_ = 0;
};

}  // namespace ingot::math

// Foreign text in messages, cut to a length that people read.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace ingot {

// `text`, or its beginning of at most `most` bytes and an ellipsis; never a part of a UTF-8
// sequence.
[[nodiscard]] std::string clip(std::string_view text, std::size_t most = 60);

}  // namespace ingot

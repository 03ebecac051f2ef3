// Any bytes as a config.json: a copy for the output that is the same when edited again, or
// Error{format}.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "fuzz/check.hpp"
#include "ingot/error.hpp"
#include "plan/config.hpp"
#include "plan/values.hpp"

using ingot::plan::Config;
using ingot::test::check;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const Config config(std::string_view(reinterpret_cast<const char*>(data), size), "m");
    static_cast<void>(config.architecture());
    static_cast<void>(config.quantised());
    static_cast<void>(config.layers("", nullptr, 2));
    static_cast<void>(config.tied());
    if (!config.present()) return 0;
    ingot::plan::Problems problems;
    ingot::plan::Edits edits;
    edits.dtype = "bfloat16";
    edits.vocabulary = 32;
    edits.tied = true;
    edits.ahead.known = true;
    const std::string once = config.edited(edits, problems);
    const Config again(once, "m");
    check(again.edited(edits, problems) == once);
    ingot::plan::compare_values(config, again, {}, "m", "n", problems);
  } catch (const ingot::Error& e) {
    check(e.code() == ingot::Code::format);
  }
  return 0;
}

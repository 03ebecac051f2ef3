// Any bytes as a `.bin` file: tensors that lie in it, or Error{format}.
#include <cstddef>
#include <cstdint>

#include "fuzz/check.hpp"
#include "fuzz/memory.hpp"
#include "ingot/error.hpp"
#include "store/pickle.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ingot::test::MemoryFile file("f", {reinterpret_cast<const char*>(data), size});
  try {
    ingot::test::check_entries(ingot::read_pickle(file, 0), size);
  } catch (const ingot::Error& e) {
    ingot::test::check(e.code() == ingot::Code::format);
  }
  return 0;
}

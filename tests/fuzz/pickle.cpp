// Any bytes as the pickle of a `.bin` file whose archive is right (ten storages of 96 bytes, but
// the one called 1 of 480): tensors that lie in it, or Error{format}.
#include <cstddef>
#include <cstdint>
#include <string>

#include "fuzz/check.hpp"
#include "fuzz/memory.hpp"
#include "hostile/archive.hpp"
#include "ingot/error.hpp"
#include "store/pickle.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ingot::test::Members members{{"m/data.pkl", {reinterpret_cast<const char*>(data), size}}};
  for (int key = 0; key < 10; ++key) {
    members.emplace_back("m/data/" + std::to_string(key), std::string(key == 1 ? 480 : 96, 'w'));
  }
  const std::string bytes = ingot::test::zip(members).bytes;
  ingot::test::MemoryFile file("f", bytes);
  try {
    ingot::test::check_entries(ingot::read_pickle(file, 0), bytes.size());
  } catch (const ingot::Error& e) {
    ingot::test::check(e.code() == ingot::Code::format);
  }
  return 0;
}

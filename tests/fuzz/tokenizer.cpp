// Any bytes as a tokenizer's files: a vocabulary whose two directions agree, or Error{format}. The
// first byte says which file.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>

#include <nlohmann/json.hpp>

#include "fuzz/memory.hpp"
#include "ingot/error.hpp"
#include "token/template.hpp"
#include "token/vocab.hpp"

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

void read(const std::map<std::string, std::string>& files) {
  ingot::test::MemoryDisk disk(files);
  if (const auto vocab = ingot::read_vocab(disk, "m")) {
    check(vocab->rows() > 0 && vocab->used() <= vocab->size());
    for (std::uint64_t id = 0; id < vocab->rows(); ++id) {
      if (const auto token = vocab->token(id)) check(vocab->id(*token) == id);
    }
  }
  (void)ingot::read_template(disk, "m");
}

void replace(const std::string& config) {
  const std::string chat = "{{ \"new\" }}\n";
  const std::string edited = ingot::with_template(config, "f", chat);
  check(nlohmann::json::accept(edited));
  // An escaped spelling of the key is the one case that stays as it was.
  if (config.find("\"chat_template\"") == std::string::npos) check(edited == config);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    switch (data[0] % 5) {
      case 0:
        read({{"m/tokenizer.json", bytes}});
        break;
      case 1:
        read({{"m/vocab.json", bytes}});
        break;
      case 2:
        read({{"m/tokenizer.model", bytes}});
        break;
      case 3:
        read({{"m/vocab.json", R"({"a": 0})"}, {"m/tokenizer_config.json", bytes}});
        break;
      default:
        replace(bytes);
    }
  } catch (const ingot::Error& e) {
    check(e.code() == ingot::Code::format);
  }
  return 0;
}

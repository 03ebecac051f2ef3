#include "failure.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>

#include <fmt/format.h>

namespace ingot::tool {
namespace {

constexpr std::array kExits{
    Exit{0, "done", "nothing"},
    Exit{1, "'diff': the models differ; 'verify': the folder does not match its recipe",
         "read the list that is printed"},
    Exit{2,
         "the command line or the recipe asks for something that cannot be, or OUT is in the way",
         "change the command line or the recipe; 'ingot help COMMAND' shows what is accepted"},
    Exit{
        3, "an input is missing, damaged, or does not fit the others",
        "check the file or model that the message names; 'ingot inspect PATH' shows what it holds"},
    Exit{4, "the system failed: disk full, no memory, no permission, a failing device",
         "make room or change the rights, then run the same command with --resume"},
    Exit{5, "the compute device is missing or cannot do it", "use --device cpu"},
    Exit{6, "a fault of ingot", "report it with the command, the recipe and the message"},
    Exit{129, "stopped by SIGHUP: the terminal was closed", "run the same command with --resume"},
    Exit{130, "stopped by SIGINT: Ctrl-C", "run the same command with --resume"},
    Exit{143, "stopped by SIGTERM: kill, or a limit of the scheduler",
         "run the same command with --resume"},
};

const char* advice_of(int code) {
  const auto found = std::find_if(kExits.begin(), kExits.end(),
                                  [code](const Exit& exit) { return exit.code == code; });
  return found == kExits.end() ? "" : found->advice;
}

// What stands between quotes behind a word: 'NAME' of "tensor 'NAME'".
std::string quoted(std::string_view message, std::string_view word) {
  const std::string start = fmt::format("{} '", word);
  const std::size_t at = message.find(start);
  if (at == std::string_view::npos) return "";
  message.remove_prefix(at + start.size());
  const std::size_t end = message.find('\'');
  return end == std::string_view::npos ? "" : std::string(message.substr(0, end));
}

// Takes ":NUMBER" from the end of a text; 0 where there is none.
std::uint64_t take_number(std::string_view& text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return 0;
  const std::string_view digits = text.substr(colon + 1);
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  if (digits.empty() || digits.size() > 9 || !std::all_of(digits.begin(), digits.end(), digit)) {
    return 0;
  }
  text = text.substr(0, colon);
  return std::stoull(std::string(digits));
}

// Takes "FILE:LINE:COLUMN" and "FILE:LINE"; leaves the place as it is for others.
void take_mark(std::string_view text, Place& place) {
  const std::uint64_t last = take_number(text);
  if (last == 0) return;
  const std::uint64_t before = take_number(text);
  place.file = text;
  place.line = before > 0 ? before : last;
  place.column = before > 0 ? last : 0;
}

// Sentences about a file or a folder that need not be there: what stands before and behind it.
struct Sentence {
  std::string_view start, end;
};
constexpr Sentence kSentences[] = {
    {"there is no folder or file ", " for the model '"},
    {"the model '", "' is not a folder or file "},
    {"there is no recipe ", "; "},
    {"there is no folder ", "; "},
    {"cannot open ", ": "},
    {"cannot write ", ": "},
    {"cannot list ", ": "},
    {"cannot examine ", ": "},
    {"cannot make the folder ", ": "},
    {"cannot create the lock file ", ": "},
    {"OUT '", "' "},
};

bool on_disk(std::string_view path) {
  std::error_code error;
  return path.size() < 4096 && std::filesystem::exists(std::filesystem::path(path), error);
}

Json describe(const Place& place) {
  Json json = Json::object();
  if (!place.file.empty()) json["file"] = place.file;
  if (place.line > 0) json["line"] = place.line;
  if (place.column > 0) json["column"] = place.column;
  if (!place.tensor.empty()) json["tensor"] = place.tensor;
  if (!place.key.empty()) json["key"] = place.key;
  if (!place.option.empty()) json["option"] = place.option;
  return json;
}

}  // namespace

std::span<const Exit> exits() noexcept { return kExits; }

const char* code_word(Code code) noexcept {
  switch (code) {
    case Code::usage:
      return "usage";
    case Code::format:
      return "format";
    case Code::shape:
      return "shape";
    case Code::dtype:
      return "dtype";
    case Code::range:
      return "range";
    case Code::missing:
      return "missing";
    case Code::io:
      return "io";
    case Code::memory:
      return "memory";
    case Code::device:
      return "device";
    case Code::internal:
      return "internal";
  }
  return "internal";
}

Place place_of(std::string_view message) {
  Place place;
  place.tensor = quoted(message, "tensor");
  place.key = quoted(message, "key");
  place.option = quoted(message, "option");
  // "... (while reading model 'a' of r.yml:4:7)".
  if (const std::size_t of = message.rfind(" of "); message.ends_with(')') && of != message.npos) {
    take_mark(message.substr(of + 4, message.size() - of - 5), place);
  }
  // A path may have ": " in it: the longest start that is a place.
  for (std::size_t end = message.find(": "); place.line == 0 && end != std::string_view::npos;
       end = message.find(": ", end + 1)) {
    const std::string_view head = message.substr(0, end);
    if (head.starts_with("--") && head.find(' ') == std::string_view::npos) place.option = head;
    if (on_disk(head)) {
      place.file = head;
    } else {
      take_mark(head, place);
    }
  }
  if (place.option.empty() && message.starts_with("--")) {
    place.option = message.substr(0, message.find_first_of(" :"));
  }
  for (const Sentence& sentence : kSentences) {
    if (!place.file.empty() || !message.starts_with(sentence.start)) continue;
    const std::string_view rest = message.substr(sentence.start.size());
    place.file = rest.substr(0, rest.find(sentence.end));
  }
  // "OUT exists ...": the longest start that is on disk.
  for (std::size_t end = message.find(' '); place.file.empty() && end != std::string_view::npos;
       end = message.find(' ', end + 1)) {
    const std::string_view head = message.substr(0, end);
    if (head.find('/') != std::string_view::npos && on_disk(head)) place.file = head;
  }
  return place;
}

Json describe(const Failure& failure) {
  const int code = exit_code(failure.code);
  return {{"code", code_word(failure.code)},
          {"exit", code},
          {"message", failure.message},
          {"place", describe(place_of(failure.message))},
          {"advice", advice_of(code)}};
}

Json describe(const std::vector<Failure>& failures) {
  Json json{{"exit", exit_code(failures.front().code)}, {"errors", Json::array()}};
  for (const Failure& failure : failures) json["errors"].push_back(describe(failure));
  return json;
}

}  // namespace ingot::tool

#include "engine/journal.hpp"

#include <fmt/format.h>

#include "base/hash.hpp"
#include "ingot/error.hpp"
#include "store/json.hpp"

namespace ingot {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "ingot-journal-2";
// Every line is an object whose last member is the hash of the text before it.
constexpr std::string_view kCheck = ",\"check\":\"";
constexpr std::size_t kDigits = 32;
constexpr std::size_t kTail = kCheck.size() + kDigits + std::string_view("\"}").size();

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// A line of the members given as text without the closing brace.
std::string line_of(std::string members) {
  const std::string digest = hash_block(bytes_of(members)).text();
  return members.append(kCheck).append(digest).append("\"}\n");
}

// The members again; nothing if the hash is wrong.
std::optional<std::string_view> members_of(std::string_view line) {
  if (line.size() < kTail || !line.ends_with("\"}")) return std::nullopt;
  const std::string_view members = line.substr(0, line.size() - kTail);
  const std::string_view tail = line.substr(members.size());
  if (!tail.starts_with(kCheck) ||
      tail.substr(kCheck.size(), kDigits) != hash_block(bytes_of(members)).text()) {
    return std::nullopt;
  }
  return members;
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// The object's text without its closing brace.
std::string opened(const Json& object) {
  std::string text = dump(object);
  text.pop_back();
  return text;
}

void note(const Json& line, std::size_t number, const std::string& path, Record& record) {
  if (number == 1) {
    if (line.value("format", "") != kFormat) {
      fail(Code::format, fmt::format("{}: format {} expected, {} found", path, kFormat,
                                     dump(line.value("format", Json()))));
    }
    record.fingerprint = line.at("fingerprint").get<std::string>();
    record.inputs = line.at("inputs").get<std::map<std::string, std::string>>();
    record.files = line.at("files").get<std::vector<std::string>>();
    record.begun = true;
  } else if (line.contains("job")) {
    record.finished[line.at("job").get<std::size_t>()] = dump(line.at("entry"));
  } else if (line.contains("receipt")) {
    record.receipt = line["receipt"].get<std::string>();
  } else {
    record.removing = line.at("removing").get<std::vector<std::string>>();
  }
}

}  // namespace

Record read_journal(Disk& disk, const std::string& path) {
  const std::string text = read_text(disk, path, std::uint64_t{1} << 32);
  Record record;
  std::size_t number = 0;
  for (std::size_t at = 0; at < text.size(); at = record.end) {
    const std::size_t end = text.find('\n', at);
    if (end == std::string::npos) break;
    ++number;
    const auto members = members_of(std::string_view(text).substr(at, end - at));
    try {
      if (!members) throw Error(Code::format, "");
      note(json_of(std::string(*members) + "}", path), number, path, record);
    } catch (const std::exception&) {
      fail(Code::format, fmt::format("{}: line {} is damaged, or was written by another version of "
                                     "ingot: remove the folder to start again",
                                     path, number));
    }
    record.end = end + 1;
  }
  return record;
}

Journal Journal::create(Disk& disk, const std::string& path, const Record& record, bool sync) {
  Journal journal(disk.create(path), 0, sync);
  Json line{{"format", kFormat}, {"fingerprint", record.fingerprint}};
  line["inputs"] = record.inputs;
  line["files"] = record.files;
  journal.append(line_of(opened(line)));
  return journal;
}

Journal Journal::reopen(Disk& disk, const std::string& path, const Record& record, bool sync) {
  return {disk.update(path), record.end, sync};
}

std::vector<Journal::Place> Journal::finished(
    const std::vector<std::pair<std::size_t, std::string>>& lines) {
  std::vector<Place> places;
  std::string text;
  for (const auto& [job, entry] : lines) {
    const std::string head = fmt::format("{{\"job\":{},\"entry\":", job);
    places.push_back({end_ + text.size() + head.size(), entry.size()});
    text += line_of(head + entry);
  }
  append(text);
  return places;
}

std::string Journal::entry(const Place& place) const {
  std::string text(place.bytes, '\0');
  read_exact(*file_, place.offset, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

void Journal::publishing(const std::string& receipt) {
  append(line_of(opened(Json{{"receipt", receipt}})));
}

void Journal::removing(const std::vector<std::string>& names) {
  append(line_of(opened(Json{{"removing", names}})));
}

void Journal::append(const std::string& text) {
  write_exact(*file_, end_, bytes_of(text));
  end_ += text.size();
  sync();
}

void Journal::sync() {
  if (sync_) file_->sync();
}

}  // namespace ingot

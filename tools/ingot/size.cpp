#include "size.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "ingot/error.hpp"
#include "ingot/text.hpp"

namespace ingot::tool {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr std::uint64_t kMost = std::uint64_t{1} << 62;  // no file or memory comes near

[[noreturn]] void refuse(std::string_view text, std::string_view why) {
  fail(Code::usage, fmt::format("'{}' is not a size: {}", printable(text), why));
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string lower(std::string_view text) {
  std::string result;
  for (char c : text) result += lower(c);
  return result;
}

// The number at the head of `text` as digits * 10^-places; the rest is left in `text`.
struct Decimal {
  std::uint64_t digits = 0;
  int places = 0;
};

Decimal take_number(std::string_view& text, std::string_view whole, bool fraction) {
  Decimal number;
  int count = 0;
  bool point = false;
  while (!text.empty()) {
    const char c = text.front();
    if (c >= '0' && c <= '9') {
      if (++count > 18) refuse(whole, "it has more than 18 digits");
      number.digits = number.digits * 10 + static_cast<std::uint64_t>(c - '0');
      number.places += point ? 1 : 0;
    } else if (c == '.' && fraction && !point && count > 0) {
      point = true;
    } else {
      break;
    }
    text.remove_prefix(1);
  }
  if (count == 0) refuse(whole, "it must start with a number, as in 5GB or 512MiB");
  if (point && number.places == 0) refuse(whole, "a digit is missing after the point");
  return number;
}

std::uint64_t scale(Decimal number, std::uint64_t unit, std::string_view whole) {
  Wide bytes = static_cast<Wide>(number.digits) * unit;
  for (int i = 0; i < number.places; ++i) bytes /= 10;
  if (bytes > kMost) refuse(whole, "it is larger than 4 EiB");
  if (bytes == 0) refuse(whole, "it is zero");
  return static_cast<std::uint64_t>(bytes);
}

}  // namespace

std::uint64_t parse_size(std::string_view text) {
  static constexpr std::array<std::pair<std::string_view, std::uint64_t>, 9> kUnits{{
      {"", 1},
      {"kb", 1'000},
      {"mb", 1'000'000},
      {"gb", 1'000'000'000},
      {"tb", 1'000'000'000'000},
      {"kib", std::uint64_t{1} << 10},
      {"mib", std::uint64_t{1} << 20},
      {"gib", std::uint64_t{1} << 30},
      {"tib", std::uint64_t{1} << 40},
  }};
  std::string_view rest = text;
  const Decimal number = take_number(rest, text, true);
  const std::string unit = lower(rest);
  for (const auto& [name, factor] : kUnits) {
    if (unit == name) return scale(number, factor, text);
  }
  const std::string_view head = text.substr(0, text.size() - rest.size());
  if (unit == "b") {
    refuse(text, fmt::format("write {} for bytes, {}GB for billions of bytes", head, head));
  }
  if (unit == "k" || unit == "m" || unit == "g" || unit == "t") {
    const char letter = static_cast<char>(unit[0] - 'a' + 'A');
    refuse(text, fmt::format("write {0}{1}B (decimal) or {0}{1}iB (binary)", head, letter));
  }
  refuse(text, "the unit must be one of kB MB GB TB KiB MiB GiB TiB, or absent for bytes");
}

std::uint64_t parse_size(std::string_view option, std::string_view text) {
  try {
    return parse_size(text);
  } catch (const Error& error) {
    fail(error.code(), fmt::format("{}: {}", option, error.what()));
  }
}

std::string no_whole(std::string_view text, std::uint64_t most) {
  std::uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  const bool plain = text == "0" || (!text.empty() && text.front() >= '1' && text.front() <= '9');
  if (plain && error == std::errc() && stop == end && value <= most) return {};
  return fmt::format("'{}' is not a whole number from 0 to {}", printable(shorten(text, 100)),
                     most);
}

std::string no_thread_count(const std::string& text) { return no_whole(text, 1024); }

std::uint64_t parse_shard(std::string_view text) {
  std::string_view rest = text;
  const Decimal number = take_number(rest, text, false);
  const std::string unit = lower(rest);
  if (unit.empty()) return scale(number, 1, text);
  if (unit == "k") return scale(number, 1'000, text);
  if (unit == "m") return scale(number, 1'000'000, text);
  if (unit == "b") return scale(number, 1'000'000'000, text);
  refuse(text,
         "--out-shard-size takes a whole number with k, m or b for thousand, million or "
         "billion bytes, as in 5B; --shard-size takes 5GB");
}

std::string show_bytes(std::uint64_t bytes) {
  static constexpr std::array<const char*, 5> kNames{"B", "kB", "MB", "GB", "TB"};
  if (bytes < 1000) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 999.95 && unit + 1 < kNames.size()) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, value < 9.9995 ? 2 : 1, kNames[unit]);
}

std::string show_memory(std::uint64_t bytes) {
  constexpr std::uint64_t kMebi = std::uint64_t{1} << 20;
  constexpr std::uint64_t kGibi = std::uint64_t{1} << 30;
  if (bytes >= kGibi && bytes % kGibi == 0) return fmt::format("{} GiB", bytes / kGibi);
  if (bytes >= 10 * kGibi) {
    return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / static_cast<double>(kGibi));
  }
  if (bytes < kMebi) return fmt::format("{} bytes", bytes);
  return fmt::format("{} MiB", (bytes + kMebi - 1) / kMebi);
}

std::string show_rate(double bytes_per_second) {
  if (!(bytes_per_second > 0)) return "0 B/s";
  if (bytes_per_second >= 1e8) return fmt::format("{:.2f} GB/s", bytes_per_second / 1e9);
  if (bytes_per_second >= 1e5) return fmt::format("{:.1f} MB/s", bytes_per_second / 1e6);
  return fmt::format("{:.1f} kB/s", bytes_per_second / 1e3);
}

std::string show_time(double seconds) {
  if (!(seconds >= 0) || seconds > 1e9) return "unknown";
  if (seconds < 9.995) return fmt::format("{:.2f} s", seconds);
  if (seconds < 59.95) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<std::uint64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string show_count(std::uint64_t count) {
  const std::string digits = std::to_string(count);
  std::string result;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) result += ',';
    result += digits[i];
  }
  return result;
}

std::string show_count(std::uint64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", show_count(count), noun, count == 1 ? "" : "s");
}

}  // namespace ingot::tool

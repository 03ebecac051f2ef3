// Numbers between people and the program: sizes as they are typed, bytes, rates and times as they
// are shown.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ingot::tool {

// A size in bytes: "4096", "5GB" (decimal: kB MB GB TB), "1GiB" (binary: KiB MiB GiB TiB), case and
// a fraction ("1.5GiB") allowed. Bare letters mean different things to different people and are
// refused with both readings. Throws Error{usage}.
[[nodiscard]] std::uint64_t parse_size(std::string_view text);
// The same of an option's value: the option is named.
[[nodiscard]] std::uint64_t parse_size(std::string_view option, std::string_view text);

// mergekit's --out-shard-size: an integer with k, m or b for thousand, million, billion bytes.
[[nodiscard]] std::uint64_t parse_shard(std::string_view text);

// What is wrong with `text` as a whole number from 0 to `most`, in decimal and in full; empty:
// nothing is.
[[nodiscard]] std::string no_whole(std::string_view text, std::uint64_t most);
// The same of a number of threads; a check of an option.
[[nodiscard]] std::string no_thread_count(const std::string& text);

// "318.2 kB", "13.48 GB": decimal, for files and transfers.
[[nodiscard]] std::string show_bytes(std::uint64_t bytes);
// "812 MiB", "1 GiB": binary, for memory.
[[nodiscard]] std::string show_memory(std::uint64_t bytes);
// "2.31 GB/s".
[[nodiscard]] std::string show_rate(double bytes_per_second);
// "0.42 s", "3 min 12 s", "2 h 5 min".
[[nodiscard]] std::string show_time(double seconds);
// "6,738,415,616"; with a noun "1 tensor", "21 tensors".
[[nodiscard]] std::string show_count(std::uint64_t count);
[[nodiscard]] std::string show_count(std::uint64_t count, std::string_view noun);

}  // namespace ingot::tool

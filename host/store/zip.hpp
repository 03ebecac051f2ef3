// A strict reader of the directory of a zip archive whose members are stored, as torch.save writes.
//
// Not a general zip reader: nothing is decompressed, decrypted or extracted, and an archive that
// two readers could understand differently is refused.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ingot/store.hpp"

namespace ingot {

// The bytes of one member: they lie in the archive as they are.
struct Member {
  std::string name;
  std::uint64_t offset = 0;  // of the first byte, from the start of the file
  std::uint64_t size = 0;
};

// The members of an archive, sorted by name.
//
// Every byte of the file has to belong to exactly one member, the directory or the end records, and
// everything the format says twice (local and central headers, end records, data descriptors) has
// to agree. Besides violations of that, members that are compressed or encrypted, names that occur
// twice or would leave the folder, comments and split archives are Error{format}, naming file and
// member. Reads the directory and about 100 bytes per member.
[[nodiscard]] std::vector<Member> read_zip(File& file);

// The member of that name, or nothing; `members` as read_zip returned them.
[[nodiscard]] const Member* find_member(const std::vector<Member>& members,
                                        std::string_view name) noexcept;

}  // namespace ingot

// PyTorch `.bin` checkpoints: where the tensors lie, read from the pickle inside the zip.
//
// A pickle is a program. This reader is a small machine for the part of that language which
// torch.save needs to describe tensors: a closed list of opcodes and a closed list of globals, each
// of which only makes plain data here. Nothing is ever looked up, imported or called, and whatever
// is not on the lists is an error that names it.
#pragma once

#include <cstdint>
#include <vector>

#include "ingot/store.hpp"

namespace ingot {

// The tensors of one `.bin` file, sorted by name, with `index` as their file and offsets into it.
//
// The top of the pickle is a dictionary from name to tensor. It may instead hold such a dictionary
// under "state_dict", or under "model" where that holds tensors only; whatever stands beside it (an
// epoch, an optimizer) is left out, unless it is a tensor. An entry that is not a tensor in the
// dictionary of tensors itself is an error: it would be lost without a word.
//
// Views keep their strides, parameters are their tensors, and names that share a storage share its
// bytes. Every extent, stride and offset is checked against the size of the storage in the zip.
// Anything else is Error{format} naming the file, what was found and what to do: opcodes and
// globals off the lists, the formats of torch before 1.6, TorchScript, big-endian files, views that
// read a storage more often than it has elements.
//
// Reads the zip directory and the pickle, never the weights. Memory is some 100 bytes per opcode,
// of which at most 4 Mi are read.
[[nodiscard]] std::vector<Entry> read_pickle(File& file, std::uint32_t index);

}  // namespace ingot

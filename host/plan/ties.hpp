// Which tensors are one parameter in models that tie their vocabulary: a closed table of classes.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ingot::plan {

// The names that a class reads once its vocabulary is not tied, as checkpoints spell them.
struct Ties {
  std::string embedding;          // empty: found by its role
  std::string head;               // never empty
  std::vector<std::string> uses;  // other uses of the embedding: those of encoder and decoder
  // Biases of the head that a tied checkpoint has once: the other name, and the one it is stored
  // under.
  std::vector<std::pair<std::string, std::string>> biases;
};

// Of a class, or where its name does not tell, of the checkpoint: `has` says whether a tensor of a
// name is in it. `head` is what to answer where nothing is known.
[[nodiscard]] Ties ties(std::string_view architecture,
                        const std::function<bool(const std::string&)>& has, std::string_view head);

// True for classes with a head over the vocabulary, which may be the embedding again.
[[nodiscard]] bool speaks(std::string_view architecture);

}  // namespace ingot::plan

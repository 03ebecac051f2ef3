#include "recipe/tree.hpp"

#include <map>
#include <sstream>
#include <unordered_map>

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include "base/clip.hpp"
#include "ingot/error.hpp"
#include "ingot/text.hpp"

namespace ingot {

std::string position(const std::string& file, Mark mark) {
  if (mark.line <= 0) return file;
  return mark.column > 0 ? fmt::format("{}:{}:{}", file, mark.line, mark.column)
                         : fmt::format("{}:{}", file, mark.line);
}

void fault(const std::string& file, Mark mark, const std::string& message) {
  fail(Code::usage, fmt::format("{}: {}", position(file, mark), message));
}

namespace {

Mark mark_of(const YAML::Mark& mark) { return {mark.line + 1, mark.column + 1}; }

// Length of the UTF-8 sequence at the front of `bytes`, 0 if there is none (RFC 3629: no overlong
// forms, no surrogates, nothing above U+10FFFF).
std::size_t sequence(std::string_view bytes) {
  const auto at = [&](std::size_t i) -> unsigned {
    return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0U;
  };
  const auto tail = [&](std::size_t i) { return (at(i) & 0xC0U) == 0x80U; };
  const unsigned first = at(0);
  if (first < 0x80U) return 1;
  if (first >= 0xC2U && first <= 0xDFU) return tail(1) ? 2 : 0;
  if (first >= 0xE0U && first <= 0xEFU) {
    const bool overlong = first == 0xE0U && at(1) < 0xA0U;
    const bool surrogate = first == 0xEDU && at(1) > 0x9FU;
    return tail(1) && tail(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (first >= 0xF0U && first <= 0xF4U) {
    const bool overlong = first == 0xF0U && at(1) < 0x90U;
    const bool beyond = first == 0xF4U && at(1) > 0x8FU;
    return tail(1) && tail(2) && tail(3) && !overlong && !beyond ? 4 : 0;
  }
  return 0;
}

// yaml-cpp takes any bytes, and byte 4 for the end of the file: what reaches it is text.
void check_text(std::string_view text, const std::string& file) {
  if (text.size() > kRecipeBytes) {
    fault(file, {},
          fmt::format("the recipe has {} bytes; the most that is read is {}", text.size(),
                      kRecipeBytes));
  }
  Mark mark{1, 1};
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = sequence(text.substr(i));
    const auto byte = static_cast<unsigned char>(text[i]);
    if (length == 0) {
      fault(file, mark, fmt::format("byte {:#04x} is not UTF-8; save the recipe as UTF-8", byte));
    }
    if ((byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r') || byte == 0x7F) {
      fault(file, mark, fmt::format("control character {:#04x} is not allowed in YAML", byte));
    }
    mark = byte == '\n' ? Mark{mark.line + 1, 1} : Mark{mark.line, mark.column + 1};
    i += length;
  }
}

// What usually lies behind a syntax error in this line.
std::string advice(std::string_view text, const YAML::Exception& e) {
  if (e.msg == YAML::ErrorMsg::ALIAS_NOT_FOUND || e.msg == YAML::ErrorMsg::UNKNOWN_TOKEN) {
    return "; put a value that begins with * & ! % @ or ` in quotes";
  }
  for (int line = 0; line < e.mark.line; ++line) text.remove_prefix(text.find('\n') + 1);
  const std::string_view indent = text.substr(0, text.find_first_not_of(" \t"));
  return indent.find('\t') == std::string_view::npos ? "" : "; indent with spaces, not tabs";
}

// Whether two nodes say the same. Takes as long as the smaller has nodes, aliases written out.
bool equal(const Node& a, const Node& b) {
  if (&a == &b) return true;
  if (a.kind != b.kind || a.plain != b.plain || a.text != b.text ||
      a.items.size() != b.items.size() || a.pairs.size() != b.pairs.size()) {
    return false;
  }
  for (std::size_t i = 0; i < a.items.size(); ++i) {
    if (!equal(*a.items[i], *b.items[i])) return false;
  }
  for (std::size_t i = 0; i < a.pairs.size(); ++i) {
    if (a.pairs[i].key != b.pairs[i].key || !equal(*a.pairs[i].value, *b.pairs[i].value)) {
      return false;
    }
  }
  return true;
}

// Builds the nodes while yaml-cpp reads, so that every bound holds before its parser goes deeper.
class Builder : public YAML::EventHandler {
 public:
  Builder(std::deque<Node>& nodes, const std::string& file, std::vector<Remark>& remarks)
      : nodes_(nodes), file_(file), remarks_(remarks) {}

  [[nodiscard]] const Node* root() const noexcept { return root_; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (started_) {
      fault(file_, mark_of(mark),
            "a second YAML document starts here; files of several are for mergekit-multi, and a "
            "recipe is one document: give each its own file, and run them one after the other");
    }
    started_ = true;
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    leaf(Node::Kind::null, mark, anchor);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    const bool text = tag == "!" || tag == kStandard + "str";
    const bool typed = tag.empty() || tag == "?" || tag == kStandard + "int" ||
                       tag == kStandard + "float" || tag == kStandard + "bool";
    if (!text && !typed) refuse_tag(tag, mark_of(mark));
    leaf(Node::Kind::scalar, mark, anchor, value, !text);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) {
      fault(file_, mark_of(mark), "this alias refers to a value that contains it");
    }
    count(found->second.size, mark_of(mark));
    place(found->second.node, mark_of(mark));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value /*style*/) override {
    if (!tag.empty() && tag != "?" && tag != "!" && tag != kStandard + "seq") {
      refuse_tag(tag, mark_of(mark));
    }
    open(Node::Kind::list, mark, anchor);
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value /*style*/) override {
    if (!tag.empty() && tag != "?" && tag != "!" && tag != kStandard + "map") {
      refuse_tag(tag, mark_of(mark));
    }
    open(Node::Kind::map, mark, anchor);
  }
  void OnMapEnd() override {
    merge();
    close();
  }

 private:
  // A list or map that is being read.
  struct Frame {
    Node* node = nullptr;
    YAML::anchor_t anchor = YAML::NullAnchor;
    std::uint64_t before = 0;   // nodes counted when it was opened
    const Node* key = nullptr;  // read, its value not yet
    Mark key_mark;
    std::unordered_map<std::string, std::size_t> known;  // keys so far: index into its pairs
    std::vector<std::pair<const Node*, Mark>> merged;    // values of `<<`
  };
  struct Anchor {
    const Node* node = nullptr;
    std::uint64_t size = 0;  // nodes with aliases written out
  };

  static inline const std::string kStandard = "tag:yaml.org,2002:";

  void refuse_tag(const std::string& tag, Mark mark) {
    remark(true, mark,
           fmt::format("the tag '{}' has no meaning in a recipe; remove it", clip(tag)));
  }

  void remark(bool fatal, Mark mark, const std::string& message) {
    constexpr std::size_t kMost = 500;
    if (remarks_.size() < kMost)
      remarks_.push_back({fatal, mark, fmt::format("{}: {}", position(file_, mark), message)});
  }

  void count(std::uint64_t nodes, Mark mark) {
    count_ += nodes;  // both are at most kRecipeNodes
    if (count_ > kRecipeNodes) {
      fault(file_, mark,
            fmt::format("the recipe has more than {} values once its aliases are "
                        "written out",
                        kRecipeNodes));
    }
  }

  void leaf(Node::Kind kind, const YAML::Mark& mark, YAML::anchor_t anchor,
            const std::string& text = {}, bool plain = false) {
    count(1, mark_of(mark));
    // The system's names end at the first one: a path would mean another file than it says.
    if (text.find('\0') != text.npos) {
      fault(file_, mark_of(mark),
            fmt::format("'{}' has a zero byte, which no name of a folder or file has; remove it",
                        printable(clip(text))));
    }
    Node& node = nodes_.emplace_back();
    node.kind = kind;
    node.mark = mark_of(mark);
    node.text = text;
    node.plain = plain;
    if (anchor != YAML::NullAnchor) anchors_[anchor] = {&node, 1};
    place(&node, node.mark);
  }

  void open(Node::Kind kind, const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (frames_.size() == kRecipeDepth) {
      fault(file_, mark_of(mark), fmt::format("more than {} levels of nesting", kRecipeDepth));
    }
    Frame frame;
    frame.anchor = anchor;
    frame.before = count_;
    count(1, mark_of(mark));
    frame.node = &nodes_.emplace_back();
    frame.node->kind = kind;
    frame.node->mark = mark_of(mark);
    frames_.push_back(std::move(frame));
  }

  void close() {
    const Frame frame = std::move(frames_.back());
    frames_.pop_back();
    if (frame.anchor != YAML::NullAnchor) {
      anchors_[frame.anchor] = {frame.node, count_ - frame.before};
    }
    place(frame.node, frame.node->mark);
  }

  // Gives a finished node to what encloses it: as the root, an item, a key or a value.
  void place(const Node* node, Mark mark) {
    if (frames_.empty()) {
      root_ = node;
      return;
    }
    Frame& frame = frames_.back();
    if (frame.node->kind == Node::Kind::list) {
      frame.node->items.push_back(node);
    } else if (frame.key == nullptr) {
      if (node->kind != Node::Kind::scalar) fault(file_, mark, "a key must be a word");
      if (node->text.size() > kRecipeKey) {
        fault(file_, mark,
              fmt::format("a key of {} bytes; the most that is read is {}", node->text.size(),
                          kRecipeKey));
      }
      frame.key = node;
      frame.key_mark = mark;
    } else {
      const Node& key = *std::exchange(frame.key, nullptr);
      if (key.plain && key.text == "<<") {
        frame.merged.emplace_back(node, frame.key_mark);
        return;
      }
      const auto [earlier, fresh] = frame.known.try_emplace(key.text, frame.node->pairs.size());
      if (!fresh) {
        Node::Pair& first = frame.node->pairs[earlier->second];
        if (first.value->kind == Node::Kind::null && node->kind != Node::Kind::null) {
          first = {key.text, frame.key_mark, node};  // a key without a value says nothing
        } else {
          repeated(first, *node, frame.key_mark);
        }
        return;
      }
      frame.node->pairs.push_back({key.text, frame.key_mark, node});
    }
  }

  // A key that its map has already, with another value or the same.
  void repeated(const Node::Pair& first, const Node& second, Mark mark) {
    const bool same = equal(*first.value, second);
    remark(!same, mark,
           fmt::format("the key '{}' is already given in line {}, {}", clip(first.key),
                       first.mark.line,
                       same ? "with the same value: it counts once"
                            : "with another value; remove one of them"));
  }

  // YAML 1.1 merge keys: the map, or maps, under `<<` supply what the map itself does not say; of
  // several the first counts.
  void merge() {
    Frame& frame = frames_.back();
    for (const auto& [value, mark] : frame.merged) {
      const std::vector<const Node*> single{value};
      for (const Node* map : value->kind == Node::Kind::list ? value->items : single) {
        if (map->kind != Node::Kind::map)
          fault(file_, mark, "'<<' takes a mapping or a list of them");
        for (const Node::Pair& pair : map->pairs) {
          if (frame.known.try_emplace(pair.key, frame.node->pairs.size()).second) {
            frame.node->pairs.push_back(pair);
          }
        }
      }
    }
  }

  std::deque<Node>& nodes_;
  const std::string& file_;
  std::vector<Remark>& remarks_;
  std::vector<Frame> frames_;
  std::map<YAML::anchor_t, Anchor> anchors_;
  std::uint64_t count_ = 0;
  const Node* root_ = nullptr;
  bool started_ = false;
};

}  // namespace

Tree::Tree(std::string_view text, const std::string& file, std::vector<Remark>& remarks) {
  check_text(text, file);
  Builder builder(nodes_, file, remarks);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& e) {
    const bool placed = !e.mark.is_null();
    fault(file, placed ? mark_of(e.mark) : Mark{},
          fmt::format("not YAML: {}{}", e.msg, placed ? advice(text, e) : ""));
  }
  root_ = builder.root();
  if (root_ == nullptr || root_->kind == Node::Kind::null) fault(file, {}, "the recipe is empty");
}

}  // namespace ingot

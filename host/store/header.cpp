#include "store/header.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/clip.hpp"
#include "ingot/error.hpp"
#include "store/json.hpp"

namespace ingot {
namespace {

constexpr std::string_view kMetadata = "__metadata__";

bool is_control(char c) noexcept { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

// A tensor as the header states it; offsets count from the start of the data.
struct Claim {
  TensorInfo info;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

// Receives the JSON as it is parsed. Events and not a document, because a document keeps only the
// last of two equal keys and turns 16.0 into 16.
class Sax {
 public:
  explicit Sax(const std::string& path) : path_(path) {}

  std::vector<Claim> claims;
  std::map<std::string, std::string> metadata;

  bool null() { return refuse("null"); }
  bool boolean(bool value) { return refuse(value ? "true" : "false"); }
  bool number_integer(std::int64_t value) { return refuse(std::to_string(value)); }
  bool number_float(double, const std::string& text) { return refuse(cite(text)); }
  bool binary(nlohmann::json::binary_t&) { return refuse("binary"); }

  bool number_unsigned(std::uint64_t value) {
    if (where_ == Where::shape) {
      if (!claim_.info.shape.push(value)) return refuse("more");
    } else if (where_ == Where::offsets && offsets_ < 2) {
      (offsets_++ == 0 ? claim_.begin : claim_.end) = value;
    } else {
      return refuse(std::to_string(value));
    }
    return true;
  }

  bool string(std::string& text) {
    if (where_ == Where::metadata) {
      if (!metadata.emplace(key_, std::move(text)).second) {
        stop(fmt::format("the key {} is given twice in {}", cite(key_), kMetadata));
      }
      return true;
    }
    if (where_ != Where::tensor || field_ != kDtype) return refuse(cite(text));
    const std::optional<Dtype> dtype = dtype_of_name(text);
    if (!dtype) {
      stop(fmt::format("tensor {}: unknown element type {}", cite(key_), cite(text)));
    }
    claim_.info.dtype = *dtype;
    return true;
  }

  bool key(std::string& text) {
    if (where_ == Where::tensor) {
      const auto* const at = std::find(kFields.begin(), kFields.end(), text);
      if (at == kFields.end()) {
        stop(fmt::format("tensor {}: unknown field {}", cite(key_), cite(text)));
      }
      field_ = static_cast<unsigned>(at - kFields.begin());
      if ((seen_ & 1U << field_) != 0) {
        stop(fmt::format("tensor {}: {} is given twice", cite(key_), text));
      }
      seen_ |= 1U << field_;
    } else {
      key_ = std::move(text);
      if (where_ == Where::top && std::any_of(key_.begin(), key_.end(), is_control)) {
        stop(fmt::format("the tensor name {} has control characters", cite(key_)));
      }
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (where_ == Where::start) {
      where_ = Where::top;
    } else if (where_ == Where::top && key_ == kMetadata) {
      if (std::exchange(described_, true)) stop(fmt::format("{} is given twice", kMetadata));
      where_ = Where::metadata;
    } else if (where_ == Where::top) {
      where_ = Where::tensor;
      claim_ = {};
      seen_ = 0;
      offsets_ = 0;
    } else {
      return refuse("an object");
    }
    return true;
  }

  bool end_object() {
    if (where_ == Where::tensor) {
      for (unsigned field = 0; field < kFields.size(); ++field) {
        if ((seen_ & 1U << field) == 0) {
          stop(fmt::format("tensor {}: {} is missing", cite(key_), kFields[field]));
        }
      }
      claim_.info.name = std::move(key_);
      claims.push_back(std::move(claim_));
    }
    where_ = Where::top;
    return true;
  }

  bool start_array(std::size_t) {
    if (where_ != Where::tensor || field_ == kDtype) return refuse("a list");
    where_ = field_ == kShape ? Where::shape : Where::offsets;
    return true;
  }

  bool end_array() {
    if (where_ == Where::offsets && offsets_ != 2) return refuse("fewer");
    where_ = Where::tensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    stop(fmt::format("the header is not valid JSON at its byte {}", position));
  }

 private:
  enum class Where { start, top, metadata, tensor, shape, offsets };
  static constexpr std::array<std::string_view, 3> kFields{"dtype", "shape", "data_offsets"};
  static constexpr unsigned kDtype = 0;
  static constexpr unsigned kShape = 1;

  [[noreturn]] void stop(const std::string& what) const {
    fail(Code::format, fmt::format("{}: {}", path_, what));
  }

  // The value cannot stand where it does. False, because that is what events return.
  bool refuse(const std::string& found) const {
    if (where_ == Where::start) stop("the header must be an object, found " + found);
    if (where_ == Where::metadata) {
      stop(fmt::format("{}: {} must be a text, found {}", kMetadata, cite(key_), found));
    }
    if (where_ == Where::top) {
      stop(fmt::format("{} must be an object, found {}", cite(key_), found));
    }
    constexpr std::array<std::string_view, 3> kExpected{
        "a text", "a list of at most 8 whole numbers from 0 to 2^64 - 1",
        "a list of two whole numbers from 0 to 2^64 - 1"};
    stop(fmt::format("tensor {}: {} must be {}, found {}", cite(key_), kFields[field_],
                     kExpected[field_], found));
  }

  const std::string& path_;
  Where where_ = Where::start;
  bool described_ = false;
  std::string key_;  // of the top level, or of the metadata
  Claim claim_;
  unsigned field_ = 0;
  unsigned seen_ = 0;
  unsigned offsets_ = 0;
};

// The JSON text, its length checked against the file before anything is allocated.
std::string read_json(File& file) {
  const std::uint64_t size = file.size();
  const auto stop = [&](const std::string& what) {
    fail(Code::format, fmt::format("{}: {}", file.path(), what));
  };
  if (size < 8) {
    stop(
        fmt::format("the file has {} bytes, but a safetensors file begins with 8 bytes that give "
                    "the length of its header",
                    size));
  }
  std::array<std::byte, 8> raw{};
  read_exact(file, 0, raw);
  std::uint64_t length = 0;
  for (std::size_t i = raw.size(); i-- > 0;) {
    length = length << 8 | std::to_integer<std::uint64_t>(raw[i]);
  }
  if (std::memcmp(raw.data(), "version ", raw.size()) == 0) {
    stop("this is a Git LFS pointer and not the weights; fetch them with git lfs pull");
  }
  if (length > kHeaderLimit) {
    stop(
        fmt::format("the file announces a header of {} bytes, but at most {} are allowed; this is "
                    "not a safetensors file",
                    length, kHeaderLimit));
  }
  if (length > size - 8) {
    stop(fmt::format(
        "the file announces a header of {} bytes, but it has only {} bytes; it is truncated",
        length, size));
  }
  std::string json(length, '\0');
  read_exact(file, 8, std::as_writable_bytes(std::span(json.data(), json.size())));
  // Writers pad with blanks, at either end.
  const std::size_t first = json.find_first_not_of(" \t\r\n");
  if (first == json.npos || json[first] != '{') stop("the header does not begin with '{'");
  return json;
}

// Every byte of the data belongs to exactly one tensor, and to as many elements as its shape says.
void check_layout(const std::string& path, const std::vector<Claim>& claims, std::uint64_t bytes) {
  const auto stop = [&](const std::string& what) {
    fail(Code::format, fmt::format("{}: {}", path, what));
  };
  for (const Claim& claim : claims) {
    const auto& [name, dtype, shape] = claim.info;
    const std::optional<std::uint64_t> needed = shape.checked_bytes(dtype);
    if (!needed) {
      stop(fmt::format("tensor {}: {} of shape {} does not have a whole number of bytes below 2^61",
                       cite(name), ingot::name(dtype), shape.text()));
    }
    if (claim.begin > claim.end || claim.end - claim.begin != *needed) {
      stop(fmt::format(
          "tensor {}: {} of shape {} needs {} bytes, but its data_offsets are [{}, {}]", cite(name),
          ingot::name(dtype), shape.text(), *needed, claim.begin, claim.end));
    }
  }
  std::vector<const Claim*> order;
  order.reserve(claims.size());
  for (const Claim& claim : claims) order.push_back(&claim);
  std::sort(order.begin(), order.end(), [](const Claim* a, const Claim* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  std::uint64_t end = 0;
  const Claim* last = nullptr;
  for (const Claim* claim : order) {
    if (claim->begin < end) {
      stop(fmt::format("tensors {} and {} overlap: the second begins at {}, the first ends at {}",
                       cite(last->info.name), cite(claim->info.name), claim->begin, end));
    }
    if (claim->begin > end) {
      stop(fmt::format("there is a gap before tensor {}: data bytes {} to {} belong to no tensor",
                       cite(claim->info.name), end, claim->begin));
    }
    end = claim->end;
    last = claim;
  }
  if (end > bytes) {
    stop(fmt::format("the tensors need {} bytes of data, but the file has {}; it is truncated", end,
                     bytes));
  }
  if (end < bytes) {
    stop(fmt::format("{} bytes follow the last tensor and belong to no tensor", bytes - end));
  }
}

std::string json_text(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(Code::format, fmt::format("the name {} is not UTF-8 and cannot be written", cite(text)));
  }
}

}  // namespace

std::string cite(std::string_view name) {
  std::string text = clip(name, 200);  // a tensor's name has 40 or so
  std::replace_if(text.begin(), text.end(), is_control, '?');
  return "'" + text + "'";
}

Header read_header(File& file, std::uint32_t index) {
  const std::string json = read_json(file);
  Sax sax(file.path());
  parse_json(json, sax);
  std::vector<Claim>& claims = sax.claims;
  std::sort(claims.begin(), claims.end(),
            [](const Claim& a, const Claim& b) { return a.info.name < b.info.name; });
  const auto twin =
      std::adjacent_find(claims.begin(), claims.end(),
                         [](const Claim& a, const Claim& b) { return a.info.name == b.info.name; });
  if (twin != claims.end()) {
    fail(Code::format,
         fmt::format("{}: tensor {} is described twice", file.path(), cite(twin->info.name)));
  }
  const std::uint64_t start = 8 + json.size();
  check_layout(file.path(), claims, file.size() - start);

  Header header;
  header.metadata = std::move(sax.metadata);
  header.data_start = start;
  header.entries.reserve(claims.size());
  for (Claim& claim : claims) {
    header.entries.push_back({std::move(claim.info), index, start + claim.begin, {}, {}, {}});
  }
  return header;
}

std::string print_header(std::span<const TensorInfo> tensors,
                         const std::map<std::string, std::string>& metadata) {
  constexpr std::uint64_t kPage = 4096;
  std::string out(8, '\0');
  out += '{';
  const char* comma = "";
  if (!metadata.empty()) {
    out += fmt::format("\"{}\":{{", kMetadata);
    for (const auto& [key, value] : metadata) {
      out += fmt::format("{}{}:{}", std::exchange(comma, ","), json_text(key), json_text(value));
    }
    out += '}';
  }
  std::uint64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    const std::uint64_t begin = end;
    const std::optional<std::uint64_t> bytes = tensor.shape.checked_bytes(tensor.dtype);
    if (!bytes || __builtin_add_overflow(begin, *bytes, &end) || tensor.name == kMetadata) {
      fail(Code::internal, fmt::format("tensor {}: {} of shape {} cannot be stored",
                                       cite(tensor.name), name(tensor.dtype), tensor.shape.text()));
    }
    out += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[", std::exchange(comma, ","),
                       json_text(tensor.name), name(tensor.dtype));
    for (int axis = 0; axis < tensor.shape.rank(); ++axis) {
      out += fmt::format("{}{}", axis == 0 ? "" : ",", tensor.shape[axis]);
    }
    out += fmt::format("],\"data_offsets\":[{},{}]}}", begin, end);
  }
  out += '}';
  out.resize((out.size() + kPage - 1) / kPage * kPage, ' ');
  const std::uint64_t length = out.size() - 8;
  if (length > kHeaderLimit) {
    fail(Code::format,
         fmt::format(
             "the header of {} tensors would have {} bytes, the format allows {}; use smaller "
             "shards",
             tensors.size(), length, kHeaderLimit));
  }
  for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(length >> (8 * i) & 0xff);
  return out;
}

}  // namespace ingot

#include <algorithm>
#include <chrono>
#include <memory>

#include <fmt/format.h>

#include "command.hpp"
#include "console.hpp"
#include "ingot/backend.hpp"
#include "ingot/error.hpp"
#include "ingot/store.hpp"
#include "json.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

constexpr std::size_t kPiece = std::size_t{8} << 20;
constexpr double kLongest = 3;  // seconds of reading

// Bytes per second of reading a folder's files, one after the other, as they come.
double storage_rate(const std::string& folder) {
  const std::unique_ptr<Disk> disk = system_disk();
  if (disk->kind(folder) != Disk::Kind::folder) {
    fail(Code::missing, fmt::format("{} is not a folder; name one with model files", folder));
  }
  std::vector<std::byte> piece(kPiece);
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::uint64_t bytes = 0;
  for (const std::string& name : disk->list(folder)) {
    const std::string path = folder + "/" + name;
    if (disk->kind(path) != Disk::Kind::file) continue;
    const std::unique_ptr<File> file = disk->open(path);
    for (std::uint64_t at = 0; at < file->size() && seconds() < kLongest;) {
      const std::size_t n = file->read(at, piece);
      if (n == 0) break;
      at += n;
      bytes += n;
    }
  }
  return static_cast<double>(bytes) / seconds();
}

double rate(const Rate& r) { return r.seconds > 0 ? static_cast<double>(r.bytes) / r.seconds : 0; }

// The last sentence: the part that limits merges on this machine.
std::string verdict(const std::vector<Rate>& rates, double storage) {
  double link = 0, slowest = 0;
  std::string kernel;
  for (const Rate& r : rates) {
    if (r.what == "copy in over the link") link = rate(r);
    if (r.on_device && (slowest == 0 || rate(r) < slowest)) {
      slowest = rate(r);
      kernel = r.what;
    }
  }
  if (storage > 0 && storage < link && storage < slowest) {
    return fmt::format("The storage limits merges here: it gives {}, and the link takes {}.",
                       show_rate(storage), show_rate(link));
  }
  if (slowest < link) {
    return fmt::format("The kernel '{}' limits merges here: it takes {}, and the link takes {}.",
                       kernel, show_rate(slowest), show_rate(link));
  }
  return fmt::format(
      "The link ({}), or slower storage, limits merges here; the slowest kernel takes {:.0f} times "
      "as much.",
      show_rate(link), slowest / std::max(link, 1.0));
}

class BenchCommand final : public Command {
 public:
  explicit BenchCommand(CLI::App& program)
      : Command(program, "bench", "Measure a CUDA device: links, copies, every kind of kernel") {
    app().add_option("FOLDER", folder_, "A folder of model files, to measure the storage too");
    app()
        .add_option("--device", options_.device, "Which device")
        ->type_name("cuda[:N]")
        ->capture_default_str();
    app()
        .add_option("--device-memory", memory_, "Most memory to take on the device")
        ->type_name("SIZE")
        ->capture_default_str();
    app()
        .add_option("--cuda-libraries", libraries_,
                    "Folder of cuBLAS and cuSOLVER (default: where the system finds "
                    "libraries)")
        ->type_name("DIR");
    app().add_flag("--json", json_, "Print the numbers as JSON on standard output");
    app().footer(
        "Each kernel is shown beside the device's own copy rate: bytes read and written per\n"
        "second, on generated weights in bfloat16.\n"
        "\n"
        "Examples:\n"
        "  ingot bench\n"
        "  ingot bench /models/base --device cuda:1 --json");
  }

  int run() override {
    options_.memory = parse_size("--device-memory", memory_);
    const std::vector<Rate> rates = device_rates(options_);
    const double storage = folder_.empty() ? 0 : storage_rate(folder_);
    double copy = 0;
    for (const Rate& r : rates) {
      if (r.what == "copy on the device") copy = rate(r);
    }
    const std::string sentence = verdict(rates, storage);
    std::string libraries;
    try {
      libraries = device_libraries(libraries_);
    } catch (const Error& error) {
      if (!libraries_.empty()) throw;  // the user named this folder
      libraries = error.message();
    }
    if (json_) {
      Json list = Json::array();
      for (const Rate& r : rates) {
        list.push_back(
            {{"what", r.what},
             {"bytes", r.bytes},
             {"seconds", r.seconds},
             {"share_of_copy", r.on_device && copy > 0 ? Json(rate(r) / copy) : Json()}});
      }
      print_json({{"device", options_.device},
                  {"rates", list},
                  {"libraries", libraries},
                  {"storage_rate", folder_.empty() ? Json() : Json(storage)},
                  {"verdict", sentence}});
      return 0;
    }
    std::string text;
    for (const Rate& r : rates) {
      text += fmt::format("{:32} {:>14}", r.what, show_rate(rate(r)));
      if (r.on_device) text += fmt::format("  {:4.0f} % of its copy rate", 100 * rate(r) / copy);
      text += '\n';
    }
    if (!folder_.empty()) text += fmt::format("{:32} {:>14}\n", "storage", show_rate(storage));
    print(text + libraries + '\n' + sentence + '\n');
    return 0;
  }

 private:
  DeviceOptions options_;
  std::string folder_, libraries_, memory_ = "2GiB";
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> make_bench(CLI::App& program) {
  return std::make_unique<BenchCommand>(program);
}

}  // namespace ingot::tool

#include "command.hpp"
#include "request.hpp"

namespace ingot::tool {
namespace {

class ExtractCommand final : public Command {
 public:
  explicit ExtractCommand(CLI::App& program)
      : Command(program, "extract", "Make an adapter of what a model has over its base"),
        request_(app(), Request::Form::extract) {
    app().footer(
        "Ranks: --rank N for all modules, --rank auto --energy SHARE or --bytes SIZE for each its "
        "own.\n"
        "\n"
        "Examples:\n"
        "  ingot extract base tuned --rank 64 -o out\n"
        "  ingot extract base tuned --rank auto --energy 0.9 --whole-tensors skip -o out\n"
        "  ingot extract base tuned --bytes 200MB -o out");
  }

  int run() override { return merge_by(request_); }

 private:
  Request request_;
};

}  // namespace

std::unique_ptr<Command> make_extract(CLI::App& program) {
  return std::make_unique<ExtractCommand>(program);
}

}  // namespace ingot::tool

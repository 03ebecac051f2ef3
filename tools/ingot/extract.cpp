#include "command.hpp"
#include "request.hpp"

namespace ingot::tool {
namespace {

class ExtractCommand final : public Command {
 public:
  explicit ExtractCommand(CLI::App& program)
      : Command(program, "extract",
                "Make an adapter from the difference between a model and its base"),
        request_(app(), Request::Form::extract) {
    app().footer(
        "Ranks: --rank N gives all modules one rank; --rank auto --energy SHARE or --bytes SIZE\n"
        "chooses a rank for each module.\n"
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

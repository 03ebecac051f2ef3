#include "command.hpp"
#include "request.hpp"

namespace ingot::tool {
namespace {

class BakeCommand final : public Command {
 public:
  explicit BakeCommand(CLI::App& program)
      : Command(program, "bake", "Put adapters into a model's weights, as a new folder"),
        request_(app(), Request::Form::bake) {
    app().footer(
        "Adapters are PEFT folders. The same as a recipe: recipe.yml of OUT has it.\n"
        "\n"
        "Examples:\n"
        "  ingot bake base adapter -o out\n"
        "  ingot bake base style:0.5 facts -o out --dtype float32\n"
        "  ingot bake examples/models/base examples/adapters/c-lora -o out");
  }

  int run() override { return merge_by(request_); }

 private:
  Request request_;
};

}  // namespace

std::unique_ptr<Command> make_bake(CLI::App& program) {
  return std::make_unique<BakeCommand>(program);
}

}  // namespace ingot::tool

#include "command.hpp"
#include "request.hpp"

namespace ingot::tool {
namespace {

class AdapterCommand final : public Command {
 public:
  explicit AdapterCommand(CLI::App& program)
      : Command(program, "adapter", "Work on adapters alone, without the model they are for"),
        merge_(*app().add_subcommand("merge", "Merge adapters into a new adapter")),
        request_(merge_, Request::Form::fuse) {
    app().require_subcommand(1);
    merge_.footer(
        "'ingot methods' lists the types, 'ingot explain TYPE' has the formulas. (IA)3 adapters "
        "merge "
        "by weights.\n"
        "The same as a recipe: recipe.yml of OUT has it.\n"
        "\n"
        "Examples:\n"
        "  ingot adapter merge a:0.7 b:0.3 -o out\n"
        "  ingot adapter merge a:2 b c:-0.5 --type svd --rank auto --energy 0.99 -o out\n"
        "  ingot adapter merge a b --type ties --density 0.2 -o out");
  }

  int run() override { return merge_by(request_); }

 private:
  CLI::App& merge_;
  Request request_;
};

}  // namespace

std::unique_ptr<Command> make_adapter(CLI::App& program) {
  return std::make_unique<AdapterCommand>(program);
}

}  // namespace ingot::tool

// A subcommand: its options and its work.
#pragma once

#include <memory>
#include <string_view>

#include <CLI/CLI.hpp>

namespace ingot::tool {

class Command {
 public:
  virtual ~Command() = default;
  // Does the work and returns the exit code: 0, or 1 if things differ or a check fails.
  [[nodiscard]] virtual int run() = 0;

  [[nodiscard]] CLI::App& app() noexcept { return *app_; }

 protected:
  Command(CLI::App& program, const char* name, const char* summary)
      : app_(program.add_subcommand(name, summary)) {}

 private:
  CLI::App* app_;  // owned by the program
};

[[nodiscard]] std::unique_ptr<Command> make_merge(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_bake(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_adapter(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_extract(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_plan(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_inspect(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_diff(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_verify(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_bench(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_methods(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_explain(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_help(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_completion(CLI::App& program);
[[nodiscard]] std::unique_ptr<Command> make_manual(CLI::App& program);

}  // namespace ingot::tool

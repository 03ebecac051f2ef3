// The command-line program: one subcommand, one exit code.

#include <exception>
#include <memory>
#include <new>
#include <vector>

#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>

#include "command.hpp"
#include "console.hpp"
#include "help.hpp"
#include "ingot/error.hpp"
#include "ingot/recipe.hpp"
#include "ingot/store.hpp"
#include "ingot/version.hpp"

namespace ingot::tool {
namespace {

// OpenBLAS's build for threads starts one for every processor when it is loaded, and they spin for
// a while, though each call stays on its own thread (host/linalg/lapack.cpp): on two processors a
// merge of 65 ms took 100. It counts the processors that the process may use, so it is loaded with
// one: what stands in this section runs before the constructors of shared libraries, too early for
// a variable of the environment to last. main() gives the others back.
cpu_set_t processors;  // all zeros: not known

__attribute__((no_sanitize("address"), no_sanitize("thread"), no_sanitize("undefined"))) void
take_one_processor(int, char**, char**) {
  if (::sched_getaffinity(0, sizeof processors, &processors) != 0) return;
  for (std::size_t i = 0; i < CPU_SETSIZE; ++i) {
    if (!CPU_ISSET(i, &processors)) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(i, &one);
    (void)::sched_setaffinity(0, sizeof one, &one);
    return;
  }
}
__attribute__((section(".preinit_array"),
               used)) void (*const before_libraries)(int, char**, char**) = take_one_processor;

constexpr int kUsage = 2;
constexpr int kInternal = 6;

// As many open files as the system grants: four models of 191 shards, each open twice (through the
// page cache and past it), are more than the usual 1,024.
void open_files() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

void take_all_processors() {
  if (CPU_COUNT(&processors) == 0) return;
  (void)::sched_setaffinity(0, sizeof processors, &processors);
}

// What the parser found wrong, and for an unknown option the nearest that exists.
int complain(const CLI::ParseError& error, CLI::App& program) {
  const CLI::App* command = &program;
  if (const auto chosen = program.get_subcommands(); !chosen.empty()) command = chosen.front();
  std::string text = error.what();
  if (const auto rest = command->remaining(true); !rest.empty()) {
    std::vector<std::string> known;
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
    }
    if (command == &program) {
      for (const CLI::App* each : program.get_subcommands([](const CLI::App*) { return true; })) {
        if (!each->get_group().empty()) known.push_back(each->get_name());
      }
    }
    const std::string word = rest.front().substr(0, rest.front().find('='));
    const std::string near = nearest(word, known);
    text = fmt::format("unknown {} '{}'", word.starts_with("-") ? "option" : "argument", word);
    if (!near.empty()) text += fmt::format("; did you mean {}?", near);
  }
  const Console console;
  console.error(text);
  const std::string name = command == &program ? "" : command->get_name() + " ";
  console.note(fmt::format("ingot {}--help shows what is accepted", name));
  return kUsage;
}

int run(int count, char** words) {
  take_all_processors();
  open_files();
  CLI::App program("ingot merges language-model checkpoints.", "ingot");
  program.set_version_flag("--version", fmt::format("ingot {}", version()), "Print the version");
  program.set_help_flag("-h,--help", "Print this help");
  program.require_subcommand(1);
  program.formatter(std::make_shared<Help>());  // shared by CLI11 with every subcommand
  program.footer(
      "Exit codes: 0 done, 1 differs or falls short, 2 usage, 3 bad input, 4 file system, 5 "
      "device,\n"
      "6 internal.\n"
      "\n"
      "Examples:\n"
      "  ingot plan recipe.yml            what a merge would do, and every problem in its way\n"
      "  ingot merge recipe.yml out       do it\n"
      "  ingot verify out                 check the result against its receipt and its inputs\n"
      "\n"
      "ingot COMMAND --help tells more about a command.");
  std::vector<std::unique_ptr<Command>> commands;
  for (const auto make : {make_merge, make_bake, make_adapter, make_extract, make_plan, make_verify,
                          make_inspect, make_diff, make_bench, make_completion, make_manual}) {
    commands.push_back(make(program));
  }
  try {
    program.parse(count, words);
  } catch (const CLI::Success& wish) {  // --help, --version
    return program.exit(wish);
  } catch (const CLI::ParseError& error) {
    return complain(error, program);
  }
  for (const auto& command : commands) {
    if (command->app().parsed()) return command->run();
  }
  return kUsage;
}

}  // namespace
}  // namespace ingot::tool

int main(int count, char** words) {
  const ingot::tool::Console console;
  try {
    const ingot::Guard guard;
    return ingot::tool::run(count, words);
  } catch (const ingot::Error& error) {
    console.error(error.what());
    return ingot::exit_code(error.code());
  } catch (const std::bad_alloc&) {
    console.error("out of memory; a smaller --memory or fewer --threads may help");
    return ingot::exit_code(ingot::Code::memory);
  } catch (const std::exception& error) {
    console.error(fmt::format("internal error: {}", error.what()));
    return ingot::tool::kInternal;
  }
}

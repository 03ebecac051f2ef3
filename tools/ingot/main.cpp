// The command-line program: one subcommand, one exit code.

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "command.hpp"
#include "complaint.hpp"
#include "console.hpp"
#include "failure.hpp"
#include "help.hpp"
#include "ingot/error.hpp"
#include "ingot/store.hpp"
#include "ingot/version.hpp"
#include "json.hpp"

namespace ingot::tool {
namespace {

// What stands in this section runs before the constructors of shared libraries and, by system calls
// alone, before sanitizers know of it.
using Early = void (*)(int, char**, char**);
#define INGOT_EARLY \
  __attribute__((no_sanitize("address"), no_sanitize("thread"), no_sanitize("undefined")))

// The first file that is opened gets the lowest free number. Were that 0, 1 or 2, because whoever
// started the program had closed it, the file would be read or written to as a standard stream: the
// progress line would land in the weights.
INGOT_EARLY void fill_standard_descriptors(int, char**, char**) {
  for (int number = 0; number <= 2; ++number) {
    if (::syscall(SYS_fcntl, number, F_GETFD) >= 0) continue;
    // Lower ones are open, so that this is the one it gets. A root without /dev has a folder, which
    // nothing can be written to.
    if (::syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR) == number) continue;
    if (::syscall(SYS_openat, AT_FDCWD, "/", O_PATH) == number) continue;
    ::_exit(4);
  }
}

std::atomic<bool> starved = false;  // an allocation has failed

// Memory can run out where C++ has no way back: in destructors and functions of libraries that are
// declared not to fail and allocate all the same. Such an end is told like any other for want of
// memory; what it leaves is what a kill leaves, OUT as it was.
INGOT_EARLY void take_shortage(int, char**, char**) {
  std::set_new_handler([] {
    starved = true;
    throw std::bad_alloc();
  });
  std::set_terminate([] {
    bool shortage = starved;
    if (const std::exception_ptr thrown = std::current_exception()) {
      try {
        std::rethrow_exception(thrown);
      } catch (const std::bad_alloc&) {
        shortage = true;
      } catch (...) {
        shortage = false;
      }
    }
    if (!shortage) std::abort();
    starve();
    std::_Exit(exit_code(Code::memory));
  });
}

// OpenBLAS's build for threads starts one for every processor when it is loaded, and they spin for
// a while, though each call stays on its own thread (host/linalg/lapack.cpp): on two processors a
// merge of 65 ms took 100. It counts the processors that the process may use, so it is loaded with
// one: too early for a variable of the environment to last. main() gives the others back.
cpu_set_t processors;  // all zeros: not known

INGOT_EARLY void take_one_processor(int, char**, char**) {
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
INGOT_EARLY void before_libraries(int count, char** words, char** environment) {
  fill_standard_descriptors(count, words, environment);
  take_shortage(count, words, environment);
  take_one_processor(count, words, environment);
}
// One pointer and no list: lists are aligned to more than a pointer's size, and what fills the gap
// behind a sanitizer's own entry is called as well.
__attribute__((section(".preinit_array"), used)) const Early early = before_libraries;

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

// Signals whose cause arrives as an error of the call as well: a limit on the size of files, and a
// reader of a stream that has left.
void take_errors() {
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
}

void take_all_processors() {
  if (CPU_COUNT(&processors) == 0) return;
  (void)::sched_setaffinity(0, sizeof processors, &processors);
}

int run(int count, char** words) {
  take_errors();
  take_all_processors();
  open_files();
  CLI::App program("ingot merges language-model checkpoints.", "ingot");
  program.set_version_flag("-V,--version", fmt::format("ingot {}", version()), "Print the version");
  program.set_help_flag("-h,--help", "Print this help");
  program.require_subcommand(1);
  program.formatter(std::make_shared<Help>());  // shared by CLI11 with every subcommand
  program.footer(
      "Exit codes: 0 done; 1 a difference was found; 2 command line or recipe; 3 input; 4 the "
      "system (disk, memory, permission); 5 compute device; 6 a fault of ingot; 129, 130 and 143 "
      "stopped by a signal.\n"
      "\n"
      "Examples:\n"
      "  ingot plan recipe.yml            what a merge would do, and every problem\n"
      "  ingot merge recipe.yml out       do it\n"
      "  ingot verify out                 check the result, its receipt and its inputs\n"
      "\n"
      "'ingot help COMMAND' tells more about a command, 'ingot help options' about options of "
      "other programs.");
  std::vector<std::unique_ptr<Command>> commands;
  for (const auto make : {make_merge, make_bake, make_adapter, make_extract, make_plan, make_verify,
                          make_inspect, make_diff, make_methods, make_explain, make_bench,
                          make_help, make_completion, make_manual}) {
    commands.push_back(make(program));
  }
  if (count <= 1) {
    Console().plain(overview());
    return kUsage;
  }
  const std::vector<std::string> all(words + 1, words + count);
  if (const std::optional<int> code = complain_of_command(program, all)) return *code;
  try {
    program.parse(count, words);
  } catch (const CLI::Success& wish) {  // --help, --version
    std::ostringstream text;
    const int code = program.exit(wish, text, text);
    print(text.str());
    return code;
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

namespace {

int starved() noexcept {
  ingot::tool::starve();
  return ingot::exit_code(ingot::Code::memory);
}

// The exit code of what run() threw.
int explain(const std::exception_ptr& thrown) {
  const ingot::tool::Console console;
  try {
    std::rethrow_exception(thrown);
  } catch (const ingot::Error& error) {
    console.error(error.what(), error.code());
    return ingot::exit_code(error.code());
  } catch (const std::bad_alloc&) {
    return starved();
  } catch (const std::exception& error) {
    console.error(fmt::format("internal error: {}", error.what()), ingot::Code::internal);
    return ingot::tool::kInternal;
  }
}

int guarded(int count, char** words) {
  try {
    const ingot::Guard guard;
    return ingot::tool::run(count, words);
  } catch (...) {
    try {
      return explain(std::current_exception());
    } catch (const std::bad_alloc&) {  // not even enough to say what it was
      return starved();
    }
  }
}

// With --json, a command that fails prints JSON too (failure.hpp). What prints data and
// fails (a plan with problems, a verification) says so in it.
void tell_failure(int code, int count, char** words) {
  using namespace ingot::tool;
  if (code <= 1 || has_printed()) return;
  const auto asks = [](const char* word) { return std::string_view(word) == "--json"; };
  if (count < 2 || std::none_of(words + 1, words + count, asks)) return;
  try {
    std::vector<Failure> all = failures();
    if (all.empty()) all.push_back({ingot::Code::memory, "out of memory"});
    Json json = describe(all);
    json["exit"] = code;
    print_json(json);
  } catch (const std::exception&) {  // stderr and the exit code have it
  }
}

}  // namespace

int main(int count, char** words) {
  const int code = guarded(count, words);
  if (count > 0) tell_failure(code, count, words);
  return code;
}

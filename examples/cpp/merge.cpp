// merge RECIPE OUT [ROOT]: merges models by a recipe with the library, as `ingot merge` does.
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>

#include <ingot/merge.hpp>

namespace {

// Returns the exit code.
int run(const std::string& file, const std::string& out, const std::string& root) {
  const std::unique_ptr<ingot::Disk> disk = ingot::system_disk();

  // 1. The recipe: YAML text as typed values. A syntax error is an exception with file and line.
  const ingot::Recipe recipe = ingot::parse(ingot::read_text(*disk, file), file, {});

  // 2. The plan: reads the models' headers, not their weights. It collects every problem.
  ingot::PlanOptions options;
  options.root = root;  // where the recipe's relative paths start; empty: the working folder
  options.title = std::filesystem::path(out).filename().string();  // of the model card
  ingot::Plan plan = ingot::build(*disk, recipe, options);
  int code = 0;
  for (const ingot::Problem& problem : plan.problems) {
    std::cerr << (problem.fatal ? "error: " : "warning: ") << problem.text << '\n';
    if (problem.fatal && code == 0) code = ingot::exit_code(problem.code);
  }
  if (!plan.sound()) return code;

  // 3. The merge: writes the folder, which appears complete or not at all.
  const std::unique_ptr<ingot::Backend> backend =
      ingot::cpu_backend("");  // "": the best this CPU has
  ingot::MergeOptions limits;
  limits.memory = std::uint64_t{1} << 30;  // ceiling on this process's resident memory, in bytes
  const ingot::Report report = ingot::merge(*disk, *backend, plan, out, limits);
  std::cout << "wrote " << report.out << ": " << report.tensors << " tensors\n"
            << "receipt " << report.receipt << '\n';
  return 0;
}

}  // namespace

int main(int count, char** words) {
  if (count < 3 || count > 4) {
    std::cerr << "usage: merge RECIPE OUT [ROOT]\n";
    return 2;
  }
  // Allows the merge to compute on mapped files; without it their bytes are copied first. It
  // installs a signal handler, so the program decides and not the library.
  const ingot::Guard guard;
  try {
    return run(words[1], words[2], count == 4 ? words[3] : "");
  } catch (const ingot::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return ingot::exit_code(error.code());
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 6;
  }
}

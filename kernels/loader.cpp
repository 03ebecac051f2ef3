#include "loader.hpp"

#include <dlfcn.h>

#include <array>
#include <vector>

#include "ingot/backend.hpp"
#include "ingot/error.hpp"

namespace ingot {
namespace gpu {
namespace {

constexpr char kToolkit[] = "/usr/local/cuda/lib64";
// CUDA 13 and 12; what is used of them has not changed in between.
constexpr std::array<const char*, 2> kBlas = {"libcublas.so.13", "libcublas.so.12"};
constexpr std::array<const char*, 2> kSolver = {"libcusolver.so.12", "libcusolver.so.11"};

// The system's message about the last failure, in one line.
std::string reason() {
  const char* const text = dlerror();
  return text != nullptr ? text : "no reason given";
}

// "13.1.0", by the function that both libraries have under their own names.
std::string version(const Library& library, const char* function) {
  std::string text;
  for (int part = 0; part < 3; ++part) {
    int number = 0;
    if (library.symbol<int(int, int*)>(function)(part, &number) != 0)
      fail(Code::device, library.path() + " does not say which version it is");
    text.append(part == 0 ? "" : ".").append(std::to_string(number));
  }
  return text;
}

}  // namespace

void Library::Close::operator()(void* handle) const noexcept { (void)dlclose(handle); }

Library::Library(std::span<const char* const> names, const std::string& folder) {
  std::string said;
  std::vector<std::string> places = {folder};
  if (folder.empty()) places.emplace_back(kToolkit);
  for (const std::string& place : places)
    for (const char* const name : names) {
      path_ = place.empty() ? name : place + "/" + name;
      handle_.reset(dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL));
      if (handle_ != nullptr) return;
      if (said.empty()) said = reason();
    }
  fail(Code::device, std::string("cannot open ") + names.front() + " (" + said +
                         "); name the folder that has it with --cuda-libraries");
}

void* Library::find(const char* name) const {
  void* const found = dlsym(handle_.get(), name);
  if (found == nullptr)
    fail(Code::device, path_ + " has no function " + name + " (" + reason() + ")");
  return found;
}

Library open_blas(const std::string& folder) { return Library(kBlas, folder); }

Libraries open_libraries(const std::string& folder) {
  return {open_blas(folder), Library(kSolver, folder)};
}

}  // namespace gpu

std::string device_libraries(const std::string& folder) {
  const gpu::Libraries found = gpu::open_libraries(folder);
  return "cuBLAS " + gpu::version(found.blas, "cublasGetProperty") + " (" + found.blas.path() +
         "), cuSOLVER " + gpu::version(found.solver, "cusolverGetProperty") + " (" +
         found.solver.path() + ")";
}

}  // namespace ingot

// cuBLAS and cuSOLVER, opened at run time: the program starts on machines without them, and takes
// those of the machine where it needs them. Knows no CUDA header.
#pragma once

#include <memory>
#include <span>
#include <string>

namespace ingot::gpu {

// A shared library, open as long as this object.
class Library {
 public:
  // Opens the first of `names` ("libcublas.so.13", "libcublas.so.12") that `folder` has; without a
  // folder, that the system's search path has, or /usr/local/cuda/lib64. Throws Error{device} with
  // one sentence: what was looked for, where, and what the system said.
  Library(std::span<const char* const> names, const std::string& folder);

  // The library's name as it was opened, with its folder unless the search path found it.
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

  // A function by name and type: `symbol<int(int, int*)>("cublasGetProperty")`. Throws
  // Error{device} if the library lacks it.
  template <class Function>
  [[nodiscard]] Function* symbol(const char* name) const {
    return reinterpret_cast<Function*>(find(name));
  }

 private:
  struct Close {
    void operator()(void* handle) const noexcept;
  };

  [[nodiscard]] void* find(const char* name) const;

  std::unique_ptr<void, Close> handle_;
  std::string path_;
};

// The two that dense linear algebra on a device needs, with the major versions whose interface is
// known.
struct Libraries {
  Library blas, solver;
};

// Both throw as Library does.
[[nodiscard]] Library open_blas(const std::string& folder);
[[nodiscard]] Libraries open_libraries(const std::string& folder);

}  // namespace ingot::gpu

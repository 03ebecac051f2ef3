// The loader of cuBLAS and cuSOLVER, over two small libraries that stand for them.
#include "loader.hpp"

#include <array>

#include <gtest/gtest.h>

#include "ingot/backend.hpp"
#include "ingot/error.hpp"

namespace ingot {
namespace {

TEST(Loader, OpensWhatTheFolderHas) {
  const std::string folder = INGOT_LIBRARIES;
  EXPECT_EQ(device_libraries(folder), "cuBLAS 7.8.9 (" + folder +
                                          "/libcublas.so.13), cuSOLVER 7.8.9 (" + folder +
                                          "/libcusolver.so.12)");
}

TEST(Loader, TakesTheFirstNameThereIs) {
  const std::array<const char*, 2> names = {"libcublas.so.99", "libcublas.so.13"};
  const gpu::Library library(names, INGOT_LIBRARIES);
  int number = 0;
  EXPECT_EQ(library.symbol<int(int, int*)>("cublasGetProperty")(1, &number), 0);
  EXPECT_EQ(number, 8);
}

TEST(Loader, SaysWhatItLookedForAndWhatToDo) {
  try {
    (void)device_libraries("/nowhere");
    FAIL() << "found libraries in a folder that is not there";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::device);
    const std::string text = e.message();
    EXPECT_NE(text.find("libcublas.so.13"), std::string::npos) << text;
    EXPECT_NE(text.find("--cuda-libraries"), std::string::npos) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
}

TEST(Loader, AMissingFunctionIsAnError) {
  const std::array<const char*, 1> names = {"libcublas.so.13"};
  const gpu::Library library(names, INGOT_LIBRARIES);
  try {
    (void)library.symbol<int()>("cublasDoesNotHaveThis");
    FAIL() << "found a function that is not there";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::device);
    EXPECT_NE(e.message().find("cublasDoesNotHaveThis"), std::string::npos) << e.message();
  }
}

}  // namespace
}  // namespace ingot

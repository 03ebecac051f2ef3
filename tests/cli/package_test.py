"""`cmake --install` and `find_package(ingot)`."""

import pathlib
import subprocess
import unittest

from program import BUILD, Case

LIST = """\
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
find_package(ingot 0.1 REQUIRED)
add_executable(consumer consumer.cpp)
target_link_libraries(consumer PRIVATE ingot::ingot)
"""
CODE = """\
#include <iostream>
#include <ingot/merge.hpp>

int main() {
  const auto recipe = ingot::parse("{merge_method: linear, models: [{model: a}]}", "r", {});
  std::cout << recipe.method << ' ' << ingot::cpu_backend("v2")->describe() << '\\n';
}
"""


class Package(Case):
    def call(self, *words):
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_installs_and_serves_a_consumer(self):
        prefix = self.folder / "prefix"
        # The program alone is enough: what it says of itself is written where it is missing.
        pages = BUILD / "pages"
        if pages.exists():
            pages.rename(self.folder / "pages")
        self.call("cmake", "--install", BUILD, "--prefix", prefix)
        for name in ("bin/ingot", "include/ingot/merge.hpp", "include/ingot/math/list.hpp",
                     "share/man/man1/ingot.1", "share/bash-completion/completions/ingot",
                     "share/zsh/site-functions/_ingot", "share/fish/vendor_completions.d/ingot.fish"):
            self.assertTrue((prefix / name).is_file(), name)
        self.assertIn("ingot ", self.call(prefix / "bin" / "ingot", "--version"))

        (self.folder / "CMakeLists.txt").write_text(LIST)
        (self.folder / "consumer.cpp").write_text(CODE)
        cache = (BUILD / "CMakeCache.txt").read_text()
        sanitize = next((line.split("=", 1)[1] for line in cache.splitlines()
                         if line.startswith("INGOT_SANITIZE:")), "")
        flags = [f"-DCMAKE_CXX_FLAGS=-fsanitize={sanitize}"] if sanitize else []
        self.call("cmake", "-S", self.folder, "-B", self.folder / "build", "-G", "Ninja",
                  f"-DCMAKE_PREFIX_PATH={prefix}", *flags)
        self.call("cmake", "--build", self.folder / "build")
        self.assertRegex(self.call(self.folder / "build" / "consumer"), r"^linear cpu")


if __name__ == "__main__":
    unittest.main()

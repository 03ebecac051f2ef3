"""`cmake --install`, and examples/cpp, which finds the installed package."""

import subprocess
import unittest

from program import BUILD, EXAMPLES, PROGRAM, TIES, Case, bytes_of


class Package(Case):
    def call(self, *words):
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def install(self):
        """The folder that holds the installed program and library."""
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
        return prefix

    def test_installs_and_the_example_merges_with_it(self):
        prefix = self.install()
        cache = (BUILD / "CMakeCache.txt").read_text()
        sanitize = next((line.split("=", 1)[1] for line in cache.splitlines()
                         if line.startswith("INGOT_SANITIZE:")), "")
        flags = [f"-DCMAKE_CXX_FLAGS=-fsanitize={sanitize}"] if sanitize else []
        build = self.folder / "build"
        self.call("cmake", "-S", EXAMPLES / "cpp", "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", *flags)
        self.call("cmake", "--build", build)

        recipe = self.write("recipe.yml", TIES)
        for name in ("library", "program"):
            (self.folder / name).mkdir()
        library, program = self.folder / "library" / "model", self.folder / "program" / "model"
        printed = self.call(build / "merge", recipe, library, EXAMPLES)
        self.assertEqual(printed, f"wrote {library}: 21 tensors\nreceipt {library}/ingot.json\n")
        self.call(PROGRAM, "merge", recipe, program, "--root", EXAMPLES)
        self.assertEqual(bytes_of(library), bytes_of(program))

        for text, code, message in ((TIES.replace("python", "pithon"), 3, "there is no folder or file"),
                                    (TIES.replace("density: 0.5", "density: 1.5"), 2, "density"), ("a: [", 2, "recipe.yml")):
            recipe = self.write("recipe.yml", text)
            done = subprocess.run([build / "merge", recipe, self.folder / "none", EXAMPLES], capture_output=True, text=True)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertRegex(done.stderr, f"(?m)^error: .*{message}")
            self.assertFalse((self.folder / "none").exists())


if __name__ == "__main__":
    unittest.main()

"""Completions and the manual, printed by the program from its own options."""

import re
import shutil
import subprocess
import unittest

from program import EXAMPLES, PROGRAM, SOURCE, USAGE, Case


class Completion(Case):
    def complete(self, *words):
        """What bash offers after these words."""
        script = self.run_ok("completion", "bash").stdout
        line = " ".join(f"'{word}'" for word in words)
        run = subprocess.run(
            ["bash", "-c", f"{script}\nCOMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
             "_ingot; printf '%s\\n' \"${COMPREPLY[@]}\""],
            capture_output=True, text=True, cwd=self.folder, check=True)
        return run.stdout.split()

    def test_bash_offers_commands(self):
        self.assertEqual(self.complete("ingot", "mer"), ["merge"])
        self.assertIn("--version", self.complete("ingot", "--"))

    def test_bash_offers_options_of_the_command(self):
        self.assertEqual(self.complete("ingot", "merge", "--res"), ["--resume"])
        self.assertNotIn("--resume", self.complete("ingot", "inspect", "--"))

    def test_bash_offers_values(self):
        self.assertEqual(self.complete("ingot", "merge", "--device", "c"), ["cpu", "cuda"])
        self.assertEqual(self.complete("ingot", "completion", "z"), ["zsh"])
        self.assertEqual(self.complete("ingot", "adapter", "merge", "a", "--type", "magnitude_prune_"), ["magnitude_prune_svd"])
        self.assertEqual(self.complete("ingot", "explain", "task"), ["task_arithmetic"])
        self.assertEqual(self.complete("ingot", "help", "ex"), ["exit-codes", "extract", "explain"])
        self.assertEqual(self.complete("ingot", "extract", "a", "b", "--rank", ""), ["auto"])
        self.assertEqual(self.complete("ingot", "adapter", "merge", "--compat", "ia"), ["ia3-plain-sum"])
        self.assertEqual(self.complete("ingot", "merge", "--dtype", "float8"), ["float8_e4m3fn", "float8_e5m2"])

    def test_bash_offers_values_behind_an_equals_sign(self):
        self.assertEqual(self.complete("ingot", "merge", "--storage", "=", "ma"), ["mapped"])
        self.assertEqual(self.complete("ingot", "merge", "--device", "="), ["cpu", "cuda", "auto"])

    def test_bash_offers_the_inner_command(self):
        self.assertEqual(self.complete("ingot", "adapter", ""), ["merge"])
        self.assertEqual(self.complete("ingot", "adapter", "merge", "--keep"), ["--keep-scaling"])

    def test_bash_offers_the_tensors_of_the_model_on_the_line(self):
        model = EXAMPLES / "models" / "base"
        names = self.complete(PROGRAM, "inspect", model, "--tensor", "model.layers.0.self")
        self.assertIn("model.layers.0.self_attn.q_proj.weight", names)
        self.assertEqual(len(names), 4)
        self.assertEqual(self.complete(PROGRAM, "inspect", "nowhere", "--tensor", "m"), [])

    def test_bash_offers_files_and_folders(self):
        self.write("recipe.yml", "")
        (self.folder / "rest").mkdir()
        self.assertEqual(sorted(self.complete("ingot", "merge", "re")), ["recipe.yml", "rest"])
        self.assertEqual(self.complete("ingot", "merge", "--root", "re"), ["rest"])

    def test_shells_accept_their_scripts(self):
        for shell in ("bash", "zsh", "fish"):
            with self.subTest(shell=shell):
                script = self.run_ok("completion", shell).stdout
                self.assertIn("--shard-size" if shell != "fish" else "-l shard-size", script)
                if shutil.which(shell):
                    subprocess.run([shell, "-n"], input=script, text=True, check=True)

    def test_mergekits_names_are_not_offered(self):
        self.assertNotIn("--lazy-unpickle", self.run_ok("completion", "bash").stdout)

    def test_unknown_shell_is_refused(self):
        self.run_fails(USAGE, "completion", "tcsh")


class Manual(Case):
    def test_has_every_command_and_option(self):
        page = self.run_ok("manual").stdout
        for word in (".SH NAME", ".SH INGOT MERGE", "\\-\\-resume", "\\-\\-lazy\\-unpickle", "INGOT_ISA",
                     ".SH EXIT STATUS"):
            self.assertIn(word, page)

    def test_formats_without_warning(self):
        if not shutil.which("groff"):
            self.skipTest("no groff")
        page = self.run_ok("manual").stdout
        done = subprocess.run(["groff", "-man", "-Tutf8", "-ww"], input=page, capture_output=True,
                              text=True, check=True)
        self.assertEqual(done.stderr, "")


class Promises(unittest.TestCase):
    """docs/promises.md names a test for every claim."""

    def test_every_test_that_is_named_exists(self):
        tests = set()
        for source in (SOURCE / "tests").rglob("*_test.*"):
            folder, text = source.parent.name, source.read_text()
            if source.suffix == ".py":
                tests.add(f"{folder}.{source.stem.removesuffix('_test')}")
            for suite, name in re.findall(r"^(?:TYPED_)?TEST(?:_F|_P)?\((\w+),\s*(\w+)\)", text, re.M):
                tests.add(f"{folder}.{suite}.{name}")
        folders, suites = {t.split(".")[0] for t in tests}, {t.rsplit(".", 1)[0] for t in tests}
        text = (SOURCE / "docs/promises.md").read_text()
        suite, count = "", 0
        for named in re.findall(r"`((?:unit|golden|parity|hostile|fault|cli|emu)?\.[\w.*…]+)`", text):
            if named.startswith("."):
                named = suite + named
            suite = named.rsplit(".", 1)[0]
            start = named.rstrip("*…").rstrip(".") if named.endswith("*") else named.rstrip("…")
            known = (start in folders or start in suites or start in tests
                     or named.endswith("…") and any(t.startswith(start) for t in tests))
            self.assertTrue(known, f"docs/promises.md names {named}, which is no test")
            count += 1
        self.assertGreater(count, 40)


if __name__ == "__main__":
    unittest.main()

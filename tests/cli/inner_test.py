"""tools/test with a part: what it would build and run, and that it does. cmake and ctest are played by scripts."""

import os
import re
import shutil
import subprocess
import unittest

from program import BUILD, SOURCE, Case

PARTS = "unit golden parity hostile fault cli emu interop style".split()
CMAKE = """#!/bin/sh
echo cmake "$@" >> "$LOG"
case "$*" in *"$FAILS"*) exit 1 ;; esac
"""
CTEST = """#!/bin/sh
echo ctest "$@" >> "$LOG"
while [ "$1" != --output-junit ]; do shift; done
echo '<testsuite tests="3" failures="1" skipped="1" disabled="0"/>' > "$2"
exit 8
"""
SETUP = """#!/bin/sh
echo setup "$@" >> "$LOG"
"""
TESTS = """\
TEST(Scale, HalfIsExact) {}
TYPED_TEST(Scale, DoubleIsExact) {}
TYPED_TEST(Scale, TripleIsExact) {}
TEST_P(
    Shape, HalfIsSmaller) {}
"""


def script(folder, *words, **options):
    return subprocess.run([folder / "tools" / "test", *words], capture_output=True, text=True, **options)


class Matching(Case):
    def matching(self, pattern, names):
        """Those of the names that ctest runs for an expression: its dialect has few parentheses."""
        self.write("CTestTestfile.cmake", "".join(f"add_test([=[{name}]=] true)\n" for name in names))
        done = subprocess.run(["ctest", "-N", "-R", pattern], cwd=self.folder, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""), pattern)
        return re.findall(r"Test +#\d+: (\S+)", done.stdout)


class Choice(Matching):
    def choose(self, *words):
        """Targets and the expression of names."""
        done = script(SOURCE, "--dry-run", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        build, tests = done.stdout.splitlines()
        return set(build.removeprefix("build:").split()), tests.removeprefix("tests: ")

    @unittest.skipUnless((BUILD / "build.ninja").exists(), "not built by Ninja")
    def test_every_program_of_tests_belongs_to_a_part(self):
        """Targets that the build has in tests/ are those that the parts name, so that no new kind is forgotten."""
        built = set(re.findall(r"^build (\w+): phony tests/\w+$", (BUILD / "build.ninja").read_text(), re.M))
        built = {target for target in built if not re.match("device_|ingot_", target)}
        named = set()
        for part in PARTS:
            if part != "emu" or "emu_block" in built:  # it needs Thrust
                named |= self.choose(part)[0]
        others = {target for target in named if re.match(r"ingot_|fake_", target)}
        self.assertEqual(named - others, built)
        self.assertGreater(len(built), 50)

    def test_a_file_is_built_alone(self):
        targets, pattern = self.choose("unit", "methods")
        self.assertEqual(targets, {"unit_methods_test"})
        names = ["unit.Methods.slerp_turns_by_the_angle", "unit.FoldOnCpu.slerp_sums_are_those_of_the_definition",
                 "parity.Methods.slerp_turns_by_the_angle", "unit.MoreMethods.slerp"]
        self.assertEqual(self.matching(pattern, names), names[:1])

    def test_a_word_that_no_file_has_is_looked_for_in_names_of_tests(self):
        targets, pattern = self.choose("unit", "SLERP")
        self.assertIn("unit_methods_test", targets)
        self.assertIn("unit_fold_test", targets)
        names = ["unit.Methods.slerp_turns_by_the_angle", "unit.Methods.passthrough_scales",
                 "unit.Methods.slerp_turns_by_the_angle_twice"]
        self.assertEqual(self.matching(pattern, names), names[:1])

    def test_tests_with_parameters_and_of_fuzz_targets_are_found(self):
        names = ["fault.Ways/Replacing.IsWhole/exchange", "fault.Publishing.IsWhole", "fault.Kill.IsWhole"]
        self.assertEqual(self.matching(self.choose("fault", "publish")[1], names), names[:2])
        targets, pattern = self.choose("hostile", "zip")
        self.assertEqual(targets, {"hostile_replay_zip", "hostile_zip_test"})
        names = ["hostile.zip.Replay.EveryFileOfEveryCorpusHasAnAnswer", "hostile.Zip64.IsRead",
                 "hostile.index.Replay.EveryFileOfEveryCorpusHasAnAnswer"]
        self.assertEqual(self.matching(pattern, names), names[:2])

    def test_what_runs_the_program_builds_it(self):
        targets, pattern = self.choose("cli", "documents", "pages")
        self.assertEqual(targets, {"ingot_cli"})
        names = ["cli.documents", "cli.pages", "cli.merge"]
        self.assertEqual(self.matching(pattern, names), names[:2])
        self.assertEqual(self.choose("fault", "kill")[0], {"fault_kill_test", "ingot_cli"})
        self.assertEqual(self.choose("unit", "truth")[0], set())

    def test_a_filter_of_very_many_tests_is_an_expression_that_ctest_takes(self):
        for part, word in (("unit", "a"), ("unit", "the"), ("hostile", "e"), ("emu", "s")):
            self.matching(self.choose(part, word)[1], ["unit.None"])

    def test_what_does_not_exist_is_refused(self):
        for words, text in ((("units",), "there is no part 'units'; the parts are unit, golden"),
                            (("unit", "methods", "nowhere"), "'unit' has 'nowhere' in its name")):
            done = script(SOURCE, "--dry-run", *words)
            self.assertEqual(done.returncode, 2)
            self.assertIn(text, done.stderr)
        for words in (("--all", "unit"), ("--dry-run",), ("--some",)):
            self.assertEqual(script(SOURCE, *words).returncode, 2, words)


class Run(Matching):
    """In a small tree of its own."""

    def setUp(self):
        super().setUp()
        for name in ("tools", "tests/unit", "build", "bin"):
            (self.folder / name).mkdir(parents=True)
        shutil.copy(SOURCE / "tools" / "test", self.folder / "tools")
        self.write("tests/unit/scale_test.cpp", TESTS)
        for name, text in (("bin/cmake", CMAKE), ("bin/ctest", CTEST), ("tools/setup", SETUP)):
            self.write(name, text).chmod(0o755)
        self.log = self.folder / "log"

    def run_script(self, *words, fails="nothing"):
        done = script(self.folder, *words, env={**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
                                                "LOG": str(self.log), "FAILS": fails})
        return done, self.log.read_text().splitlines()

    def test_a_part_builds_and_runs_only_what_matches(self):
        self.write("build/CMakeCache.txt", "INGOT_TESTS:BOOL=ON\n")
        done, calls = self.run_script("unit", "half")
        self.assertEqual(calls[0], "cmake --build build --target unit_scale_test")
        self.assertEqual(len(calls), 2)
        pattern = re.search(r"--test-dir build -R (\S+)$", calls[1]).group(1)
        names = ["unit.Scale.HalfIsExact", "unit.Sizes/Shape.HalfIsSmaller/2", "unit.Scale/1.DoubleIsExact"]
        self.assertEqual(self.matching(pattern, names), names[:2])
        self.assertEqual(done.stdout.splitlines()[-1], "1 passed, 1 failed, 1 skipped")
        self.assertEqual(done.returncode, 8)

    def test_of_suites_with_types_one_test_is_found(self):
        self.write("build/CMakeCache.txt", "INGOT_TESTS:BOOL=ON\n")
        pattern = self.run_script("unit", "double")[1][1].split()[-1]
        names = ["unit.Scale/1.DoubleIsExact", "unit.Scale.HalfIsExact", "unit.Scale/1.TripleIsExact"]
        self.assertEqual(self.matching(pattern, names), names[:1])

    def test_a_part_that_does_not_compile_is_not_run(self):
        self.write("build/CMakeCache.txt", "INGOT_TESTS:BOOL=ON\n")
        done, calls = self.run_script("unit", fails="--build")
        self.assertEqual(len(calls), 1)
        self.assertNotEqual(done.returncode, 0)

    def test_a_tree_without_tests_is_configured_first(self):
        self.write("build/CMakeCache.txt", "INGOT_TESTS:BOOL=OFF\n")
        calls = self.run_script("unit")[1]
        self.assertEqual([call.split()[:2] for call in calls[:3]],
                         [["setup", "test"], ["cmake", "-S"], ["cmake", "--build"]])

    def test_without_a_part_everything_is_built_and_run(self):
        done, calls = self.run_script()
        self.assertEqual(calls[0], "setup test")
        self.assertIn("-DINGOT_ORACLE=OFF", calls[1])
        self.assertEqual(calls[2], "cmake --build build")
        self.assertTrue(calls[3].endswith("--test-dir build -LE ^interop$"), calls[3])
        self.assertEqual(len(calls), 4)
        # The build counts as one test.
        self.assertEqual((done.stdout.splitlines()[-1], done.returncode), ("2 passed, 1 failed, 1 skipped", 1))


if __name__ == "__main__":
    unittest.main()

"""How the program speaks: help, usage errors, streams, exit codes, mergekit's option names."""

import os
import pty
import re
import subprocess
import unittest

from program import DEVICE, EXAMPLES, INPUT, IO, PROGRAM, TIES, USAGE, Case, ingot

COMMANDS = ("merge", "plan", "verify", "inspect", "diff", "completion")


class Help(Case):
    def test_program_names_every_command(self):
        text = self.run_ok("--help").stdout
        for command in COMMANDS:
            self.assertRegex(text, rf"(?m)^  {command} ")

    def test_every_command_has_examples(self):
        for command in COMMANDS:
            text = self.run_ok(command, "--help").stdout
            self.assertIn("Examples:", text)
            self.assertRegex(text, rf"(?m)^  ingot {command} ")

    def test_every_option_is_explained(self):
        for command in COMMANDS:
            text = self.run_ok(command, "--help").stdout
            for line in text.splitlines():
                if re.match(r"  -", line):
                    self.assertRegex(line, r"  -\S+.* {2,}\S|^  -\S+( \S+)*$", line)

    def test_lines_fit_a_terminal(self):
        for command in COMMANDS:
            for line in self.run_ok(command, "--help").stdout.splitlines():
                self.assertLessEqual(len(line), 120, line)

    def test_version_is_one_line(self):
        self.assertRegex(self.run_ok("--version").stdout, r"\Aingot \d+\.\d+\.\d+\n\Z")


class Usage(Case):
    def test_no_command_is_an_error(self):
        self.run_fails(USAGE)

    def test_unknown_command_names_the_nearest(self):
        self.assertIn("merge", self.run_fails(USAGE, "merg").stderr)

    def test_unknown_option_names_the_nearest(self):
        stderr = self.run_fails(USAGE, "merge", "r.yml", "out", "--shardsize", "5GB").stderr
        self.assertIn("--shard-size", stderr)
        self.assertIn("--shardsize", stderr)

    def test_missing_argument_is_named(self):
        self.assertIn("OUT", self.run_fails(USAGE, "merge", "recipe.yml").stderr)

    def test_bad_values_are_refused_before_any_work(self):
        recipe = self.write("recipe.yml", "nonsense")
        out = self.folder / "out"
        for words in (["--memory", "1G"], ["--memory", "lots"], ["--threads", "-1"], ["--threads", "x"],
                      ["--seed", "-3"], ["--shard-size", "5B"], ["--out-shard-size", "5GB"],
                      ["--storage", "tape"], ["--device", "tpu"]):
            with self.subTest(words=words):
                self.run_fails(USAGE, "merge", recipe, out, *words)
                self.assertFalse(out.exists())

    def test_missing_recipe_is_named(self):
        done = self.run_fails(INPUT, "plan", self.folder / "absent.yml")
        self.assertIn("absent.yml", done.stderr)

    def test_errors_leave_stdout_to_data(self):
        self.assertEqual(self.run_fails(USAGE, "merge", "--nonsense").stdout, "")


class Device(Case):
    @unittest.skipIf(os.path.exists("/dev/nvidiactl"), "this machine may have CUDA")
    def test_cuda_that_cannot_be_had_is_refused_in_one_sentence(self):
        recipe = self.write("recipe.yml", "")
        for words in (["--device", "cuda"], ["--device", "cuda:1"], ["--cuda"], ["--gpu-rich"]):
            with self.subTest(words=words):
                done = self.run_fails(DEVICE, "merge", recipe, self.folder / "out", *words)
                self.assertEqual(len(done.stderr.splitlines()), 1)
                self.assertIn("--device cpu", done.stderr)

    def test_device_beats_cuda_as_in_mergekit(self):
        self.merge(TIES, "out", "--cuda", "--device", "cpu")

    def test_auto_says_what_it_chose(self):
        self.assertIn("CPU", self.merge(TIES, "out", "--device", "auto").stderr)

    def test_isa_that_is_no_isa_is_refused(self):
        recipe = self.write("recipe.yml", "")
        done = self.run_fails(USAGE, "merge", recipe, self.folder / "out", env={"INGOT_ISA": "v9"})
        self.assertIn("v3", done.stderr)


class Mergekit(Case):
    """Every option of mergekit-yaml 0.1.5 is understood."""

    MEANT = ["--allow-crimes", "--no-allow-crimes", "--unsafe-truncate-embeddings",
             "--no-unsafe-truncate-embeddings", "--copy-tokenizer", "--no-copy-tokenizer",
             "--write-model-card", "--no-write-model-card", "--safe-serialization", "--no-cuda",
             "--no-gpu-rich", "--out-shard-size 5B", "--random-seed 7", "--num-threads 1", "-j 1",
             "--device cpu", "--quiet", "--no-quiet"]
    MOOT = ["--transformers-cache x", "--lora-merge-cache x", "--lora-merge-dtype float16",
            "--low-cpu-memory", "--no-low-cpu-memory", "--clone-tensors", "--no-clone-tensors",
            "--trust-remote-code", "--no-trust-remote-code", "--lazy-unpickle", "--no-lazy-unpickle",
            "--read-to-gpu", "--no-read-to-gpu", "--multi-gpu", "--no-multi-gpu", "--async-write",
            "--no-async-write", "--write-threads 2", "-v"]

    def plan(self, words):
        recipe = self.write("recipe.yml", TIES)
        return self.run_ok("plan", recipe, "--root", EXAMPLES, *words.split())

    def test_names_with_a_meaning_pass_in_silence(self):
        for words in self.MEANT:
            with self.subTest(words=words):
                self.assertEqual(self.plan(words).stderr, "")

    def test_names_without_one_are_answered(self):
        for words in self.MOOT:
            with self.subTest(words=words):
                stderr = self.plan(words).stderr
                self.assertEqual(len(stderr.splitlines()), 1, stderr)
                self.assertIn("note: " + words.split()[0].replace("--no-", "--"), stderr)
                self.assertIn("no effect", stderr)

    def test_quiet_silences_the_answers(self):
        self.assertEqual(self.plan("--quiet --lazy-unpickle").stderr, "")

    def test_pickle_output_is_refused(self):
        done = self.run_fails(USAGE, "plan", "r.yml", "--no-safe-serialization")
        self.assertIn("safetensors", done.stderr)

    def test_shard_sizes_mean_the_same(self):
        recipe = self.write("recipe.yml", TIES)
        ours = self.json("plan", recipe, "--root", EXAMPLES, "--shard-size", "100kB")
        theirs = self.json("plan", recipe, "--root", EXAMPLES, "--out-shard-size", "100k")
        self.assertGreater(len(ours["shards"]), 1)
        self.assertEqual(ours["shards"], theirs["shards"])

    def test_both_shard_sizes_at_once_are_refused(self):
        self.run_fails(USAGE, "plan", "r.yml", "--shard-size", "1GB", "--out-shard-size", "1B")


class Streams(Case):
    def terminal(self, words, env):
        """What a terminal on stderr gets to see."""
        master, slave = pty.openpty()
        plain = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        process = subprocess.Popen([PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=slave,
                                   env={**plain, "TERM": "xterm", **env})
        os.close(slave)
        seen = b""
        while True:
            try:
                block = os.read(master, 4096)
            except OSError:  # the other end closed
                break
            if not block:
                break
            seen += block
        process.wait()
        os.close(master)
        return seen.decode()

    def test_colours_on_a_terminal_only(self):
        words = ["merge", "--nonsense"]
        self.assertIn("\x1b[31m", self.terminal(words, {}))
        self.assertNotIn("\x1b", self.terminal(words, {"NO_COLOR": "1"}))
        self.assertNotIn("\x1b", self.terminal(words, {"TERM": "dumb"}))
        self.assertNotIn("\x1b", ingot(*words).stderr)

    def test_full_disk_on_stdout_is_an_error(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        with open("/dev/full", "w") as full:
            done = subprocess.run([PROGRAM, "completion", "bash"], stdout=full, stderr=subprocess.PIPE,
                                  text=True)
        self.assertEqual(done.returncode, IO)
        self.assertIn("standard output", done.stderr)

    def test_names_from_files_cannot_drive_the_terminal(self):
        done = self.run_fails(INPUT, "inspect", "no\x1b[31msuch")
        self.assertNotIn("\x1b", done.stderr)


if __name__ == "__main__":
    unittest.main()

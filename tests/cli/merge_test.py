"""ingot merge and ingot verify from outside."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import unittest

from program import DIFFERS, EXAMPLES, INPUT, PROGRAM, TIES, USAGE, Case, bytes_of


class Merge(Case):
    def test_writes_a_folder_that_verifies(self):
        done = self.merge()
        out = self.folder / "out"
        for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md", "recipe.yml",
                     "ingot.json"):
            self.assertTrue((out / name).is_file(), name)
        self.assertEqual((out / "recipe.yml").read_text(), TIES)
        self.assertRegex(done.stdout.splitlines()[-1], r"^[\d.]+ s, .*/s, peak memory \d+ MiB$")
        self.assertEqual(done.stderr, "")
        self.run_ok("verify", out, "--root", EXAMPLES, "--all")

    def test_report_as_json_is_all_of_stdout(self):
        report = json.loads(self.merge(TIES, "out", "--json").stdout)
        self.assertEqual(report["tensors"], report["merged"] + report["copied"])
        self.assertGreater(report["bytes_read"], 0)
        self.assertGreater(report["seconds"], 0)
        self.assertGreater(report["peak_memory"], 0)
        self.assertTrue(0 < report["busy"] <= 1 and report["threads"] > 0, report)
        self.assertTrue(os.path.isfile(report["receipt"]))

    def test_quiet_is_silent(self):
        done = self.merge(TIES, "out", "--quiet")
        self.assertEqual((done.stdout, done.stderr), ("", ""))

    def test_machine_options_change_no_byte(self):
        a, b = self.place("a"), self.place("b")
        self.merge(TIES, a)
        self.merge(TIES, b, "--memory", "64MiB", "--threads", "1", "--storage", "buffered", "--no-sync",
                   env={"INGOT_ISA": "v2"})
        self.assertEqual(bytes_of(self.folder / a), bytes_of(self.folder / b))

    def test_shard_size_splits_the_weights(self):
        self.merge(TIES, "out", "--shard-size", "100kB")
        out = self.folder / "out"
        self.assertGreater(len(list(out.glob("model-*-of-*.safetensors"))), 1)
        self.assertTrue((out / "model.safetensors.index.json").is_file())
        self.run_ok("verify", out, "--root", EXAMPLES)

    # Beyond float16 by its weights; within float32.
    HUGE = """\
merge_method: linear
parameters: {normalize: false}
dtype: float16
models:
- {model: models/python, parameters: {weight: 1e6}}
- {model: models/c, parameters: {weight: 1e6}}
"""

    def test_results_that_are_not_finite_are_an_error_unless_allowed(self):
        recipe, out = self.write("recipe.yml", self.HUGE), self.folder / "out"
        failed = self.run_fails(INPUT, "merge", recipe, out, "--root", EXAMPLES)
        self.assertRegex(failed.stderr, r"\.weight: \d+ of \d+ elements \(the first is number \d+\) are not finite")
        self.assertIn("--dtype float32", failed.stderr)
        self.assertIn("--allow-nonfinite", failed.stderr)
        self.assertNotIn("--resume", failed.stderr)
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["recipe.yml"])
        # The remedy works as it is said.
        self.run_ok("merge", recipe, out, "--root", EXAMPLES, "--dtype", "float32")
        self.run_ok("verify", out, "--root", EXAMPLES, "--all")
        report = json.loads(self.run_ok("merge", recipe, self.folder / "allowed", "--root", EXAMPLES,
                                        "--allow-nonfinite", "--json").stdout)
        self.assertTrue(any("holds NaN or infinity in" in w for w in report["warnings"]), report["warnings"])
        receipt = json.loads((self.folder / "allowed" / "ingot.json").read_text())
        self.assertIn("allow_nonfinite", receipt["options"]["waivers"])
        self.assertTrue(any(t.get("nonfinite", {}).get("made") for t in receipt["tensors"]))
        self.run_ok("verify", self.folder / "allowed", "--root", EXAMPLES, "--all")

    def test_numbers_too_small_for_single_precision_name_their_line(self):
        tiny = self.HUGE.replace("1e6", "1e-45", 1)
        failed = self.run_fails(USAGE, "merge", self.write("recipe.yml", tiny), self.folder / "out", "--root", EXAMPLES)
        self.assertIn("recipe.yml:5:39: parameter 'weight'", failed.stderr)
        self.assertIn("1e-45", failed.stderr)
        base, adapter = EXAMPLES / "models/base", EXAMPLES / "adapters/c-lora"
        failed = self.run_fails(USAGE, "bake", base, f"{adapter}:1e-45", "-o", self.folder / "out")
        self.assertIn("the weight is 1e-45", failed.stderr)
        failed = self.run_fails(USAGE, "adapter", "merge", f"{adapter}:1e-45", "-o", self.folder / "out")
        self.assertIn("is 1e-45", failed.stderr)
        self.assertFalse((self.folder / "out").exists())

    def test_dtype_overrides_the_recipe(self):
        self.merge(TIES, "out", "--dtype", "float32")
        self.assertEqual(set(self.json("inspect", self.folder / "out")["dtypes"]), {"float32"})

    def test_seed_moves_random_methods_only(self):
        dare = TIES.replace("ties", "dare_ties")
        for recipe, moves in ((TIES, False), (dare, True)):
            self.merge(recipe, "a", "--seed", "1", "--force")
            self.merge(recipe, "b", "--random-seed", "2", "--force")
            a, b = (bytes_of(self.folder / out)["model.safetensors"] for out in "ab")
            self.assertEqual(a != b, moves)

    def test_card_and_tokenizer_can_be_left_out(self):
        self.merge(TIES, "out", "--no-write-model-card", "--no-copy-tokenizer")
        self.assertFalse((self.folder / "out" / "README.md").exists())
        self.assertFalse((self.folder / "out" / "tokenizer.json").exists())

    def test_existing_folder_needs_force(self):
        self.merge()
        before = bytes_of(self.folder / "out")
        done = self.run_fails(USAGE, "merge", self.folder / "recipe.yml", self.folder / "out", "--root",
                              EXAMPLES)
        self.assertIn("--force", done.stderr)
        self.assertEqual(bytes_of(self.folder / "out"), before)
        self.merge(TIES.replace("0.3", "0.4"), "out", "--force")
        self.assertNotEqual(bytes_of(self.folder / "out"), before)
        self.assertEqual([p.name for p in self.folder.glob(".*")], [])

    def test_every_problem_is_shown_and_nothing_written(self):
        recipe = self.write("r.yml", TIES.replace("density: 0.5", "density: 1.5"))
        done = self.run_fails(USAGE, "merge", recipe, self.folder / "out", "--root", EXAMPLES)
        self.assertEqual(len(re.findall("density", done.stderr)), 2, done.stderr)
        self.assertFalse((self.folder / "out").exists())

    def test_missing_model_is_bad_input_and_names_the_remedy(self):
        recipe = self.write("r.yml", TIES.replace("models/python", "someone/not-here"))
        done = self.run_fails(INPUT, "merge", recipe, self.folder / "out", "--root", EXAMPLES)
        self.assertIn("someone/not-here", done.stderr)
        self.assertIn("download", done.stderr)

    def test_misspelled_keys_are_errors_unless_waived(self):
        recipe = self.write("r.yml", TIES + "paramters: {}\n")
        done = self.run_fails(USAGE, "merge", recipe, self.folder / "out", "--root", EXAMPLES)
        self.assertIn("paramters", done.stderr)
        self.merge(TIES + "paramters: {}\n", "out", "--allow-unknown-keys")
        self.assertIn("paramters", (self.folder / "out" / "ingot.json").read_text())

    def test_what_mergekit_passes_over_is_said_and_stands_in_the_receipt(self):
        self.merge(TIES, "plain")
        done = self.merge(TIES + "density: 0.1\nparameters:\ndtype: bfloat16\n", "out")
        self.assertEqual(done.stderr.count("warning:"), 3, done.stderr)
        weights = [(self.folder / out / "model.safetensors").read_bytes() for out in ("plain", "out")]
        self.assertEqual(*weights)
        receipt = json.loads((self.folder / "out" / "ingot.json").read_text())
        self.assertTrue(any("recipe.yml:9:1: unknown key 'density'" in w for w in receipt["warnings"]), receipt)
        self.run_ok("verify", self.folder / "out", "--root", EXAMPLES)

    def test_recipes_come_from_standard_input(self):
        self.merge(TIES, "file")
        self.run_ok("merge", "-", self.folder / "out", "--root", EXAMPLES, input=TIES)
        self.assertEqual((self.folder / "out" / "recipe.yml").read_text(), TIES)
        self.assertEqual(*[(self.folder / out / "model.safetensors").read_bytes() for out in ("file", "out")])
        self.run_ok("verify", self.folder / "out", "--root", EXAMPLES)
        self.run_ok("plan", "-", "--root", EXAMPLES, input=TIES)
        done = self.run_fails(USAGE, "plan", "-", input=TIES + "paramters: {}\n")
        self.assertIn("standard input:9:1: unknown key 'paramters'", done.stderr)
        self.run_fails(USAGE, "plan", "-", input="")

    def test_models_near_the_recipe_are_named_with_the_root_that_finds_them(self):
        (self.folder / "a" / "recipes").mkdir(parents=True)
        shutil.copytree(EXAMPLES / "models" / "c", self.folder / "a" / "models" / "c")
        (self.folder / "a" / "recipes" / "r.yml").write_text(
            "merge_method: linear\nmodels:\n- model: models/c\n  parameters: {weight: 1}\n"
            "- model: models/none\n  parameters: {weight: 1}\n")
        recipe, elsewhere = self.folder / "a" / "recipes" / "r.yml", self.folder / "b"
        elsewhere.mkdir()
        errors = self.run_fails(INPUT, "plan", recipe, "--root", elsewhere).stderr.splitlines()
        errors = [line for line in errors if "models/" in line]
        self.assertIn(f"; it is there with --root {self.folder}/a (while reading model 'models/c' of {recipe}:3:10)", errors[0])
        self.assertNotIn("it is there", errors[1])

    def test_all_errors_of_a_recipe_are_told_at_once(self):
        text = TIES.replace("models/c", "models/cc").replace("ties", "tise") + "paramters: {}\n"
        recipe = self.write("r.yml", text.replace("bfloat16", "bfloat61"))
        for command in (("plan",), ("merge",)):
            done = self.run_fails(USAGE, *command, recipe, self.folder / "out", "--root", EXAMPLES)
            for what in ("r.yml:9:1: unknown key 'paramters'", "did you mean 'ties'?", "bfloat61", "models/cc"):
                self.assertIn(what, done.stderr)


class Unchanged(Case):
    SAME = "models:\n  - model: models/base\n    parameters: {weight: 1}\nmerge_method: linear\n"

    def test_a_merge_that_changed_nothing_says_so(self):
        done = self.merge(self.SAME)
        self.assertIn("changed nothing", done.stderr)
        self.run_fails(DIFFERS, "verify", self.folder / "out", "--root", EXAMPLES)

    def test_and_can_be_waived(self):
        self.merge(self.SAME, "out", "--allow-unchanged")
        self.run_ok("verify", self.folder / "out", "--root", EXAMPLES, "--allow-unchanged")


class Verify(Case):
    def setUp(self):
        super().setUp()
        self.merge()
        self.out = self.folder / "out"

    def test_a_flipped_bit_is_found(self):
        path = self.out / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)
        done = self.run_fails(DIFFERS, "verify", self.out, "--root", EXAMPLES)
        self.assertIn(" problem", done.stdout)
        report = json.loads(self.run_fails(DIFFERS, "verify", self.out, "--root", EXAMPLES,
                                           "--json").stdout)
        self.assertFalse(report["sound"])
        self.assertGreater(len(report["findings"]), 0)

    def test_one_edit_is_one_finding(self):
        whole = {path: path.read_bytes() for path in self.out.iterdir()}
        config = json.loads((self.out / "config.json").read_text()) | {"hidden_act": "gelu"}
        weights = bytearray(whole[self.out / "model.safetensors"])
        weights[-100] ^= 1
        for name, data, told in (
                ("model.safetensors", bytes(weights), "model.norm.weight: changed since the merge: hash "),
                ("config.json", json.dumps(config).encode(), f"{self.out}/config.json: changed since the merge: hash "),
                ("README.md", b"mine", f"{self.out}/README.md: changed since the merge: hash "),
                ("recipe.yml", TIES.replace("0.3", "0.4").encode(),
                 f"{self.out}/recipe.yml: changed since the merge: hash ")):
            with self.subTest(name=name):
                (self.out / name).write_bytes(data)
                report = json.loads(self.run_fails(DIFFERS, "verify", self.out, "--root", EXAMPLES, "--json").stdout)
                self.assertEqual((len(report["findings"]), report["shortfalls"]), (1, 1), report)
                self.assertTrue(report["findings"][0].startswith(told), report)
                receipt = json.loads(whole[self.out / "ingot.json"])
                kept = {file["file"]: file["hash"] for file in receipt["files"]} | {
                    "model.safetensors": receipt["tensors"][-1]["hash"]}
                self.assertIn(f"hash {kept[name]} expected, ", report["findings"][0])
                (self.out / name).write_bytes(whole[self.out / name])
        for name in (path.name for path in whole if path.name != "ingot.json"):
            with self.subTest(missing=name):
                (self.out / name).unlink()
                report = json.loads(self.run_fails(DIFFERS, "verify", self.out, "--root", EXAMPLES, "--json").stdout)
                self.assertEqual((len(report["findings"]), report["shortfalls"]), (1, 1), report)
                self.assertTrue(report["findings"][0].startswith(f"{self.out}/{name}: the file is missing"), report)
                (self.out / name).write_bytes(whole[self.out / name])

    def test_absent_inputs_are_found_unless_waived(self):
        done = self.run_fails(INPUT, "verify", self.out, "--root", self.folder)
        for word in ("models/", "--root", "--outputs-only"):
            self.assertIn(word, done.stderr)
        self.run_ok("verify", self.out, "--root", self.folder, "--outputs-only")

    def test_tampering_counts_more_than_absent_inputs(self):
        (self.out / "extra.bin").write_bytes(b"")
        done = self.run_fails(DIFFERS, "verify", self.out, "--root", self.folder)
        self.assertIn("extra.bin", done.stdout)
        self.assertIn("--outputs-only", done.stdout)

    def test_many_problems_of_a_kind_are_counted(self):
        path = self.out / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[4096:] = bytes(len(data) - 4096)
        path.write_bytes(data)
        done = self.run_fails(DIFFERS, "verify", self.out, "--outputs-only")
        self.assertIn("more tensors that changed since the merge", done.stdout)
        self.assertEqual(len(done.stdout.splitlines()), 7)
        self.assertIn("21 problems", done.stdout.splitlines()[-1])

    def test_a_merge_without_hashes_is_one_sentence(self):
        self.merge(TIES, "bare", "--no-hash")
        done = self.run_fails(DIFFERS, "verify", self.folder / "bare", "--root", EXAMPLES)
        self.assertEqual(len(done.stdout.splitlines()), 2)
        self.assertIn("--no-hash", done.stdout)

    def test_the_report_says_how_much_was_recomputed(self):
        done = self.run_ok("verify", self.out, "--root", EXAMPLES)
        self.assertIn("157,632 of 157,632 elements recomputed, all equal bit for bit", done.stdout)
        report = json.loads(self.run_ok("verify", self.out, "--root", EXAMPLES, "--json").stdout)
        self.assertEqual(report["recomputed"], report["elements"])
        self.assertIsNone(report["sample"])

    def test_a_folder_without_receipt_is_bad_input(self):
        self.run_fails(INPUT, "verify", EXAMPLES / "models" / "base")

    def test_quiet_speaks_through_the_exit_code(self):
        done = self.run_ok("verify", self.out, "--root", EXAMPLES, "--quiet")
        self.assertEqual((done.stdout, done.stderr), ("", ""))


class Stopped(Case):
    """A merge that is long enough to be stopped: many copies of a model in one."""

    def big(self):
        layers = "\n".join("  - sources: [{model: models/python, layer_range: [0, 2]}]"
                           for _ in range(400))
        return self.write("big.yml", f"slices:\n{layers}\nmerge_method: passthrough\n")

    def stop(self, recipe, number, after):
        process = subprocess.Popen([PROGRAM, "merge", recipe, self.folder / "out", "--root", EXAMPLES],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        partial = self.folder / ".out.partial"
        while process.poll() is None and not partial.exists():
            time.sleep(0.001)
        time.sleep(after)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        return process.returncode, stderr

    def test_signals_stop_it_and_resume_ends_in_the_same_bytes(self):
        recipe = self.big()
        stopped = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            shutil.rmtree(self.folder / "out", ignore_errors=True)
            code, stderr = self.stop(recipe, number, 0.01)
            if code == 0:
                continue  # it was faster
            stopped += 1
            self.assertEqual(code, -number, stderr)
            self.assertFalse((self.folder / "out").exists())
            self.assertTrue((self.folder / ".out.partial").is_dir())
            if number != signal.SIGKILL:
                self.assertIn("--resume", stderr)
            self.run_ok("merge", recipe, self.folder / "out", "--root", EXAMPLES, "--resume")
            whole = self.folder / "whole" / "out"
            if not whole.exists():
                whole.parent.mkdir()
                self.run_ok("merge", recipe, whole, "--root", EXAMPLES)
            self.assertEqual(bytes_of(self.folder / "out"), bytes_of(whole))
        self.assertGreater(stopped, 0, "no run lasted long enough to be stopped")

    def test_a_pipe_gets_lines_and_no_control_characters(self):
        recipe = self.big()
        done = self.run_ok("merge", recipe, self.folder / "out", "--root", EXAMPLES)
        self.assertNotRegex(done.stderr + done.stdout, r"[\r\x1b]")


if __name__ == "__main__":
    unittest.main()

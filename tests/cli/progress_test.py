"""How far a run is, as a person at a terminal, a log and a program see it."""

import json
import os
import pty
import re
import struct
import subprocess
import time
import unittest

try:
    import jsonschema
except ImportError:
    jsonschema = None

from program import EXAMPLES, PLAIN, PROGRAM, SOURCE, Case, ingot

# Seconds that a loaded machine may take beside the half that is promised.
SLACK = 1.5


def watch(words, terminal):
    """The exit code and what stderr gets: a list of (seconds since the start, text)."""
    begin = time.monotonic()
    if terminal:
        near, far = pty.openpty()
    else:
        near, far = os.pipe()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
    process = subprocess.Popen([PROGRAM, *map(str, words)], stdout=subprocess.DEVNULL, stderr=far, env=environment)
    os.close(far)
    seen = []
    while True:
        try:
            block = os.read(near, 1 << 16)
        except OSError:  # the other end closed
            break
        if not block:
            break
        seen.append((time.monotonic() - begin, block.decode()))
    os.close(near)
    return process.wait(), seen


class Long(Case):
    """Merges of large tensors that take half a second or more."""

    SHAPE = (8192 if PLAIN else 2048, 8192)

    def setUp(self):
        super().setUp()
        self.shape = self.SHAPE
        self.fill()
        models = "".join(f"- model: {self.folder}/{m}\n  parameters: {{weight: 0.5, density: 0.5}}\n" for m in ("a", "b"))
        self.recipe = self.write("recipe.yml", f"merge_method: dare_ties\nbase_model: {self.folder}/base\ndtype: float32\nmodels:\n{models}")
        self.words = ["merge", self.recipe, self.folder / "out", "-j", "1", "--allow-unchanged", "--no-sync", "--force"]

    def grow(self):
        self.shape = (2 * self.shape[0], self.shape[1])
        self.fill()

    def fill(self):
        """Models of zeros that take no room on the disk."""
        rows, columns = self.shape
        for name in ("base", "a", "b"):
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            tensors = {f"model.layers.{i}.mlp.up_proj.weight": {
                "dtype": "BF16", "shape": [rows, columns // 4],
                "data_offsets": [i * rows * columns // 2, (i + 1) * rows * columns // 2]} for i in range(4)}
            text = json.dumps(tensors).encode()
            with open(folder / "model.safetensors", "wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                file.truncate(8 + len(text) + 2 * rows * columns)
            (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4}))

    def test_a_terminal_gets_a_bar_that_moves_on_and_goes_away(self):
        # As many merges of larger tensors as it takes to find one that lasts on this machine.
        for _ in range(5):
            begin = time.monotonic()
            code, seen = watch(self.words, True)
            self.assertEqual(code, 0, seen)
            if time.monotonic() - begin > 2:
                break
            self.grow()
        text = "".join(t for _, t in seen)
        frames = [frame for frame in text.split("\r\x1b[K") if "merging [" in frame]
        self.assertGreater(len(frames), 3, text)
        shares = [int(re.search(r"\] +(\d+) %", frame)[1]) for frame in frames]
        self.assertEqual(shares, sorted(shares))
        self.assertLessEqual(shares[-1], 100)
        for frame in frames:
            self.assertRegex(frame, r"^merging \[#*\.*\] +\d+ %  [\d.]+ \w?B of [\d.]+ \wB  \d+:\d\d")
            self.assertLess(len(frame), 80)
        first = next(when for when, t in seen if "\r" in t)
        self.assertLess(first, 0.5 + SLACK)
        self.assertTrue(text.endswith("\r\x1b[K"), text[-200:])

    def test_a_pipe_gets_few_plain_lines(self):
        begin = time.monotonic()
        code, seen = watch(self.words, False)
        took = time.monotonic() - begin
        text = "".join(t for _, t in seen)
        self.assertEqual(code, 0, text)
        self.assertNotRegex(text, r"[\r\x1b]")
        lines = [line for line in text.splitlines() if "so far" in line]
        if took > 3:
            self.assertGreater(len(lines), 0, text)
        self.assertLessEqual(len(lines), 4 + took)
        for line in lines:
            self.assertRegex(line, r"^ingot: (planning|merging|finishing)(: \d+ %, \S+ \w?B of \S+ \w?B)?, .* so far")

    def test_programs_get_json_lines(self):
        begin = time.monotonic()
        code, seen = watch([*self.words, "--progress", "json"], False)
        took = time.monotonic() - begin
        self.assertEqual(code, 0)
        lines = [line for line in "".join(t for _, t in seen).splitlines() if line.startswith("{")]
        events = [json.loads(line) for line in lines]
        phases = list(dict.fromkeys(e["phase"] for e in events))
        self.assertEqual(phases, ["planning", "merging", "finishing"])
        self.assertEqual([e["event"] for e in events].count("done"), 1)
        self.assertEqual(events[-1]["event"], "done")
        merging = [e for e in events if e["phase"] == "merging"]
        self.assertEqual(merging[0]["event"], "phase")
        done = [e["bytes_done"] for e in merging]
        self.assertEqual(done, sorted(done))
        for left in [e["left"] for e in merging if e["left"] is not None]:
            self.assertLess(left, 10 * took, "minutes were told of a run of seconds")
        for event in merging:
            self.assertLessEqual(event["bytes_done"], event["bytes_total"])
        if jsonschema:
            schema = json.loads((SOURCE / "docs/json.schema.json").read_text())
            checker = jsonschema.Draft202012Validator({"$schema": schema["$schema"], "$defs": schema["$defs"],
                                                       "$ref": "#/$defs/progress"})
            for event in events:
                checker.validate(event)

    def test_nothing_where_nothing_is_wanted(self):
        for more in (["--progress", "none"], ["--quiet"]):
            code, seen = watch([*self.words, *more], True)
            self.assertEqual((code, "".join(t for _, t in seen if "[" in t and "%" in t)), (0, ""))

    def test_verify_and_diff_show_theirs(self):
        self.assertEqual(ingot(*self.words).returncode, 0)
        for words, phase in ((["verify", self.folder / "out", "--allow-unchanged"], "verifying"),
                             (["diff", self.folder / "a", self.folder / "b"], "comparing")):
            code, seen = watch([*words, "--progress", "json"], False)
            self.assertEqual(code, 0, seen)
            events = [json.loads(line) for line in "".join(t for _, t in seen).splitlines()]
            self.assertIn(phase, {e["phase"] for e in events})
            self.assertEqual(events[-1]["event"], "done")
            last = [e for e in events if e["phase"] == phase][-1]
            self.assertEqual(last["bytes_done"], last["bytes_total"])


class Measuring(Case):
    def test_ranks_that_are_measured_have_a_phase(self):
        models = EXAMPLES / "models"
        for last, ranks in (("merging", ["auto", "--energy", "0.5"]), ("decomposing", ["4"])):  # what was measured is kept
            done = ingot("extract", models / "base", models / "python", "--rank", *ranks, "-o", self.folder / "out", "--force",
                         "--progress", "json")
            self.assertEqual(done.returncode, 0, done.stderr)
            events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
            self.assertEqual(list(dict.fromkeys(e["phase"] for e in events)), ["planning", "measuring", last, "finishing"])

    def test_a_resumed_merge_begins_where_the_first_ended(self):
        out = self.folder / "out"
        recipe = EXAMPLES / "recipes/ties.yml"
        self.run_ok("merge", recipe, out, "--root", EXAMPLES)
        done = ingot("merge", recipe, out, "--root", EXAMPLES, "--resume", "--progress", "json")
        events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        self.assertIn("checking", {e["phase"] for e in events})
        self.assertIn("verifying", {e["phase"] for e in events})


if __name__ == "__main__":
    unittest.main()

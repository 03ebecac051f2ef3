"""--memory bounds what the operating system counts: the peak resident set, mapped files included."""

import json
import os
import pathlib
import re
import struct
import subprocess
import tempfile
import time
import unittest

from program import EXAMPLES, PLAIN, PROGRAM, USAGE, Case, ingot

MIB = 1 << 20
# What a process may have beyond its ceiling: code, libraries, what planning needs.
BEYOND = 96 * MIB


def model(folder, tensors, config=None):
    """bf16 tensors by name and shape; the data are a hole in the file, and are in the page cache."""
    folder.mkdir(parents=True)
    header, end = {}, 0
    for name, shape in tensors:
        begin, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    path = folder / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    (folder / "config.json").write_text(json.dumps(config or {"architectures": ["LlamaForCausalLM"]}))


def high_water(pid):
    """VmHWM, or nothing once the process is gone. (ru_maxrss would begin at what this process has.)"""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def peak(*words):
    """Exit code, peak resident bytes as the kernel counts them, standard output and error."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen([PROGRAM, *map(str, words)], stdout=out, stderr=err)
        most = 0
        while child.poll() is None:
            most = max(most, high_water(child.pid))
            time.sleep(0.002)
        out.seek(0), err.seek(0)
        return child.returncode, most, out.read(), err.read()


class Ceiling(Case):
    def recipe(self, method, models, base=None):
        text = "merge_method: {}\ndtype: bfloat16\nmodels:\n".format(method)
        text += "".join(f"- model: {m}\n  parameters: {{weight: 0.5, density: 0.5}}\n" if method == "ties" else f"- model: {m}\n  parameters: {{weight: 0.5}}\n" for m in models)
        return self.write("recipe.yml", text + (f"base_model: {base}\n" if base else ""))

    def check(self, recipe, memory, *extra):
        out = self.folder / "out"
        code, resident, told, err = peak("merge", recipe, out, "--memory", f"{memory}MiB", "--json", "--no-sync",
                                         "--allow-unchanged", *extra)
        self.assertEqual(code, 0, err)
        report = json.loads(told)["peak_memory"]
        self.assertGreaterEqual(report + MIB, resident, "the report tells less than the system")
        self.assertLessEqual(report, memory * MIB + BEYOND, extra)
        return out

    @unittest.skipUnless(PLAIN, "sanitizers have memory of their own")
    def test_mapped_inputs_count(self):
        # 3 x 256 MiB of inputs in the page cache; one tensor is larger than both ceilings.
        shapes = [("model.embed_tokens.weight", [16384, 4096]), ("model.norm.weight", [8192, 4096]), ("model.odd.weight", [8191, 4097])]
        names = ["base", "a", "b"]
        for name in names:
            model(self.folder / name, shapes)
        paths = [self.folder / n for n in names]
        for method, models, base in (("linear", paths, None), ("ties", paths[1:], paths[0])):
            recipe = self.recipe(method, models, base)
            for way in ([], ["--storage", "mapped"], ["--storage", "direct"], ["--storage", "buffered"]):
                self.check(recipe, 80, *way, "--force", "--threads", "2")

    @unittest.skipUnless(PLAIN, "sanitizers have memory of their own")
    def test_measuring_ranks_counts(self):
        shapes = [(f"model.layers.{layer}.mlp.up_proj.weight", [1200, 1100]) for layer in range(4)]
        for name, step in (("base", 1), ("tuned", 3)):
            model(self.folder / name, shapes, {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4})
            with open(self.folder / name / "model.safetensors", "r+b") as file:
                file.seek(8 + int.from_bytes(file.read(8), "little"))
                for layer in range(4):  # bf16 numbers of no order
                    file.write(b"".join(struct.pack("<H", 0x3f00 + (i * i * step + layer) % 251) for i in range(1200 * 1100)))
        for wish in (["--rank", "auto", "--energy", "0.3"], ["--bytes", "2MB"]):
            words = ["extract", self.folder / "base", self.folder / "tuned", *wish, "-o", self.folder / "out",
                     "--no-sync", "--force"]
            begin = time.monotonic()
            code, resident, _, err = peak(*words, "--memory", "64MiB", "-j", "4")
            self.assertEqual(code, USAGE, err)
            self.assertIn("too small to measure the ranks: model.layers.", err)
            self.assertLess(time.monotonic() - begin, 1)
            least = int(err.split("at least ")[1].split()[0])
            code, resident, _, err = peak(*words, "--memory", f"{least}MiB", "-j", "4")
            self.assertEqual(code, 0, err)
            self.assertLessEqual(resident, least * MIB + BEYOND)

    @unittest.skipUnless(PLAIN, "sanitizers have memory of their own")
    def test_many_tensors_count(self):
        # As many as a mixture of experts has in eight of its layers, in every model.
        names = [f"model.layers.{layer}.mlp.experts.{e}.{p}.weight" for layer in range(8) for e in range(256)
                 for p in ("gate_proj", "up_proj", "down_proj")]
        for m in range(4):
            model(self.folder / f"m{m}", [(n, [2, 4]) for n in names], {"architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 8})
        recipe = self.recipe("ties", [self.folder / f"m{m}" for m in (1, 2, 3)], self.folder / "m0")
        out = self.check(recipe, 64, "--threads", "1")
        _, resident, _, _ = peak("plan", recipe, "--no-probe")
        self.assertLess(resident, 60 * MIB, "more than 8 KiB for each of 6,144 tensors")
        receipt = json.loads((out / "ingot.json").read_text())
        self.assertEqual([t["name"] for t in receipt["tensors"]][:1], ["model.layers.0.mlp.experts.0.down_proj.weight"])
        self.assertEqual(len(receipt["tensors"]), len(names))

    def test_a_ceiling_that_is_too_small_is_refused_by_plan_and_merge_before_anything_is_written(self):
        recipe = EXAMPLES / "recipes/ties.yml"
        before = sorted(os.listdir(self.folder))
        for words, what in ((["--memory", "8MiB"], "at least"), (["--memory", "60MiB", "--threads", "64"], "with 64 threads"),
                            (["--threads", "300"], "--threads ")):
            for command in ("merge", "plan"):
                done = ingot(command, recipe, self.folder / "out", "--root", EXAMPLES, *words)
                self.assertEqual(done.returncode, USAGE, done.stderr)
                self.assertIn("is too small for this merge", done.stderr)
                self.assertIn(what, done.stderr)
                self.assertEqual(sorted(os.listdir(self.folder)), before)
        # The ceiling that the sentence names does.
        least = int(ingot("plan", recipe, "--root", EXAMPLES, "--memory", "8MiB").stderr.split("at least ")[1].split()[0])
        self.run_ok("merge", recipe, self.folder / "out", "--root", EXAMPLES, "--memory", f"{least}MiB")

    def test_threads_follow_the_affinity(self):
        one = {min(os.sched_getaffinity(0))}
        report = subprocess.run([PROGRAM, "merge", EXAMPLES / "recipes/linear.yml", self.folder / "out", "--root", EXAMPLES, "--json"],
                                capture_output=True, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, one))
        self.assertEqual(json.loads(report.stdout)["threads"], 1)


@unittest.skipUnless(PLAIN, "sanitizers have time of their own")
class Proportion(Case):
    """Twice the input takes about twice the time: what is quadratic would show at these sizes."""

    def test_patterns(self):
        adapter = self.folder / "adapter"
        adapter.mkdir()
        for file in (EXAMPLES / "adapters/python-lora").iterdir():
            (adapter / file.name).write_bytes(file.read_bytes())
        config = json.loads((adapter / "adapter_config.json").read_text())
        for table, key in (("rank_pattern", "m{}"), ("alpha_pattern", r"layers\.{}\..*nothing")):
            changed = config | {table: {key.format(i): 8 for i in range(100_000)}}
            (adapter / "adapter_config.json").write_text(json.dumps(changed))
            begin = time.monotonic()
            done = self.run_ok("bake", EXAMPLES / "models/base", adapter, "-o", self.folder / "out", "--force")
            self.assertLess(time.monotonic() - begin, 60)
            self.assertIn("100000 of the 100000 keys", done.stderr)
            self.assertLess(len(done.stderr), 1000)

    def test_slices(self):
        (self.folder / "m").symlink_to(EXAMPLES / "models")
        slices = "".join(f"- sources: [{{model: m/{'base' if i % 2 else 'c'}, layer_range: [0,1]}}]\n" for i in range(8_000))
        recipe = self.write("recipe.yml", "merge_method: passthrough\nslices:\n" + slices)
        begin = time.monotonic()
        self.run_ok("plan", recipe, "--root", self.folder, "--no-probe")
        self.assertLess(time.monotonic() - begin, 60)

    def test_vocabularies(self):
        folder = self.folder / "chat"
        folder.mkdir()
        for file in (EXAMPLES / "models/chat").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"] = {f"{i:x}": i for i in range(1_000_000)}
        text = json.dumps(tokenizer)
        (folder / "tokenizer.json").write_text(text)
        recipe = self.write("recipe.yml", f"merge_method: linear\ntokenizer_source: {folder}\nmodels:\n- {{model: {folder}, parameters: {{weight: 1}}}}\n- {{model: {EXAMPLES}/models/base, parameters: {{weight: 1}}}}\n")
        code, resident, _, err = peak("plan", recipe, "--no-probe")
        self.assertEqual(code, 0, err)
        self.assertLess(resident, 16 * MIB + 6 * len(text))


if __name__ == "__main__":
    unittest.main()

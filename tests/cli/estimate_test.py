"""What a plan says of memory and time, beside what the run measures."""

import json
import struct
import time
import unittest

from program import EXAMPLES, PLAIN, Case, ingot

MODELS, ADAPTERS = EXAMPLES / "models", EXAMPLES / "adapters"
MIB = 1 << 20


def model(folder, layers, width):
    """bf16 layers of width * width elements; the data are a hole in the file."""
    folder.mkdir()
    header, end = {}, 0
    for layer in range(layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            begin, end = end, end + 2 * width * width
            header[f"model.layers.{layer}.self_attn.{name}.weight"] = {
                "dtype": "BF16", "shape": [width, width], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers}))
    return folder


@unittest.skipUnless(PLAIN, "sanitizers have memory of their own")
class Memory(Case):
    def compare(self, *words, least=0.85, most=1.15):
        """The plan is `least` to `most` times what the run takes. Methods that measure a tensor first, and models
        that fit into memory, take what they happen to have read by the time they write."""
        with self.subTest(words=[str(word) for word in words]):
            plan = json.loads(self.run_ok(*words, "--dry-run", "--json").stdout)
            run = json.loads(self.run_ok(*words, "--json", "--force", "--no-sync", "--allow-unchanged").stdout)
            ratio = plan["memory"]["peak"] / run["peak_memory"]
            self.assertTrue(least <= ratio <= most,
                            f"{plan['memory']['peak'] / MIB:.1f} MiB planned, {run['peak_memory'] / MIB:.1f} measured")
            self.assertEqual(plan["threads"], run["threads"])

    def test_of_small_models(self):
        for number, name in enumerate(("linear", "slerp", "ties", "task_arithmetic", "dare_ties")):
            recipe = EXAMPLES / "recipes" / f"{name}.yml"
            if recipe.exists():
                for threads in ("1", "2"):
                    self.compare("merge", recipe, self.folder / f"out-{number}-{threads}", "--root", EXAMPLES, "-j", threads)

    def test_of_bakes_and_adapters(self):
        self.compare("bake", MODELS / "base", ADAPTERS / "c-lora", "-o", self.folder / "baked")
        self.compare("adapter", "merge", ADAPTERS / "c-lora", ADAPTERS / "python-lora", "-o", self.folder / "cat")

    def test_of_runs_that_take_all_they_may(self):
        # 3 x 128 MiB under a ceiling that leaves room for some chunks.
        models = [model(self.folder / name, 4, 2048) for name in ("base", "a", "b")]
        entries = "".join(f"- model: {m}\n  parameters: {{weight: 0.5}}\n" for m in models)
        recipe = self.write("recipe.yml", f"merge_method: linear\ndtype: bfloat16\nmodels:\n{entries}")
        self.compare("merge", recipe, self.folder / "out", "--memory", "80MiB", "-j", "1", "--storage", "direct")

    def test_of_runs_that_need_less_than_they_may(self):
        # They read no further ahead than makes them faster, however much --memory allows. Files are holes, which are
        # read faster than any disk; what is resident of files in the page cache depends on how threads take turns.
        models = [model(self.folder / name, 8, 1024) for name in ("base", "a", "b")]
        for method, more, most in (("linear", "", 100), ("slerp", "parameters: {t: 0.5}\n", 128),
                                   ("ties", f"base_model: {models[0]}\n", 144)):
            kept = {"linear": models, "slerp": models[:2], "ties": models[1:]}[method]
            weight = "" if method == "slerp" else "\n  parameters: {weight: 0.5}"
            base = f"base_model: {models[0]}\n" if method == "slerp" else ""
            entries = "".join(f"- model: {m}{weight}\n" for m in kept)
            recipe = self.write(f"{method}.yml", f"merge_method: {method}\ndtype: bfloat16\n{base}{more}models:\n{entries}")
            for storage, least, greatest in (("direct", 0.85, 1.35), ("buffered", 0.85, 1.5), ("mapped", 0.45, 2.5)):
                self.compare("merge", recipe, self.folder / f"{method}-{storage}", "--storage", storage, "-j", "2",
                             least=least, most=greatest)
            plans = {self.planned(recipe, memory) for memory in ("512MiB", "8GiB")}
            self.assertLess(max(plans), most * MIB)
            self.assertLess(max(plans) - min(plans), 4 * MIB)

    def planned(self, recipe, memory):
        words = ("merge", recipe, self.folder / "new", "--memory", memory, "-j", "2", "--dry-run", "--json", "--no-probe")
        return json.loads(self.run_ok(*words).stdout)["memory"]["peak"]


class Headers(Case):
    def test_a_plan_of_measured_ranks_reads_headers_alone(self):
        base, tuned = model(self.folder / "base", 8, 2048), model(self.folder / "tuned", 8, 2048)
        begin = time.monotonic()
        for wish in (["--rank", "auto", "--energy", "0.9"], ["--bytes", "20MB"]):
            self.run_ok("extract", base, tuned, *wish, "-o", self.folder / "out", "--dry-run", "--no-probe")
        self.assertLess(time.monotonic() - begin, 10, "measuring 32 modules takes minutes")

    def test_decompositions_count_in_the_time(self):
        base, tuned = model(self.folder / "base", 8, 2048), model(self.folder / "tuned", 8, 2048)
        # The machine's rate is measured by each plan, and other programs share the machine: the least of
        # some plans is compared, and 4 times as long, as it is on a quiet machine, is not asked for.
        seconds = [min(json.loads(self.run_ok("extract", base, tuned, "--rank", rank, "-o", self.folder / "out",
                                              "--dry-run", "--json").stdout)["time"]["compute"] for _ in range(4))
                   for rank in ("8", "64")]
        self.assertGreater(seconds[0], 0.2)
        self.assertGreater(seconds[1], 1.5 * seconds[0])


if __name__ == "__main__":
    unittest.main()

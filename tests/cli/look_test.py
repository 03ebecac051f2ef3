"""ingot plan, inspect and diff from outside."""

import json
import struct
import shutil
import unittest

from program import DIFFERS, EXAMPLES, INPUT, TIES, USAGE, Case, bytes_of, ingot

MODELS = EXAMPLES / "models"


def header_of(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + size]), data[8 + size:]


class Plan(Case):
    def plan(self, recipe, *words):
        return self.json("plan", self.write("recipe.yml", recipe), "--root", EXAMPLES, *words)

    def test_accounts_for_every_tensor_and_byte_of_the_merge(self):
        plan = self.plan(TIES, "--tensors")
        self.merge()
        header, _ = header_of(self.folder / "out" / "model.safetensors")
        header.pop("__metadata__", None)
        self.assertEqual({t["name"] for t in plan["tensors"]}, set(header))
        size = (self.folder / "out" / "model.safetensors").stat().st_size
        self.assertEqual(plan["bytes_out"], size)
        self.assertEqual([shard["bytes"] for shard in plan["shards"]], [size])
        self.assertGreater(plan["disk"]["needed"], size)
        self.assertEqual(sum(plan["rules"].values()), len(header))
        for tensor in plan["tensors"]:
            self.assertEqual(tensor["dtype"], "bfloat16")
            self.assertEqual(tensor["shape"], header[tensor["name"]]["shape"])

    def test_shows_resolved_parameters_and_sources(self):
        tensor = self.plan(TIES, "--tensors")["tensors"][0]
        self.assertEqual(tensor["rule"], "ties")
        self.assertEqual(tensor["parameters"]["weight"], [0.5, 0.3])
        self.assertEqual(tensor["sources"], [f"models/{m}:{tensor['name']}"
                                             for m in ("base", "python", "c")])

    def test_writes_nothing(self):
        before = bytes_of(self.folder)
        recipe = self.write("recipe.yml", TIES)
        self.run_ok("plan", recipe, self.folder / "out", "--root", EXAMPLES)
        self.assertEqual(set(bytes_of(self.folder)) - set(before), {"recipe.yml"})

    def test_knows_what_stands_in_the_way_of_the_folder(self):
        recipe, out = self.write("recipe.yml", TIES), self.folder / "out"
        self.run_ok("merge", recipe, out, "--root", EXAMPLES)
        self.run_ok("plan", recipe, out, "--root", EXAMPLES, "--force")
        done = self.run_fails(2, "plan", recipe, out, "--root", EXAMPLES)
        self.assertIn("--force", done.stderr)
        (out / "thesis.txt").write_text("x")
        for folder, word in ((out, "thesis.txt"), (MODELS, "models")):
            done = self.run_fails(2, "plan", recipe, folder, "--root", EXAMPLES, "--force")
            self.assertIn(word, done.stderr)

    def test_text_has_what_a_person_wants_to_know(self):
        recipe = self.write("recipe.yml", TIES)
        text = self.run_ok("plan", recipe, "--root", EXAMPLES).stdout
        for word in ("LlamaForCausalLM", "models/python", "ties", "bfloat16", "read", "write", "disk",
                     "memory"):
            self.assertIn(word, text)

    def test_shows_every_problem_and_exits_as_the_merge_would(self):
        recipe = self.write("recipe.yml", TIES.replace("density: 0.5", "density: 1.5"))
        done = self.run_fails(USAGE, "plan", recipe, "--root", EXAMPLES, "--json")
        plan = json.loads(done.stdout)
        self.assertFalse(plan["sound"])
        self.assertEqual(len([p for p in plan["problems"] if p["fatal"] and "density" in p["text"]]), 2)


class Inspect(Case):
    def test_names_are_those_of_the_file(self):
        header, _ = header_of(MODELS / "base" / "model.safetensors")
        header.pop("__metadata__", None)
        self.assertEqual(sorted(self.run_ok("inspect", MODELS / "base", "--names").stdout.split()), sorted(header))

    def test_an_adapter_by_its_hub_name_is_the_folder(self):
        lora = EXAMPLES / "adapters" / "c-lora"
        hub = self.folder / "models--org--style"
        shutil.copytree(lora, hub / "snapshots" / ("a" * 40))
        (hub / "refs").mkdir()
        (hub / "refs" / "main").write_text("a" * 40)
        hub = {"HF_HUB_CACHE": str(self.folder)}
        for words in ((), ("--tensor", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"), ("--names",)):
            for name in ("org/style", "org/style@main"):
                self.assertEqual(self.run_ok("inspect", name, *words, env=hub).stdout.replace(name, "X"),
                                 self.run_ok("inspect", lora, *words).stdout.replace(str(lora), "X"))

    def test_counts_are_those_of_the_file(self):
        header, _ = header_of(MODELS / "base" / "model.safetensors")
        header.pop("__metadata__", None)
        seen = self.json("inspect", MODELS / "base")
        self.assertEqual(seen["tensors"], len(header))
        self.assertEqual(seen["layers"], 2)
        self.assertEqual(seen["architecture"], "LlamaForCausalLM")
        self.assertEqual(seen["tokens"], 509)
        self.assertEqual(seen["vocab_size"], 509)
        self.assertEqual(seen["dtypes"], {"bfloat16": len(header)})
        self.assertEqual(seen["parameters"] * 2, seen["bytes"])
        self.assertEqual(sum(g["parameters"] for g in seen["groups"]), seen["parameters"])

    def test_added_tokens_count(self):
        self.assertEqual(self.json("inspect", MODELS / "chat")["tokens"], 512)

    def test_every_container_looks_the_same(self):
        views = [self.json("inspect", MODELS / m) for m in ("python", "python-bin", "python-sharded")]
        for view in views:
            for key in ("path", "files", "pickled"):
                view.pop(key)
        self.assertEqual(views[0], views[1])
        self.assertEqual(views[0], views[2])

    def test_takes_a_weight_file(self):
        self.assertEqual(self.json("inspect", MODELS / "base" / "model.safetensors")["layers"], 2)

    def test_statistics_are_those_of_the_numbers(self):
        name = "model.layers.0.mlp.up_proj.weight"
        header, data = header_of(MODELS / "base" / "model.safetensors")
        begin, end = header[name]["data_offsets"]
        words = struct.unpack(f"<{(end - begin) // 2}H", data[begin:end])
        numbers = [struct.unpack("<f", struct.pack("<I", word << 16))[0] for word in words]
        mean = sum(numbers) / len(numbers)
        seen = self.json("inspect", MODELS / "base", "--tensor", name)
        self.assertEqual(seen["elements"], len(numbers))
        self.assertEqual(seen["min"], min(numbers))
        self.assertEqual(seen["max"], max(numbers))
        self.assertAlmostEqual(seen["mean"], mean, delta=1e-12)
        self.assertAlmostEqual(seen["std"], (sum((x - mean) ** 2 for x in numbers) / len(numbers)) ** 0.5,
                               delta=1e-12)
        self.assertEqual(seen["zeros"], numbers.count(0))
        self.assertEqual((seen["nan"], seen["inf"]), (0, 0))

    def test_unknown_tensor_names_the_nearest(self):
        done = self.run_fails(INPUT, "inspect", MODELS / "base", "--tensor", "model.norm.wieght")
        self.assertIn("model.norm.weight", done.stderr)

    def test_broken_file_is_bad_input(self):
        path = self.folder / "model.safetensors"
        path.write_bytes(b"\xff" * 20)
        done = self.run_fails(INPUT, "inspect", path)
        self.assertIn("model.safetensors", done.stderr)


class Diff(Case):
    def test_a_model_equals_itself_in_any_container(self):
        for other in ("python", "python-bin", "python-sharded"):
            done = self.run_ok("diff", MODELS / "python", MODELS / other)
            self.assertIn("identical", done.stdout)

    def test_a_fine_tune_differs_from_its_base(self):
        done = self.run_fails(DIFFERS, "diff", MODELS / "base", MODELS / "python", "--json")
        report = json.loads(done.stdout)
        self.assertFalse(report["identical"])
        self.assertGreater(report["total"]["relative_change"], 0)
        self.assertLess(report["total"]["relative_change"], 1)
        self.assertGreater(report["total"]["cosine"], 0.9)
        self.assertGreater(report["total"]["max_ulp"], 0)

    def test_columns_have_names(self):
        lines = self.run_fails(DIFFERS, "diff", MODELS / "base", MODELS / "python").stdout.splitlines()
        head = lines[0].split()
        self.assertEqual(head, ["differ", "max", "ulp", "mean", "ulp", "change", "cosine", "tensor"])
        row = next(line for line in lines if line.endswith("model.norm.weight"))
        self.assertEqual(len(row.split()), 7)  # the percent sign stands apart
        self.assertEqual(lines[0].index("tensor"), row.index("model.norm.weight"))

    def test_top_shows_what_changed_most(self):
        words = ["diff", MODELS / "base", MODELS / "python"]
        every = json.loads(self.run_fails(DIFFERS, *words, "--json").stdout)["tensors"]
        some = json.loads(self.run_fails(DIFFERS, *words, "--top", "3", "--json").stdout)["tensors"]
        changes = sorted((t["relative_change"] for t in every), reverse=True)
        self.assertEqual([t["relative_change"] for t in some], changes[:3])
        text = self.run_fails(DIFFERS, *words, "--top", "1").stdout
        self.assertIn(some[0]["name"], text)
        self.assertNotIn(some[1]["name"], text)
        self.assertIn("of 21 tensors", text)
        self.run_fails(2, *words, "--top", "0")

    def test_adapters_are_compared_as_well(self):
        lora, other = EXAMPLES / "adapters" / "c-lora", EXAMPLES / "adapters" / "python-lora"
        self.assertIn("identical", self.run_ok("diff", lora, lora).stdout)
        self.assertIn("lora_A", self.run_fails(DIFFERS, "diff", lora, other).stdout)

    def test_one_bit_is_one_ulp(self):
        data = bytearray((MODELS / "base" / "model.safetensors").read_bytes())
        data[-2] ^= 1
        path = self.folder / "model.safetensors"
        path.write_bytes(data)
        done = self.run_fails(DIFFERS, "diff", MODELS / "base", path, "--json")
        total = json.loads(done.stdout)["total"]
        self.assertEqual((total["differing"], total["max_ulp"]), (1, 1))

    def test_shapes_and_types_that_differ_are_told(self):
        done = self.run_fails(DIFFERS, "diff", MODELS / "base", MODELS / "chat")
        self.assertIn("[509, 64]", done.stdout)
        self.assertIn("[512, 64]", done.stdout)
        done = self.run_fails(DIFFERS, "diff", MODELS / "base", MODELS / "prose")
        self.assertIn("float16", done.stdout)

    def test_missing_tensors_are_told(self):
        header, data = header_of(MODELS / "base" / "model.safetensors")
        last = max((n for n in header if n != "__metadata__"),
                   key=lambda n: header[n]["data_offsets"][0])
        data = data[:header.pop(last)["data_offsets"][0]]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path = self.folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        self.assertIn(f"only in A  {last}", self.run_fails(DIFFERS, "diff", MODELS / "base", path).stdout)
        self.assertIn(f"only in B  {last}", self.run_fails(DIFFERS, "diff", path, MODELS / "base").stdout)

    def test_quiet_speaks_through_the_exit_code(self):
        done = self.run_fails(DIFFERS, "diff", MODELS / "base", MODELS / "c", "--quiet")
        self.assertEqual((done.stdout, done.stderr), ("", ""))


if __name__ == "__main__":
    unittest.main()

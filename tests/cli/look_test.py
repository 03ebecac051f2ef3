"""ingot plan, inspect and diff from outside."""

import json
import re
import shlex
import shutil
import struct
import shutil
import unittest

from program import DIFFERS, EXAMPLES, INPUT, TIES, USAGE, Case, bytes_of, ingot

MODELS = EXAMPLES / "models"


# A gradient for one kind of tensor, a number that f32 does not have for the others.
GRADIENT = """\
models:
  - model: models/python
    parameters:
      weight:
        - filter: mlp
          value: [0.9, 0.1]
        - value: 0.88
  - model: models/c
    parameters: {weight: 0.3}
merge_method: linear
"""


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

    def test_ends_with_ready_and_the_command_that_does_it(self):
        recipe, out = self.write("my recipe.yml", TIES), self.folder / "out"
        text = self.run_ok("plan", recipe, out, "--root", EXAMPLES, "--memory", "200MiB", "--no-probe").stdout
        last = text.splitlines()[-1]
        self.assertTrue(last.startswith("ready "), text)
        command = shlex.split(last)[1:]
        self.assertEqual(command[:2], ["ingot", "merge"])
        self.run_ok(*command[1:])
        self.assertTrue((out / "ingot.json").exists())

    def test_ends_without_ready_where_it_cannot_run(self):
        for text in (TIES.replace("models/c", "models/gone"), TIES.replace("density: 0.5", "density: 1.5")):
            done = ingot("plan", self.write("recipe.yml", text), "--root", EXAMPLES)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("not ready", done.stdout.splitlines()[-1])
            self.assertNotIn("0 tensors in 0 shards", done.stdout)
            self.assertNotIn("\nwrite ", done.stdout)

    def test_a_dry_run_is_the_plan(self):
        models, adapters, out = EXAMPLES / "models", EXAMPLES / "adapters", self.folder / "out"
        recipe = self.write("recipe.yml", TIES)
        plan = ingot("plan", recipe, out, "--root", EXAMPLES, "--no-probe")
        dry = ingot("merge", recipe, out, "--root", EXAMPLES, "--no-probe", "--dry-run")
        drop = lambda text: re.sub(r"(?m)^(time|memory|disk) .*\n", "", text)
        self.assertEqual((drop(dry.stdout), dry.stderr, dry.returncode), (drop(plan.stdout), plan.stderr, 0))
        for words in (["bake", models / "base", adapters / "c-lora"],
                      ["adapter", "merge", adapters / "c-lora", adapters / "python-lora"],
                      ["extract", models / "base", models / "python", "--rank", "4"]):
            with self.subTest(words=words[0]):
                done = self.run_ok(*words, "-o", out, "--dry-run")
                self.assertFalse(out.exists())
                command = shlex.split(done.stdout.splitlines()[-1])
                self.assertEqual(command[0], "ready")
                self.run_ok(*command[2:])
                report = json.loads(self.run_ok(*words, "-o", out, "--dry-run", "--force", "--json").stdout)
                self.assertTrue(report["sound"])
                blocked = ingot(*words, "-o", out, "--dry-run")
                self.assertEqual(blocked.returncode, USAGE)
                self.assertEqual(blocked.stderr, ingot(*words, "-o", out).stderr)
                shutil.rmtree(out)

    def test_what_the_target_and_the_ceilings_forbid_is_a_problem(self):
        recipe, out = self.write("recipe.yml", TIES), self.folder / "out"
        out.write_text("a file")
        self.assertEqual(ingot("plan", recipe, out, "--root", EXAMPLES).returncode,
                         ingot("merge", recipe, out, "--root", EXAMPLES).returncode)
        out.unlink()
        for words in (["--memory", "2MiB"], ["--memory", "60MiB", "-j", "64"], ["--device", "cuda"]):
            plan = ingot("plan", recipe, out, "--root", EXAMPLES, *words)
            merge = ingot("merge", recipe, out, "--root", EXAMPLES, *words)
            self.assertEqual((plan.returncode, plan.stderr), (merge.returncode, merge.stderr))
            if merge.returncode == 0:
                shutil.rmtree(out)

    def test_ranks_that_the_numbers_decide_are_left_open(self):
        models = EXAMPLES / "models"
        for wish in (["--rank", "auto", "--energy", "0.9"], ["--bytes", "100kB"]):
            done = self.run_ok("extract", models / "base", models / "python", *wish, "-o", self.folder / "o", "--dry-run")
            self.assertIn("the ranks of 14 modules", done.stdout)
            self.assertTrue(done.stdout.splitlines()[-1].startswith("ready "))

    def test_parameters_of_each_layer_are_a_table(self):
        recipe = self.write("recipe.yml", GRADIENT)
        text = self.run_ok("plan", recipe, "--root", EXAMPLES).stdout
        self.assertRegex(text, r"parameters +everywhere normalize true, c weight 0\.3\n +python weight\n")
        self.assertRegex(text, r"\n +layer 0: mlp +0\.9\n +layer 1: mlp +0\.1\n")
        self.assertRegex(text, r"\n +layers 0-1: .*input_layernorm.* 0\.88\n")
        self.assertRegex(text, r"\n +outside layers +0\.88\n")
        rows = self.plan(GRADIENT)["weights"]
        self.assertEqual(sum(row["tensors"] for row in rows), 21)
        self.assertIn([0.88, 0.3], [row["parameters"]["weight"] for row in rows])
        text = self.run_ok("plan", recipe, "--root", EXAMPLES, "--tensors").stdout
        self.assertNotIn("0.87999", text)
        self.assertNotIn("{", text)
        for line in re.findall(r"(?m)^(?:lm_head|model\.| {4}).*", text):
            self.assertLessEqual(len(line), 80)

    def test_shows_every_problem_and_exits_as_the_merge_would(self):
        recipe = self.write("recipe.yml", TIES.replace("density: 0.5", "density: 1.5"))
        done = self.run_fails(USAGE, "plan", recipe, "--root", EXAMPLES, "--json")
        plan = json.loads(done.stdout)
        self.assertFalse(plan["sound"])
        wrong = [p for p in plan["problems"] if p["fatal"] and "density" in p["text"]]
        self.assertEqual([p["place"] for p in wrong],
                         [{"file": str(recipe), "line": line, "column": 27} for line in (3, 5)])
        for problem in wrong:
            self.assertEqual((problem["code"], problem["exit"]), ("usage", USAGE))
            self.assertIn("recipe", problem["advice"])

    def test_all_that_is_wrong_is_said_at_once(self):
        out = self.write("out", "a file")
        recipe = self.write("recipe.yml", "models:\n- {model: models/python, parameters: {density: 1.5, weight: x}}\n"
                                          "- {model: models/gone, parameters: {density: 0.5}}\n"
                                          "merge_method: ties\nbase_model: models/base\ndtype: bfloat\n")
        parts = (":2:", "'density' of models/python is 1.5", "'weight' takes a number, not 'x'", "models/gone",
                 "needs parameter 'weight' of models/gone", "'bfloat' is not an element type", "exists and is not a folder")
        for command in (["plan"], ["merge"], ["merge", "--dry-run"]):
            stderr = self.run_fails(USAGE, *command, recipe, out, "--root", EXAMPLES).stderr
            for part in parts:
                self.assertIn(part, stderr)
        adapters = self.write("adapters.yml", "adapter_method: ties\nadapters:\n- {adapter: adapters/gone, parameters: {density: 3}}\n"
                                              "- {adapter: adapters/lost, parameters: {wieght: 1}}\nfoo: 1\nrank: 4\ndtype: bfloat\n")
        stderr = self.run_fails(USAGE, "adapter", "merge", "--recipe", adapters, "-o", self.folder / "o", "--root", EXAMPLES).stderr
        for part in ("adapters/gone", "adapters/lost", "'density' of adapters/gone is 3", "'wieght'", "unknown key 'foo'",
                     "'rank' changes nothing", "'bfloat'"):
            self.assertIn(part, stderr)
        extraction = self.write("extract.yml", "extract: lora\nbase_model: models/gone\nmodel: models/lost\nrank: 0\n"
                                               "dtype: bfloat\nfoo: 1\n")
        stderr = self.run_fails(USAGE, "plan", extraction, "--root", EXAMPLES).stderr
        for part in ("models/gone", "models/lost", "'rank' takes", "'bfloat'", "'foo'"):
            self.assertIn(part, stderr)

    def test_a_folder_in_which_nothing_can_be_made_is_one_sentence(self):
        recipe = self.write("recipe.yml", TIES)
        for out in ("/proc/ingot-out", recipe / "out", "/dev/null/out"):
            plan = self.run_fails(4, "plan", recipe, out, "--root", EXAMPLES)
            self.assertIn("cannot write in", plan.stderr)
            self.assertEqual(plan.stderr, self.run_fails(4, "merge", recipe, out, "--root", EXAMPLES).stderr)


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

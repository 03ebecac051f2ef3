"""Receipts of every kind, and what --json prints, against the schemas of the documents."""

import json
import shutil
import unittest

try:
    import jsonschema
except ImportError:  # tools/setup test brings it
    jsonschema = None

from program import DIFFERS, EXAMPLES, INPUT, SOURCE, Case, ingot

ADAPTERS = EXAMPLES / "adapters"
BASE, CHAT = EXAMPLES / "models" / "base", EXAMPLES / "models" / "chat"
LORA, OTHER, DORA, IA3 = (ADAPTERS / name for name in ("c-lora", "python-lora", "python-dora", "c-ia3"))

ADAPTED = f"""\
models:
  - model: {BASE}+{LORA}
    parameters: {{weight: 0.6}}
  - model: {EXAMPLES}/models/python
    parameters: {{weight: 0.4}}
merge_method: linear
"""


ODD = """\
models:
  - model: {}
    parameters: {{weight: 1e5}}
merge_method: linear
parameters: {{normalize: false}}
"""


def validator(name, part=None):
    schema = json.loads((SOURCE / "docs" / name).read_text())
    if part:
        schema = {"$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": f"#/$defs/{part}"}
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@unittest.skipUnless(jsonschema, "python3-jsonschema is not installed")
class Schemas(Case):
    def hold(self, value, schema):
        errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:300]}" for e in schema.iter_errors(value)]
        self.assertEqual(errors[:3], [])

    def test_failures_are_json_as_well(self):
        schema = validator("json.schema.json", "error")
        out = self.folder / "out"
        bad = self.write("bad.yml", "{")
        none = self.write("none.yml", "merge_method: linear\nmodels: [{model: gone, parameters: {weight: 1}}]\n")
        for code, words in ((2, ["merge", bad, out]), (INPUT, ["merge", none, out]), (2, ["merge", none]),
                            (2, ["merge", none, out, "--nonsense"]), (2, ["merge", none, out, "--seed", "-1"]),
                            (INPUT, ["inspect", "gone"]), (INPUT, ["diff", "gone", BASE]), (2, ["plan", bad]),
                            (INPUT, ["bake", "gone", LORA, "-o", out]), (INPUT, ["extract", BASE, "gone", "--rank", "1", "-o", out]),
                            (INPUT, ["adapter", "merge", "gone", "-o", out]), (5, ["bench", "--device", "cuda"]),
                            (2, ["inspect", *([LORA] * 65)])):
            with self.subTest(words=words[:3]):
                done = ingot(*words, "--json")
                if words[0] == "plan" and "problems" in done.stdout:
                    continue
                self.assertEqual(done.returncode, code, done.stderr)
                told = json.loads(done.stdout)
                self.hold(told, schema)
                self.assertEqual(told["exit"], done.returncode)
                self.assertEqual(told["errors"][0]["exit"], done.returncode)
                for error in told["errors"]:
                    self.assertIn(error["message"], done.stderr)
                self.assertEqual(ingot(*words).stdout, "")

    def errors(self, *words):
        done = ingot(*words, "--json")
        told = json.loads(done.stdout)
        self.hold(told, validator("json.schema.json", "error"))
        return told["errors"]

    def test_errors_have_kind_and_place(self):
        out = self.folder / "out"
        unknown = self.write("unknown.yml", "merge_method: linear\nmodells: []\n")
        missing = self.write("missing.yml", "merge_method: linear\nmodels: [{model: models/gone, parameters: {weight: 1}}]\n")
        there = self.folder / "there"
        there.mkdir()
        (there / "thesis.txt").write_text("x")
        broken = self.folder / "broken"
        shutil.copytree(BASE, broken)
        (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
        for words, code, place in (
                (["merge", unknown, out], "usage", {"file": str(unknown), "line": 2}),
                (["inspect", broken], "format", {"file": str(broken / "model.safetensors")}),
                (["inspect", BASE, "--tensor", "model.norm.weigth"], "missing", {"tensor": "model.norm.weigth"}),
                (["merge", self.folder / "gone.yml", out], "missing", {"file": str(self.folder / "gone.yml")}),
                (["merge", missing, out], "missing", {"file": str(missing), "line": 2, "column": 18}),
                (["bake", BASE, self.folder / "gone", "-o", out], "missing", {"file": str(self.folder / "gone")}),
                (["bake", BASE, LORA, "-o", there], "usage", {"file": str(there)}),
                (["verify", self.folder / "gone"], "missing", {"file": str(self.folder / "gone")}),
                (["merge", unknown, out, "--weights", "1"], "usage", {"option": "--weights"}),
                (["merge", unknown, out, "--memory", "lots"], "usage", {"option": "--memory"}),
                (["merge", unknown, out, "--storage", "tape"], "usage", {"option": "--storage"})):
            with self.subTest(words=[str(word) for word in words[:3]]):
                errors = self.errors(*words)
                self.assertTrue(any(error["code"] == code and error["place"] | place == error["place"]
                                    for error in errors), errors)

    def test_all_problems_are_listed(self):
        recipe = self.write("two.yml", "merge_method: linear\nmodels:\n- {model: gone, parameters: {weight: 1}}\n"
                                       "- {model: lost, parameters: {weight: 1}}\n")
        text = " ".join(error["message"] for error in self.errors("merge", recipe, self.folder / "out"))
        self.assertIn("gone", text)
        self.assertIn("lost", text)

    def test_layers_that_are_not_there_have_one_exit_code(self):
        for recipe in ("slices: [{sources: [{model: %s, layer_range: [0, 9]}]}]\nmerge_method: passthrough\n" % BASE,
                       "slices: [{sources: [{model: %s, layer_range: [0, 2]}, {model: %s, layer_range: [0, 1]}]}]\n"
                       "merge_method: linear\nparameters: {weight: 1}\n" % (BASE, CHAT)):
            for command in ("plan", "merge"):
                done = ingot(command, self.write("slices.yml", recipe), self.folder / "out")
                self.assertEqual(done.returncode, INPUT, done.stderr)

    def make(self, *words):
        """Runs a command that writes a folder; its receipt and its report."""
        out = self.folder / "out"
        done = ingot(*words, "--json", "--force")
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads((out / "ingot.json").read_text()), json.loads(done.stdout)

    def kinds(self):
        out = ("-o", self.folder / "out")
        # NaN in an input, results beyond the type's range.
        odd = self.folder / "odd"
        shutil.copytree(BASE, odd)
        weights = bytearray((odd / "model.safetensors").read_bytes())
        begin = 8 + int.from_bytes(weights[:8], "little")
        weights[begin:begin + 4] = bytes.fromhex("c07f7f43")
        (odd / "model.safetensors").write_bytes(weights)
        yield "merge", self.write("odd.yml", ODD.format(odd)), self.folder / "out", "--dtype", "float8_e4m3fn"
        yield "merge", self.write("big.yml", ODD.format(odd)), self.folder / "out", "--dtype", "float16", \
            "--allow-nonfinite"
        for recipe in sorted((EXAMPLES / "recipes").glob("*.yml")):
            yield "merge", recipe, self.folder / "out", "--root", EXAMPLES, "--seed", "7"
        yield "merge", self.write("adapted.yml", ADAPTED), self.folder / "out", "--shard-size", "100kB"
        yield "bake", BASE, LORA, f"{ADAPTERS}/prose-lora-patterns:-0.5", *out
        yield "bake", BASE, DORA, IA3, *out, "--dtype", "float32"
        yield "bake", BASE, LORA, "--fast-product", *out
        for kind in ("linear", "cat", "svd"):
            yield "adapter", "merge", LORA, OTHER, "--type", kind, *out
        for kind in ("ties", "dare_ties_svd", "magnitude_prune_svd"):
            yield "adapter", "merge", LORA, OTHER, "--type", kind, "--density", "0.5", *out
        yield "adapter", "merge", IA3, ADAPTERS / "python-ia3", "--type", "linear", *out
        yield "extract", BASE, CHAT, "--rank", "4", *out
        yield "extract", BASE, CHAT, "--rank", "auto", "--energy", "0.9", "--whole-tensors", "skip", *out

    def test_receipts_of_every_kind_and_the_reports_of_their_runs(self):
        receipts, reports = validator("receipt.schema.json"), validator("json.schema.json", "merge")
        for words in self.kinds():
            with self.subTest(words=[str(word) for word in words[:6]]):
                receipt, report = self.make(*words)
                self.hold(receipt, receipts)
                self.hold(report, reports)

    def test_the_schema_of_receipts_is_strict(self):
        schema = validator("receipt.schema.json")
        receipt, _ = self.make("bake", BASE, LORA, "-o", self.folder / "out")
        self.hold(receipt, schema)

        def objects(value):
            if isinstance(value, dict):
                yield value
            for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
                yield from objects(inner)

        for value in list(objects(receipt))[:40]:
            if "lora_A" in value:  # pieces of families by their names
                continue
            value["surprise"] = []
            self.assertFalse(schema.is_valid(receipt), value)
            del value["surprise"]
        for key in list(receipt):
            self.assertFalse(schema.is_valid({k: v for k, v in receipt.items() if k != key}), key)

    def test_what_other_commands_print(self):
        out, recipe = self.folder / "out", EXAMPLES / "recipes" / "ties.yml"
        ingot("merge", recipe, out, "--root", EXAMPLES)
        model = EXAMPLES / "models" / "python"
        for part, code, words in (
                ("plan", 0, ("plan", recipe, "--root", EXAMPLES, "--tensors")),
                ("plan", INPUT, ("plan", recipe, "--root", self.folder)),
                ("verify", 0, ("verify", out, "--root", EXAMPLES)),
                ("verify", 0, ("verify", out, "--outputs-only")),
                ("verify", DIFFERS, ("verify", out, "--root", EXAMPLES)),
                ("inspect", 0, ("inspect", model)),
                ("statistics", 0, ("inspect", model, "--tensor", "model.norm.weight")),
                ("adapters", 0, ("inspect", LORA, OTHER)),
                ("methods", 0, ("methods",)),
                ("diff", DIFFERS, ("diff", BASE, model)),
                ("diff", 0, ("diff", model, EXAMPLES / "models" / "python-sharded"))):
            with self.subTest(words=[str(word) for word in words]):
                if part == "verify" and code == DIFFERS:
                    (out / "extra").write_text("")
                done = ingot(*words, "--json")
                self.assertEqual(done.returncode, code, done.stderr)
                self.hold(json.loads(done.stdout), validator("json.schema.json", part))


if __name__ == "__main__":
    unittest.main()

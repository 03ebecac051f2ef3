"""ingot bake from outside."""

import json
import shutil
import unittest

from program import EXAMPLES, INPUT, USAGE, Case, bytes_of, ingot

BASE, ADAPTERS = EXAMPLES / "models" / "base", EXAMPLES / "adapters"


class Bake(Case):
    def bake(self, *words, out="out", **options):
        return self.run_ok("bake", BASE, *words, "-o", self.folder / out, "--no-sync", **options)

    def refused(self, code, *words):
        done = ingot("bake", BASE, *words, "-o", self.folder / "out")
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertFalse((self.folder / "out").exists())
        return done.stderr

    def test_writes_a_folder_that_verifies_and_tells_what_changed(self):
        done = self.bake(ADAPTERS / "c-lora")
        self.assertIn("8 tensors changed by adapters", done.stdout)
        self.assertRegex(done.stdout, r"q_proj\.weight +2 +\d+\.\d+ % +\d+\.\d+ % +\d+\.\d+ %")
        self.run_ok("verify", self.folder / "out", "--all")

    def test_is_the_merge_that_its_recipe_describes(self):
        self.bake(ADAPTERS / "c-lora:0.5", ADAPTERS / "python-dora")
        text = (self.folder / "out" / "recipe.yml").read_text()
        self.assertIn("weight: 0.5", text)
        again = self.folder / "again" / "out"
        again.parent.mkdir()
        self.run_ok("merge", self.folder / "out" / "recipe.yml", again, "--no-sync")
        self.assertEqual(bytes_of(self.folder / "out"), bytes_of(again))
        self.run_ok("plan", self.folder / "out" / "recipe.yml", "--no-probe")

    def test_weight_follows_the_last_colon_unless_the_folder_has_one(self):
        odd = self.folder / "c:0.5"
        shutil.copytree(ADAPTERS / "c-lora", odd)
        self.bake(odd, out="whole")
        self.assertNotIn("weight", (self.folder / "whole" / "recipe.yml").read_text())
        self.bake(f"{odd}:-2e-1", out="part")
        self.assertIn("weight: -2e-1", (self.folder / "part" / "recipe.yml").read_text())
        self.assertIn("'x' behind its last colon is not a number", self.refused(USAGE, f"{ADAPTERS}/c-lora:x"))

    def test_report_as_json_has_the_changes_by_kind(self):
        report = json.loads(self.bake(ADAPTERS / "c-ia3", "--json").stdout)
        kinds = {entry["kind"]: entry for entry in report["changes"]}
        self.assertEqual(kinds["model.layers.*.mlp.down_proj.weight"]["tensors"], 2)
        for entry in kinds.values():
            self.assertTrue(0 < entry["mean"] <= entry["largest"] and entry["survived"] > 0.9, entry)

    def test_a_change_that_rounding_loses_is_a_warning(self):
        small = f"{ADAPTERS}/c-lora:0.001"
        done = self.bake(small)
        self.assertIn("of the change survives the rounding", done.stderr)
        self.assertNotIn("survives", self.bake(small, "--dtype", "float32", out="wide").stderr)

    def test_machine_options_change_no_byte(self):
        words = (ADAPTERS / "c-lora", ADAPTERS / "python-dora")
        a, b = self.place("a"), self.place("b")
        self.bake(*words, out=a)
        self.bake(*words, "--memory", "64MiB", "--threads", "1", "--storage", "buffered", out=b,
                  env={"INGOT_ISA": "v2"})
        self.assertEqual(bytes_of(self.folder / a), bytes_of(self.folder / b))

    def test_fast_products_stand_in_the_receipt_and_verify(self):
        self.bake(ADAPTERS / "c-lora", ADAPTERS / "python-dora", "--fast-product", "--dtype", "float32")
        receipt = json.loads((self.folder / "out" / "ingot.json").read_text())
        self.assertIs(receipt["options"]["fast_product"], True)
        self.run_ok("verify", self.folder / "out", "--all")
        self.bake(ADAPTERS / "c-lora", out="exact")
        self.assertNotIn("fast_product", (self.folder / "exact" / "ingot.json").read_text())
        recipe = EXAMPLES / "recipes" / "ties.yml"
        done = ingot("merge", recipe, self.folder / "ties", "--root", EXAMPLES, "--fast-product")
        self.assertEqual(done.returncode, USAGE, done.stderr)
        self.assertIn("--fast-product is for passthrough", done.stderr)

    def test_tokenizer_and_vocabulary_follow_the_adapter(self):
        self.bake(ADAPTERS / "chat-lora")
        out = self.folder / "out"
        self.assertEqual(json.loads((out / "config.json").read_text())["vocab_size"], 512)
        for name in ("tokenizer.json", "chat_template.jinja"):
            self.assertEqual((out / name).read_bytes(), (ADAPTERS / "chat-lora" / name).read_bytes())

    def test_what_cannot_be_is_refused_before_a_byte(self):
        bad = self.folder / "bad"
        shutil.copytree(ADAPTERS / "c-lora", bad)
        config = json.loads((bad / "adapter_config.json").read_text())
        for change, said in (({"r": 4}, "rank 8"), ({"peft_type": "HIRA"}, "ingot extract"),
                             ({"gain": 2.0}, "--allow-unknown-keys"), ({"lora_alpha": 1e300}, "beyond float32"),
                             ({"target_modules": ["q_proj"]}, "not among target_modules")):
            (bad / "adapter_config.json").write_text(json.dumps(config | change))
            self.assertIn(said, self.refused(USAGE if "peft_type" in change else INPUT, bad))
        self.assertIn("it is a model, not an adapter", self.refused(INPUT, BASE))
        (bad / "adapter_config.json").write_text(json.dumps(config | {"gain": 2.0}))
        self.assertIn("passed over", self.bake(bad, "--allow-unknown-keys").stderr)


if __name__ == "__main__":
    unittest.main()

"""ingot bake from outside."""

import array
import json
import random
import shutil
import struct
import unittest

from program import EXAMPLES, INPUT, USAGE, Case, bytes_of, ingot

BASE, ADAPTERS = EXAMPLES / "models" / "base", EXAMPLES / "adapters"


def save(path, tensors):
    """A safetensors file of float32 matrices, as lists of rows."""
    header, data = {}, b""
    for name, rows in sorted(tensors.items()):
        values = array.array("f", [x for row in rows for x in row]).tobytes()
        header[name] = {"dtype": "F32", "shape": [len(rows), len(rows[0])],
                        "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def load(path):
    """The float32 matrices of a safetensors file."""
    data = path.read_bytes()
    size, = struct.unpack("<Q", data[:8])
    header, data = json.loads(data[8:8 + size]), data[8 + size:]
    out = {}
    for name, entry in header.items():
        if name != "__metadata__":
            values = array.array("f", data[slice(*entry["data_offsets"])]).tolist()
            width = entry["shape"][1]
            out[name] = [values[i:i + width] for i in range(0, len(values), width)]
    return out


def product(a, b):
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


def transposed(a):
    return [list(column) for column in zip(*a)]


def cayley(q):
    """(I - Q)(I + Q)^-1 in double precision."""
    n = len(q)
    left = [[(i == j) + q[i][j] for j in range(n)] + [float(i == j) for j in range(n)] for i in range(n)]
    for i in range(n):
        k = max(range(i, n), key=lambda r: abs(left[r][i]))
        left[i], left[k] = left[k], left[i]
        left[i] = [x / left[i][i] for x in left[i]]
        for r in range(n):
            if r != i:
                left[r] = [x - left[r][i] * y for x, y in zip(left[r], left[i])]
    return product([[(i == j) - q[i][j] for j in range(n)] for i in range(n)], [row[n:] for row in left])


def apart(a, b):
    return max(abs(x - y) for row, other in zip(a, b) for x, y in zip(row, other))


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
        self.assertIn("'x' after its last colon is not a number", self.refused(USAGE, f"{ADAPTERS}/c-lora:x"))

    def test_report_as_json_has_the_changes_by_kind(self):
        report = json.loads(self.bake(ADAPTERS / "c-ia3", "--json").stdout)
        kinds = {entry["kind"]: entry for entry in report["changes"]}
        self.assertEqual(kinds["model.layers.*.mlp.down_proj.weight"]["tensors"], 2)
        for entry in kinds.values():
            self.assertTrue(0 < entry["mean"] <= entry["largest"] and entry["survived"] > 0.9, entry)

    def test_a_change_that_rounding_loses_is_a_warning(self):
        small = f"{ADAPTERS}/c-lora:0.001"
        done = self.bake(small)
        self.assertIn("of the change is kept after the rounding", done.stderr)
        self.assertNotIn("is kept after", self.bake(small, "--dtype", "float32", out="wide").stderr)

    def test_weight_zero_is_told_in_one_way(self):
        done = self.bake(f"{ADAPTERS}/c-lora:0", "--dtype", "bfloat16")
        said = done.stdout + done.stderr
        self.assertIn("changed nothing", said)
        self.assertNotIn("changed by adapters", said)
        self.assertNotIn("is kept after", said)

    def test_weights_beside_an_adapter_are_refused_or_waived(self):
        beside = self.folder / "beside"
        shutil.copytree(ADAPTERS / "c-lora", beside)
        (beside / "non_lora_trainables.bin").write_bytes(b"x")
        (beside / "optimizer.pt").write_bytes(b"x")
        said = self.refused(INPUT, beside)
        self.assertIn("non_lora_trainables.bin", said)
        self.assertNotIn("optimizer.pt", said)
        self.assertIn("left out", self.bake(beside, "--ignore-extra-weights").stderr)
        receipt = json.loads((self.folder / "out" / "ingot.json").read_text())
        self.assertEqual(receipt["options"]["waivers"], ["ignore_extra_weights"])
        self.run_ok("verify", self.folder / "out")

    def test_messages_speak_of_the_command_line(self):
        done = ingot("bake", self.folder / "absent", ADAPTERS / "c-lora", "-o", self.folder / "out")
        self.assertNotIn("bake:", done.stderr)

    def test_two_rotations_of_an_embedding_act_first_to_last(self):
        draw = random.Random(5).gauss
        table, linear = ([[draw(0, 1) for _ in range(4)] for _ in range(rows)] for rows in (6, 4))
        base = self.folder / "base"
        base.mkdir()
        save(base / "model.safetensors", {"emb.weight": table, "lin.weight": linear})
        (base / "config.json").write_text('{"model_type": "custom"}')
        turns = []
        for name in ("one", "two"):
            folder, skew = self.folder / name, [draw(0, 0.4) for _ in range(6)]
            folder.mkdir()
            save(folder / "adapter_model.safetensors",
                 {"base_model.model.emb.oft_embedding_R": [skew], "base_model.model.lin.oft_R.weight": [skew]})
            (folder / "adapter_config.json").write_text(json.dumps(
                {"peft_type": "OFT", "r": 0, "oft_block_size": 4, "target_modules": ["emb", "lin"],
                 "use_cayley_neumann": False}))
            q, values = [[0.0] * 4 for _ in range(4)], iter(skew)
            for i in range(4):
                for j in range(i + 1, 4):
                    q[i][j] = next(values)
                    q[j][i] = -q[i][j]
            turns.append(cayley(q))
        self.run_ok("bake", base, self.folder / "one", self.folder / "two", "-o", self.folder / "out",
                    "--no-sync")
        out = load(self.folder / "out" / "model.safetensors")
        # The rows of an embedding are its outputs, turned by one adapter after the other. A linear
        # layer's input is: W (x R1) R2 is x times (W R2' R1')'.
        one, two = turns
        self.assertLess(apart(out["emb.weight"], product(product(table, one), two)), 2e-6)
        self.assertLess(apart(out["lin.weight"], product(product(linear, transposed(two)), transposed(one))), 2e-6)

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
        self.assertIn("--fast-product works only with passthrough", done.stderr)

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
        self.assertIn("was ignored", self.bake(bad, "--allow-unknown-keys").stderr)


if __name__ == "__main__":
    unittest.main()

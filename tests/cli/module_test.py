"""Models of one kind that are not alike: modules that only some have, text-only and image-text
forms, experts in one tensor and apart."""

import json
import random
import struct
import unittest

from folder_test import Folder, read, write
from program import DIFFERS, INPUT

TIES = """\
models:
  - model: a
    parameters: {weight: 1, density: 0.5}
  - model: b
    parameters: {weight: 1, density: 0.5}
merge_method: ties
base_model: base
"""
TASK = TIES.replace("ties", "task_arithmetic").replace(", density: 0.5", "")
LINEAR = """\
models:
  - model: a
    parameters: {weight: 0.25}
  - model: b
    parameters: {weight: 0.75}
merge_method: linear
"""
random.seed(7)


def numbers(*shape):
    """Nested lists of numbers that float32 holds."""
    if not shape:
        return random.randrange(-4096, 4096) / 1024
    return [numbers(*shape[1:]) for _ in range(shape[0])]


def flat(array):
    return [x for row in array for x in flat(row)] if isinstance(array, list) else [array]


def pack(array):
    """A tensor of float32."""
    shape, inner = [], array
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0]
    return ("F32", shape, struct.pack(f"<{len(flat(array))}f", *flat(array)))


def f32(*shape):
    return pack(numbers(*shape))


def values(tensor):
    """All elements in order."""
    dtype, _, data = tensor
    if dtype == "BF16":
        data = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def transposed(matrix):
    return [list(row) for row in zip(*matrix)]


def mtp():
    return {"mtp.fc.weight": f32(8, 16), "mtp.norm.weight": f32(8),
            "mtp.layers.0.mlp.up_proj.weight": f32(16, 8)}


class Models(Folder):
    """The models base, a and b: a llama of two layers, and what a test adds."""

    def setUp(self):
        super().setUp()
        (self.folder / "base").mkdir()
        (self.folder / "base" / "config.json").write_text(
            (self.folder / "a" / "config.json").read_text())
        self.plain = {m: read(self.folder / m / "model.safetensors") for m in "ab"}
        self.plain["base"] = {n: (d, s, bytes(len(x))) for n, (d, s, x) in self.weights.items()}
        self.give({}, "base")

    def assert_close(self, found, expected, what=""):
        self.assertEqual(len(found), len(expected), what)
        for x, y in zip(found, expected):
            self.assertAlmostEqual(x, y, delta=1e-6 + 2e-6 * abs(y), msg=what)

    def give(self, more, *models, without=(), rename=lambda name: name):
        for model in models:
            kept = {rename(n): t for n, t in self.plain[model].items() if n not in without}
            write(self.folder / model / "model.safetensors", kept | more)

    def configure(self, model, **keys):
        path = self.folder / model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    def merge_it(self, recipe=TIES, *words, out="out"):
        said = self.linear(*words, out=out, recipe=recipe)
        self.verify(out)
        return said, read(self.folder / out / "model.safetensors")

    def refuse(self, recipe, *words, command="merge"):
        path = self.write("recipe.yml", recipe)
        out = [self.folder / "no"] if command == "merge" else []
        done = self.run_fails(INPUT, command, path, *out, "--root", self.folder, *words)
        return done.stdout + done.stderr

    def entry(self, tensor, out="out"):
        receipt = json.loads((self.folder / out / "ingot.json").read_text())
        return next(t for t in receipt["tensors"] if t["name"] == tensor)


class Gaps(Models):
    def test_what_only_the_base_has_is_taken_from_it(self):
        parts = mtp()
        _, alone = self.merge_it(out="alone")
        self.give(parts, "base")
        said, out = self.merge_it()
        self.assertEqual({n: out[n] for n in parts}, parts)
        self.assertEqual({n: t for n, t in out.items() if n not in parts}, alone)
        self.assertIn("a, b have no module mtp (3 tensors), which base has: the output uses that of base",
                      said.stderr)
        entry = self.entry("mtp.fc.weight")
        self.assertEqual(entry["rule"], "copy")
        self.assertIn("module mtp: a, b have none, that of base is taken", entry["reason"])
        plan = self.run_ok("plan", self.folder / "recipe.yml", "--root", self.folder)
        self.assertIn("no module mtp", plan.stdout + plan.stderr)
        for command in ("merge", "plan"):
            self.assertIn("--strict-modules", self.refuse(TIES, "--strict-modules",
                                                          command=command))

    def test_the_type_that_the_recipe_asks_for_is_that_of_the_module_too(self):
        parts = mtp()
        self.give(parts, "base")
        _, out = self.merge_it(TIES + "dtype: bfloat16\n")
        for name, tensor in parts.items():
            self.assertEqual(out[name][0], "BF16")
            for x, y in zip(values(out[name]), values(tensor)):
                self.assertAlmostEqual(x, y, delta=2**-8 * abs(y))

    def test_a_model_without_the_module_takes_part_with_the_bases(self):
        base, tuned = mtp(), mtp()
        self.give(base, "base")
        self.give(tuned, "a")
        _, out = self.merge_it(TASK)
        for name in base:
            self.assert_close(values(out[name]), values(tuned[name]), name)
        _, out = self.merge_it(LINEAR, out="linear")
        for name in base:  # no base: that of the only one that has it
            self.assertEqual(out[name], tuned[name])

    def test_without_a_base_that_of_the_model_that_has_it(self):
        parts = mtp()
        for owner in "ab":
            self.setUp()
            self.give(parts, owner)
            said, out = self.merge_it(LINEAR)
            self.assertEqual({n: out[n] for n in parts}, parts)
            self.assertIn("no module mtp", said.stderr)
            self.assertIn("--strict-modules", self.refuse(LINEAR, "--strict-modules"))

    def test_a_tune_with_a_module_more_than_the_base(self):
        parts = mtp()
        self.give(parts, "a")
        _, out = self.merge_it()
        self.assertEqual({n: out[n] for n in parts}, parts)

    def test_layers_beyond_the_counted_ones_are_a_module(self):
        more = {f"model.layers.2.{n}": f32(*s) for n, s in
                {"eh_proj.weight": (8, 16), "mlp.up_proj.weight": (16, 8)}.items()}
        self.give(more, "base")
        said, out = self.merge_it()
        self.assertEqual({n: out[n] for n in more}, more)
        self.assertIn("no module model.layers.2 (2 tensors)", said.stderr)

    def test_one_tensor_or_a_part_of_a_layer_is_no_module(self):
        for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight",
                     "model.layers.1.input_layernorm.weight"):
            self.give({}, "b", without=[name])
            self.assertIn(f"b has no tensor {name}", self.refuse(TIES))
        self.give({}, "b", without=[n for n in self.plain["b"] if ".1." in n])
        self.assertIn("layers", self.refuse(TIES))
        self.give({}, "b")
        self.give({"model.layers.0.mlp.gate.weight": f32(4, 8)}, "base")
        self.assertIn("model.layers.0.mlp.gate.weight", self.refuse(TIES))

    def test_other_names_for_all_are_no_missing_modules(self):
        self.give({}, "b", rename=lambda name: "strange." + name.replace("layers", "floors.layers"))
        self.assertIn("error", self.refuse(TIES))

    def test_a_tower_under_another_name_is_not_missing(self):
        tower = {"model.visual.blocks.0.w.weight": f32(8, 8), "model.visual.pos.weight": f32(8, 8)}
        self.give(tower, "base", "a")
        self.give({n.replace("blocks", "stages"): t for n, t in tower.items()}, "b")
        self.assertIn("visual", self.refuse(TIES))


class Ahead(Models):
    """Layers for multi-token prediction: as one module, and behind the counted layers."""

    STACK = """slices:
  - sources: [{model: a, layer_range: [0, 1]}]
  - sources: [{model: b, layer_range: [1, 2]}]
merge_method: passthrough
"""
    COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")

    def behind(self):
        return {f"model.layers.2.{n}": f32(*s) for n, s in
                {"eh_proj.weight": (8, 16), "enorm.weight": (8,), "mlp.up_proj.weight": (16, 8)}.items()}

    def counts(self):
        config = json.loads((self.folder / "out" / "config.json").read_text())
        return {key: config[key] for key in self.COUNTS if key in config}

    def left(self):
        receipt = json.loads((self.folder / "out" / "ingot.json").read_text())
        return {u["tensor"]: u["reason"] for u in receipt["unused"]}

    def test_slices_take_the_module_whole_from_the_last(self):
        one, two = mtp(), mtp()
        self.give(one, "a")
        self.give(two, "b")
        for model in "ab":
            self.configure(model, mtp_num_hidden_layers=1)
        said, out = self.merge_it(self.STACK)
        self.assertEqual({n: t for n, t in out.items() if n in one}, two)
        self.assertIn("module mtp for multi-token prediction comes whole from b", said.stderr)
        self.assertEqual(self.counts(), {"mtp_num_hidden_layers": 1})
        self.assertIn("last slice", self.left()["mtp.layers.0.mlp.up_proj.weight"])

    def test_slices_that_end_in_a_model_without_it_have_none_and_say_so(self):
        self.give(mtp() | {"mtp.lm_head.weight": f32(12, 8)}, "a")
        self.configure("a", mtp_num_hidden_layers=1)
        said, out = self.merge_it(self.STACK)
        self.assertEqual([n for n in out if n.startswith("mtp.")], [])
        self.assertIn("module mtp of a is left out", said.stderr)
        self.assertIn("--strict-modules", self.refuse(self.STACK, "--strict-modules"))
        self.assertIn("'mtp_num_hidden_layers' is 1, but the output has no layers", said.stderr)
        self.assertEqual(self.counts(), {"mtp_num_hidden_layers": 0})

    def test_the_count_of_slices_is_that_of_the_model_that_gives_them(self):
        self.give(mtp(), "b")
        self.configure("b", mtp_num_hidden_layers=1)
        said, out = self.merge_it(self.STACK)
        self.assertIn("mtp.fc.weight", out)
        self.assertEqual(self.counts(), {"mtp_num_hidden_layers": 1})
        self.assertIn("'mtp_num_hidden_layers' is missing, but the output has the layers of b", said.stderr)

    def test_the_count_of_a_merge_follows_the_tensors(self):
        for key, parts in (("mtp_num_hidden_layers", mtp()), ("num_nextn_predict_layers", self.behind())):
            for before in ({}, {key: 0}):
                with self.subTest(key, before=before):
                    self.setUp()
                    self.give(parts, "b")
                    self.configure("a", **before)
                    self.configure("b", **{key: 1})
                    said, out = self.merge_it(LINEAR)
                    self.assertEqual({n: out[n] for n in parts}, parts)
                    self.assertEqual(self.counts(), {key: 1})
                    self.assertIn(f"'{key}' is {before.get(key, 'missing')}", said.stderr)

    def test_a_count_that_holds_stays_without_a_word(self):
        self.give(self.behind(), "a")
        self.configure("a", num_nextn_predict_layers=1)
        said, _ = self.merge_it(LINEAR)
        self.assertEqual(self.counts(), {"num_nextn_predict_layers": 1})
        self.assertNotIn("num_nextn_predict_layers", said.stderr)

    def test_slices_of_models_with_and_without_layers_behind(self):
        for owner in "ab":
            self.setUp()
            self.give(self.behind(), owner)
            self.configure(owner, num_nextn_predict_layers=1)
            said, out = self.merge_it(self.STACK)
            self.assertEqual([n for n in out if ".2." in n], [])
            self.assertEqual(self.counts(), {"num_nextn_predict_layers": 0} if owner == "a" else {})


class Tied(Models):
    """Stacks of models without a head of their own."""

    def test_the_head_behind_the_last_layers_is_that_of_the_first_slice(self):
        for model in ("a", "b"):
            self.give({}, model, without=["lm_head.weight"])
            self.configure(model, tie_word_embeddings=True)
        words = "no head of their own, so the embedding of a"
        said, _ = self.merge_it(Ahead.STACK)
        self.assertIn(words, said.stderr)
        said, _ = self.merge_it(Ahead.STACK.replace("model: b", "model: a"), out="one")
        self.assertNotIn(words, said.stderr)
        self.give({}, "b")
        self.configure("b", tie_word_embeddings=False)
        said, out = self.merge_it(Ahead.STACK, out="apart")
        self.assertNotIn(words, said.stderr)
        self.assertEqual(out["lm_head.weight"], self.plain["b"]["lm_head.weight"])


class Forms(Models):
    """Text-only and image-text forms of one model."""

    TOWER = {"visual.blocks.0.attn.weight": (8, 8), "visual.merger.fc.weight": (8, 8)}

    def image_text(self, model, style):
        tower = {n: f32(*s) for n, s in self.TOWER.items()}
        text = {
            "new": lambda n: n.replace("model.", "model.language_model.", 1),
            "old": lambda n: "language_model." + n,
            "odd": lambda n: n.replace("model.", "thinker.text.", 1).replace("lm_head", "thinker.lm_head"),
        }[style]
        prefix = {"new": "model.", "old": "", "odd": "thinker."}[style]
        tower = {prefix + n: t for n, t in tower.items()}
        self.give(tower, model, rename=text)
        config = json.loads((self.folder / model / "config.json").read_text())
        (self.folder / model / "config.json").write_text(json.dumps(
            {"architectures": ["LlamaForConditionalGeneration"], "text_config": config,
             "vision_config": {"depth": 1}}))
        return tower, text

    def test_a_text_only_tune_meets_an_image_text_base_of_every_spelling(self):
        _, alone = self.merge_it(out="alone")
        for style in ("new", "old", "odd"):
            with self.subTest(style):
                self.setUp()
                tower, text = self.image_text("base", style)
                said, out = self.merge_it()
                self.assertEqual(out, {text(n): t for n, t in alone.items()} | tower)
                self.assertIn("two forms of one model", said.stderr)
                self.refuse(TIES, "--strict-modules")

    def test_an_image_text_tune_meets_a_text_only_base_and_leaves_its_tower(self):
        _, alone = self.merge_it(out="alone")
        for style in ("new", "old", "odd"):
            with self.subTest(style):
                self.setUp()
                tower, _ = self.image_text("a", style)
                said, out = self.merge_it()
                self.assertEqual(out, alone)
                self.assertIn("is left out", said.stderr)
                receipt = json.loads((self.folder / "out" / "ingot.json").read_text())
                left = {u["tensor"]: u["reason"] for u in receipt["unused"]}
                self.assertEqual(set(left), set(tower))
                for reason in left.values():
                    self.assertIn("which base and its class lack", reason)

    def test_slices_of_both_forms(self):
        slices = """slices:
  - sources: [{model: a, layer_range: [0, 1]}]
  - sources: [{model: b, layer_range: [1, 2]}]
"""
        _, alone = self.merge_it(slices + "merge_method: passthrough\n", out="alone")
        self.image_text("b", "new")
        _, out = self.merge_it("modules:\n  text_decoder:\n    " + slices.replace("\n ", "\n     ") +
                               "merge_method: passthrough\n")
        self.assertEqual(out, alone)


class Experts(Models):
    """Every layout of experts meets every other: linear merges against the formula."""

    E, F, H = 3, 6, 4

    def banks(self):
        return {r: numbers(self.E, *s) for r, s in
                {"gate": (self.F, self.H), "up": (self.F, self.H), "down": (self.H, self.F)}.items()}

    def biases(self):
        return {r: numbers(self.E, n) for r, n in
                {"gate": self.F, "up": self.F, "down": self.H}.items()}

    def lay(self, layout, w, b=None):
        """Names and arrays of one layer's experts in a layout."""
        at = f"model.layers.0.{'block_sparse_moe' if layout == 'mixtral' else 'mlp'}.experts"
        names = ({"gate": "w1", "up": "w3", "down": "w2"} if layout in ("mixtral", "w-in-mlp")
                 else {r: f"{r}_proj" for r in w})
        if layout in ("apart", "mixtral", "w-in-mlp"):
            return {f"{at}.{e}.{names[r]}.{kind}": bank[r][e] for kind, bank in
                    (("weight", w), ("bias", b)) if bank for r in bank for e in range(self.E)}
        in_turns = lambda x, y: [z for pair in zip(x, y) for z in pair]
        join = in_turns if layout == "oss" else lambda x, y: x + y
        pair, down = [join(w["gate"][e], w["up"][e]) for e in range(self.E)], w["down"]
        if layout in ("oss", "llama4"):
            pair, down = [transposed(m) for m in pair], [transposed(m) for m in down]
        out = {f"{at}.gate_up_proj": pair, f"{at}.down_proj": down}
        if b:
            out |= {f"{at}.gate_up_proj_bias": [join(b["gate"][e], b["up"][e]) for e in range(self.E)],
                    f"{at}.down_proj_bias": b["down"]}
        return out

    def put(self, model, layout, w, b=None, without=()):
        """A model whose first layer has experts."""
        moe = "block_sparse_moe" if layout == "mixtral" else "mlp"
        experts = {n: pack(x) for n, x in self.lay(layout, w, b).items() if n not in without}
        self.give(experts | {f"model.layers.0.{moe}.gate.weight": f32(3, 4)}, model,
                  without=[n for n in self.weights if ".0.mlp." in n])
        self.configure(model, architectures=[{"oss": "GptOssForCausalLM", "llama4": "Llama4ForCausalLM"}
                                             .get(layout, "MixtralForCausalLM")])

    def test_every_pair_of_layouts(self):
        layouts = ("apart", "mixtral", "w-in-mlp", "together", "llama4", "oss")
        mix = lambda x, y: ([mix(i, j) for i, j in zip(x, y)] if isinstance(x, list)
                            else 0.25 * x + 0.75 * y)
        for bias in (False, True):
            one, two = self.banks(), self.banks()
            side = (self.biases(), self.biases()) if bias else (None, None)
            for first in layouts:
                for second in layouts:
                    with self.subTest(first=first, second=second, bias=bias):
                        self.put("a", first, one, side[0])
                        self.put("b", second, two, side[1])
                        said = self.linear("--allow-crimes", "--force", recipe=LINEAR)
                        out = read(self.folder / "out" / "model.safetensors")
                        truth = self.lay(first, {r: mix(one[r], two[r]) for r in one},
                                         {r: mix(side[0][r], side[1][r]) for r in side[0]} if bias else None)
                        for name, expected in truth.items():
                            self.assert_close(values(out[name]), flat(expected), name)
                        self.assertEqual([n for n in out if "experts" in n and n not in truth], [])
                        same = first == second or {first, second} == {"mixtral", "w-in-mlp"}
                        self.assertEqual("ingot reads them in the form of a" in said.stderr, not same)
                        if first in ("together", "mixtral"):
                            self.verify()

    def test_the_receipt_says_what_a_tensor_was_put_together_of_and_verify_holds_it_to_that(self):
        one, two = self.banks(), self.banks()
        self.put("a", "together", one)
        self.put("b", "apart", two)
        self.merge_it(LINEAR)
        at = "model.layers.0.mlp.experts"
        entry = self.entry(f"{at}.gate_up_proj")
        self.assertEqual(entry["sources"][1]["arranged"],
                         f"{at}.0.gate_proj.weight to {at}.2.up_proj.weight")
        self.assertNotIn("arranged", entry["sources"][0])
        # Another value of one expert is another input.
        two["up"][2][5][3] += 1
        self.put("b", "apart", two)
        said = self.run_fails(DIFFERS, "verify", self.folder / "out", "--root", self.folder)
        self.assertIn(f"{at}.gate_up_proj of b", said.stdout + said.stderr)

    def test_a_donor_with_layers_of_two_layouts_has_one_in_the_output(self):
        sole = self.banks()
        self.put("a", "together", sole)
        second = self.banks()
        more = {n.replace("layers.0", "layers.1"): pack(x) for n, x in self.lay("apart", second).items()}
        self.give(read(self.folder / "a" / "model.safetensors") | more, "a",
                  without=[n for n in self.weights if ".mlp." in n])
        self.put("b", "apart", self.banks())
        more = {n.replace("layers.0", "layers.1"): pack(x) for n, x in self.lay("apart", second).items()}
        self.give(read(self.folder / "b" / "model.safetensors") | more, "b",
                  without=[n for n in self.weights if ".mlp." in n])
        said, out = self.merge_it(LINEAR)
        self.assertIn("a stores the experts of some layers", said.stderr)
        truth = {n.replace("layers.0", "layers.1"): x for n, x in self.lay("together", second).items()}
        for name, expected in truth.items():
            self.assert_close(values(out[name]), flat(expected), name)
        self.assertEqual([n for n in out if ".experts.0." in n], [])

    def test_a_model_without_one_of_its_experts_is_refused(self):
        self.put("a", "together", self.banks())
        self.put("b", "apart", self.banks(),
                 without=["model.layers.0.mlp.experts.1.up_proj.weight"])
        self.assertIn("experts", self.refuse(LINEAR))


if __name__ == "__main__":
    unittest.main()

"""What a model's folder may look like: which weights count, and which files go along."""

import json
import shutil
import struct
import unittest

from program import EXAMPLES, INPUT, Case, bytes_of

LINEAR = """\
models:
  - model: a
    parameters: {weight: 0.5}
  - model: b
    parameters: {weight: 0.5}
merge_method: linear
"""
OUT = "out"


def read(path):
    """The tensors of a safetensors file: name to (dtype, shape, bytes)."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], data[8 + size + t["data_offsets"][0]:
                                                8 + size + t["data_offsets"][1]])
            for name, t in header.items()}


def write(path, tensors):
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


class Folder(Case):
    def setUp(self):
        super().setUp()
        for name, of in (("a", "python"), ("b", "c")):
            shutil.copytree(EXAMPLES / "models" / of, self.folder / name)
        self.weights = read(self.folder / "a" / "model.safetensors")

    def linear(self, *words, out=OUT, recipe=LINEAR):
        path = self.write("recipe.yml", recipe)
        return self.run_ok("merge", path, self.folder / out, "--root", self.folder, *words)

    def verify(self, out=OUT):
        return self.run_ok("verify", self.folder / out, "--root", self.folder)

    def index(self, places):
        (self.folder / "a" / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": places}))

    def split(self, first="model-00001-of-00002.safetensors",
              second="model-00002-of-00002.safetensors"):
        """Model a in two shards, without its single file."""
        names = sorted(self.weights)
        half = len(names) // 2
        write(self.folder / "a" / first, {n: self.weights[n] for n in names[:half]})
        write(self.folder / "a" / second, {n: self.weights[n] for n in names[half:]})
        self.index({n: first if n in names[:half] else second for n in names})
        return first, second, names[0]


class Weights(Folder):
    def test_of_an_index_and_the_file_of_its_name_the_option_chooses(self):
        self.linear(out="plain")
        plain = read(self.folder / "plain" / "model.safetensors")
        self.split()
        write(self.folder / "a" / "model.safetensors",
              {n: (d, s, bytes(len(b))) for n, (d, s, b) in self.weights.items()})
        recipe = self.write("recipe.yml", LINEAR)
        said = self.run_fails(INPUT, "merge", recipe, self.folder / OUT, "--root", self.folder)
        for word in ("model.safetensors.index.json and model.safetensors", "--prefer index"):
            self.assertIn(word, said.stderr)
        self.linear("--prefer", "index")
        self.assertEqual(read(self.folder / OUT / "model.safetensors"), plain)
        receipt = json.loads((self.folder / OUT / "ingot.json").read_text())
        self.assertEqual(receipt["options"]["prefer"], "index")
        self.verify()
        self.linear("--prefer", "file", out="file")
        self.assertNotEqual(read(self.folder / "file" / "model.safetensors"), plain)
        self.verify("file")

    def test_an_option_that_chose_nothing_is_not_in_the_receipt(self):
        self.linear("--prefer", "file")
        receipt = json.loads((self.folder / OUT / "ingot.json").read_text())
        self.assertNotIn("prefer", receipt["options"])

    def test_an_index_whose_shards_are_gone_gives_way_with_a_warning(self):
        self.linear(out="plain")
        self.index({n: "model-00001-of-00001.safetensors" for n in self.weights})
        said = self.linear()
        self.assertIn("'model-00001-of-00001.safetensors', which is not there", said.stderr)
        self.assertEqual(read(self.folder / OUT / "model.safetensors"),
                         read(self.folder / "plain" / "model.safetensors"))
        self.verify()

    def test_the_index_decides_about_a_stale_tensor_in_another_shard(self):
        self.linear(out="plain")
        (self.folder / "a" / "model.safetensors").unlink()
        _, second, name = self.split()
        path = self.folder / "a" / second
        dtype, shape, data = self.weights[name]
        write(path, read(path) | {name: (dtype, shape, bytes(len(data)))})
        said = self.linear()
        self.assertIn(f"stale tensor was skipped: '{name}' in {second}", said.stderr)
        self.assertEqual(read(self.folder / OUT / "model.safetensors"),
                         read(self.folder / "plain" / "model.safetensors"))
        self.verify()

    def test_shards_in_a_folder_below(self):
        self.linear(out="plain")
        (self.folder / "a" / "model.safetensors").unlink()
        self.split("parts/one.safetensors", "parts/two.safetensors")
        self.linear()
        self.assertEqual(read(self.folder / OUT / "model.safetensors"),
                         read(self.folder / "plain" / "model.safetensors"))
        self.verify()

    def test_types_without_arithmetic_are_inspected_and_copied(self):
        for dtype in ("F8_E4M3FNUZ", "F8_E5M2FNUZ"):
            weights = dict(self.weights, extra=(dtype, [4], b"\x01\x02\x03\x80"))
            write(self.folder / "a" / "model.safetensors", weights)
            self.assertIn(dtype.lower().replace("f8", "float8"), self.run_ok("inspect", self.folder / "a").stdout)
            self.linear("--force", recipe="models: [{model: a}]\nmerge_method: passthrough\n")
            self.assertEqual(read(self.folder / OUT / "model.safetensors")["extra"],
                             weights["extra"])
            self.verify()
            write(self.folder / "b" / "model.safetensors", weights)
            recipe = self.write("recipe.yml", LINEAR)
            said = self.run_fails(INPUT, "plan", recipe, "--root", self.folder)
            self.assertIn("tensor extra is stored in", said.stdout + said.stderr)


class Companions(Folder):
    def put(self, path, text, model="a"):
        at = self.folder / model / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)

    def test_folders_that_the_model_names_travel_and_are_verified(self):
        self.put("modules.json", json.dumps([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "x"},
            {"idx": 2, "name": "2", "path": "more/2_Dense/", "type": "x"},
            {"idx": 3, "name": "3", "path": "../b", "type": "x"},
            {"idx": 4, "name": "4", "path": "not-there", "type": "x"}]))
        self.put("1_Pooling/config.json", "{}")
        self.put("more/2_Dense/config.json", "{}")
        write(self.folder / "a/more/2_Dense/model.safetensors", {"w": ("F32", [1], bytes(4))})
        self.put("processor/preprocessor_config.json", "{}")
        self.put("additional_chat_templates/tools.jinja", "x")
        self.put("modeling_a.py", "from .parts.layers import Layer\nfrom . import plain, rope\n")
        self.put("parts/__init__.py", "")
        self.put("parts/layers.py", "from ..shared import core  # comment\n")
        self.put("shared/core.py", "")
        self.put("rope/__init__.py", "")
        self.put("stray/settings.json", "{}")
        said = self.linear()
        here = set(bytes_of(self.folder / OUT))
        expected = {"1_Pooling/config.json", "more/2_Dense/config.json",
                    "more/2_Dense/model.safetensors", "processor/preprocessor_config.json",
                    "additional_chat_templates/tools.jinja", "parts/__init__.py",
                    "parts/layers.py", "shared/core.py", "rope/__init__.py", "modeling_a.py"}
        self.assertLessEqual(expected, here)
        self.assertFalse([name for name in here if name.startswith(("stray", ".."))])
        self.assertIn("stray was left out", said.stderr)
        self.assertIn("2_Dense/model.safetensors is copied as it is", said.stderr)
        self.assertIn("parts/layers.py of a", said.stderr)  # code is named as such
        files = {f["file"]: f for f in
                 json.loads((self.folder / OUT / "ingot.json").read_text())["files"]}
        for name in expected:
            self.assertEqual((files[name]["origin"], files[name]["model"]), ("copied", "a"))
        self.verify()
        # What verify refuses: another byte, a missing file, one too many.
        (self.folder / OUT / "1_Pooling/config.json").write_text("{ }")
        (self.folder / OUT / "parts/layers.py").unlink()
        (self.folder / OUT / "parts/more.py").write_text("")
        said = self.run_fails(1, "verify", self.folder / OUT, "--root", self.folder)
        for name in ("1_Pooling/config.json", "parts/layers.py", "parts/more.py"):
            self.assertIn(name, said.stdout + said.stderr)

    def test_only_files_of_known_kinds_travel(self):
        """Wherever the weights are: in a model's folder, in a folder of other things, in a named folder."""
        strange = ("id_rsa", "server.pem", "credentials.json", "secrets.txt", "notes.yaml", "data.csv",
                   "tokenizer_backup.bak", "my_config.json")
        for name in strange + (".env",):
            self.put(name, "secret")
        self.put("modules.json", '[{"path": "1_Pooling"}]')
        self.put("1_Pooling/config.json", "{}")
        self.put("1_Pooling/id_rsa", "secret")
        self.put("LICENSE.txt", "x")
        self.put("modeling_a.py", "")
        for name in ("a", "a/model.safetensors"):
            for configured in (True, False):
                with self.subTest(name=name, configured=configured):
                    shutil.rmtree(self.folder / OUT, ignore_errors=True)
                    if not configured and (self.folder / "a/config.json").exists():
                        (self.folder / "a/config.json").rename(self.folder / "config.json")
                    if configured and (self.folder / "config.json").exists():
                        (self.folder / "config.json").rename(self.folder / "a/config.json")
                    said = self.linear(recipe=LINEAR.replace("model: a\n", f"model: {name}\n"))
                    here = set(bytes_of(self.folder / OUT))
                    self.assertLessEqual({"tokenizer.json", "generation_config.json", "LICENSE.txt"}, here)
                    self.assertEqual("modeling_a.py" in here, configured)
                    self.assertFalse(here & (set(strange) | {".env", "1_Pooling/id_rsa"}))
                    self.assertRegex(said.stderr, "was left out: it is not a kind of file that loaders read "
                                                  r"with a model; .* \(and [0-9]+ more like it\)")
                    self.verify()

    def test_that_say_something_else_in_another_model_are_named(self):
        def put(name, a, b):
            for model, value in (("a", a), ("b", b)):
                self.put(name, value if isinstance(value, str) else json.dumps(value), model)

        put("modules.json", [{"path": "1_Pooling"}], [{"path": "1_Pooling"}, {"path": "2_Normalize"}])
        put("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
        put("preprocessor_config.json", {"size": {"height": 224}, "image_mean": [0.5], "image_processor_type": "A"},
            {"size": {"height": 336}, "image_mean": [0.5], "image_processor_type": "B"})
        put("processor_config.json", {"image_seq_length": 4, "processor_class": "A"},
            {"image_seq_length": 4.0, "processor_class": "B", "only_here": 1})
        put("generation_config.json", {"eos_token_id": 2, "temperature": 1}, {"eos_token_id": [2, 3], "temperature": 2})
        put("tokenizer_config.json", {"eos_token": "</s>", "pad_token": "a", "add_bos_token": True},
            {"eos_token": {"content": "</s>"}, "pad_token": "b", "add_bos_token": False})
        put("chat_template.jinja", "{{ a }}", "{{ b }}")
        rows = self.weights["model.embed_tokens.weight"][1][0]
        tokens = {f"t{i}": i for i in range(2, rows)}
        put("vocab.json", tokens | {"x": 0, "y": 1, "no row": rows}, tokens | {"y": 0, "x": 1, "none": rows})
        for model in "ab":
            (self.folder / model / "tokenizer.json").unlink(missing_ok=True)
        said = self.linear("--dry-run").stderr
        for text in ("modules.json: it has 1 entries in a and 2 entries in b; the output has the file of a",
                     "1_Pooling/config.json: pooling_mode_cls_token is true in a and false in b (and 1 more)",
                     "preprocessor_config.json: size.height is 224 in a and 336 in b; ",
                     "generation_config.json: eos_token_id is 2 in a and [2,3] in b; ",
                     "tokenizer_config.json: add_bos_token is true in a and false in b; ",
                     "the chat templates of a and b differ; the output has that of a",
                     "the tokenizers of a and b differ: id 0 is 'x' in a and 'y' in b (and 1 more)"):
            self.assertIn(text, said)
        self.assertNotIn("processor_config.json: image_seq", said)
        ordered = self.linear("--dry-run", recipe=LINEAR + "chat_template: chatml\n").stderr
        self.assertNotIn("chat templates of", ordered)
        for name in ("1_Pooling/config.json", "chat_template.jinja", "vocab.json"):
            shutil.copy(self.folder / "a" / name, self.folder / "b" / name)
        said = self.linear("--dry-run").stderr
        for text in ("1_Pooling", "chat templates", "the tokenizers"):
            self.assertNotIn(text, said)
        self.put("preprocessor_config.json", "{", "b")  # a file that the output does not have
        self.linear()
        self.verify()

    def test_files_that_code_or_settings_name_travel(self):
        self.put("modeling_a.py", 'table = json.load(open(os.path.join(here, "phonemes.json")))')
        self.put("processor_config.json", '{"voices": "voices.tsv"}')
        for name in ("phonemes.json", "voices.tsv", "others.json"):
            self.put(name, "{}")
        self.linear()
        here = set(bytes_of(self.folder / OUT))
        self.assertLessEqual({"phonemes.json", "voices.tsv"}, here)
        self.assertNotIn("others.json", here)

    def test_a_folder_with_folders_is_replaced_and_resumed_as_any_other(self):
        self.put("modules.json", '[{"path": "1_Pooling"}]')
        self.put("1_Pooling/config.json", "{}")
        self.linear()
        before = bytes_of(self.folder / OUT)
        self.linear("--force")
        self.assertEqual(bytes_of(self.folder / OUT), before)
        self.linear("--resume")
        self.assertEqual(bytes_of(self.folder / OUT), before)

    def test_a_link_that_leads_out_of_the_model_is_an_error(self):
        self.put("modules.json", '[{"path": "1_Pooling"}]')
        (self.folder / "a" / "1_Pooling").symlink_to(self.folder / "b")
        recipe = self.write("recipe.yml", LINEAR)
        said = self.run_fails(INPUT, "merge", recipe, self.folder / OUT, "--root", self.folder)
        self.assertIn("a/1_Pooling", said.stderr)
        self.assertIn("is a link", said.stderr)


if __name__ == "__main__":
    unittest.main()

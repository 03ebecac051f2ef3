"""The model card of every kind of folder, from the command line."""

import json
import re
import shutil
import unittest

from program import EXAMPLES, TIES, Case

BASE = EXAMPLES / "models" / "base"
ADAPTERS = EXAMPLES / "adapters"


class Card(Case):
    def card(self, out="out"):
        text = (self.folder / out / "README.md").read_text()
        head, body = text.removeprefix("---\n").split("\n---\n", 1)
        return head, body

    def test_a_bake_speaks_of_adapters(self):
        out = self.folder / "out"
        self.run_ok("bake", BASE, f"{ADAPTERS}/c-lora:0.5", ADAPTERS / "python-dora", "-o", out)
        _, body = self.card()
        self.assertIn("with 2 adapters in its weights", body)
        self.assertIn("| c-lora | 0.5 |", body)
        self.assertIn("ingot bake base c-lora:0.5 python-dora -o out --root DIR", body)
        self.assertNotIn("passthrough", body.split("## Recipe")[0])
        self.run_ok("verify", out)

    def test_adapters_have_cards_for_peft(self):
        for words in (("adapter", "merge", ADAPTERS / "c-lora", ADAPTERS / "python-lora"),
                      ("extract", BASE, EXAMPLES / "models" / "c", "--rank", "2")):
            with self.subTest(words=words[0]):
                out = self.folder / words[0]
                self.run_ok(*words, "-o", out)
                head, body = self.card(words[0])
                self.assertIn("library_name: peft\ntags:\n- ingot\n- lora", head)
                self.assertIn(f"# {words[0]}\n", body)
                self.run_ok("verify", out)

    def test_no_card_names_folders_of_this_machine(self):
        tuned = EXAMPLES / "models" / "c"
        recipe = (f"merge_method: linear\nmodels:\n- model: {BASE}\n  parameters: {{weight: 1}}\n"
                  f"- model: {tuned}+{ADAPTERS}/c-lora\n  parameters: {{weight: 1}}\n")
        for model in (BASE, tuned):
            self.assertFalse((model / "README.md").exists())
        licences = {}
        for name, licence in (("one", "mit"), ("two", "apache-2.0")):  # their differences are in the card
            licences[name] = self.folder / "models" / name
            shutil.copytree(tuned, licences[name])
            (licences[name] / "README.md").write_text(f"---\nlicense: {licence}\npipeline_tag: {name}\n---\n")
        for words in (("merge", self.write("r.yml", recipe), self.folder / "0"),
                      ("merge", self.write("s.yml", recipe.replace(str(BASE), str(licences["one"]))
                                           .replace(str(tuned), str(licences["two"]))), self.folder / "1"),
                      ("bake", BASE, ADAPTERS / "c-lora", "-o", self.folder / "2"),
                      ("adapter", "merge", ADAPTERS / "c-lora", ADAPTERS / "python-lora", "-o", self.folder / "3"),
                      ("extract", BASE, tuned, "--rank", "2", "-o", self.folder / "4")):
            self.run_ok(*words, "--root", self.folder)
            head, body = self.card(words[-1].name if words[0] != "merge" else words[2].name)
            self.assertNotIn(str(EXAMPLES), head + body)
            self.assertNotIn(str(self.folder), head + body)
            self.assertNotIn("/", head)
            self.assertIn("--root DIR", body)
        self.assertIn("c+c-lora", (self.folder / "0" / "README.md").read_text().split("## Recipe")[1])

    def test_the_base_model_is_a_name_on_the_hub(self):
        """One of them knows it; a folder of a trainer's machine is none."""
        cases = (("/home/me/llama", "owner/llama", ["owner/llama"]), ("base", "gpt2", None),
                 ("/x/hub/models--owner--one/snapshots/0a", "base", ["owner/one"]))
        for number, (first, second, expected) in enumerate(cases):
            for name, base in (("a", first), ("b", second)):
                adapter = self.folder / str(number) / name
                shutil.copytree(ADAPTERS / "c-lora", adapter)
                path = adapter / "adapter_config.json"
                path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
            out = self.folder / f"out{number}"
            self.run_ok("adapter", "merge", self.folder / str(number) / "a", self.folder / str(number) / "b", "-o", out)
            head, body = self.card(out.name)
            self.assertEqual(re.findall(r"^base_model:\n- (.*)$", head, re.M) or None, expected)
            self.assertNotIn("/home/me", body)
            self.assertNotIn("/x/hub", body)

    def test_the_title_is_the_folders_name_and_a_renamed_folder_verifies(self):
        self.merge(TIES, "first")
        self.assertTrue(self.card("first")[1].startswith("# first\n"))
        shutil.move(self.folder / "first", self.folder / "second")
        self.run_ok("verify", self.folder / "second", "--root", EXAMPLES)

    def test_a_changed_title_is_found(self):
        self.merge(TIES, "out")
        path = self.folder / "out" / "README.md"
        path.write_text(path.read_text().replace("# out\n", "# Out\n"))
        self.run_fails(1, "verify", self.folder / "out", "--root", EXAMPLES)

    def test_the_command_makes_the_same_folder_again(self):
        self.merge(TIES.replace("ties", "dare_ties"), "out", "--seed", "9", "--dtype", "float32")
        command = self.card()[1].split("```sh\n")[1].split("\n```")[0].split()
        self.assertEqual(command[:3], ["ingot", "merge", "recipe.yml"])
        again = self.folder / "again" / command[3]
        again.parent.mkdir()
        self.assertEqual(command[-2:], ["--root", "DIR"])
        self.run_ok("merge", self.folder / "out" / "recipe.yml", again, "--root", EXAMPLES, *command[4:-2])
        for name in ("model.safetensors", "README.md", "ingot.json"):
            self.assertEqual((self.folder / "out" / name).read_bytes(), (again / name).read_bytes(), name)


if __name__ == "__main__":
    unittest.main()

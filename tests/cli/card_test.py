"""The model card of every kind of folder, from the command line."""

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
        self.assertIn(f"| {ADAPTERS}/c-lora | 0.5 |", body)
        self.assertIn(f"ingot bake {BASE} {ADAPTERS}/c-lora:0.5 {ADAPTERS}/python-dora -o out", body)
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
        self.run_ok("merge", self.folder / "out" / "recipe.yml", again, "--root", EXAMPLES, *command[4:])
        for name in ("model.safetensors", "README.md", "ingot.json"):
            self.assertEqual((self.folder / "out" / name).read_bytes(), (again / name).read_bytes(), name)


if __name__ == "__main__":
    unittest.main()

"""ingot adapter merge and ingot extract from outside."""

import json
import shutil
import unittest

from program import EXAMPLES, Case

MODELS, ADAPTERS = EXAMPLES / "models", EXAMPLES / "adapters"


class Decompositions(Case):
    def extract(self, *words):
        return self.run_ok("extract", MODELS / "base", MODELS / "c", "--rank", "5", "-o", self.folder / "out",
                           "--no-sync", *words)

    def fuse(self, kind, *words):
        return self.run_ok("adapter", "merge", ADAPTERS / "c-lora", ADAPTERS / "prose-lora", "--type", kind, "-o",
                           self.folder / "out", "--no-sync", *words)

    def rules(self):
        return self.json("plan", self.folder / "out" / "recipe.yml", "--no-probe")["rules"]

    def test_extraction_tells_what_it_misses_of_each_kind_of_module(self):
        out = self.extract().stdout
        self.assertRegex(out, r"14 modules decomposed; the factors miss \d+\.\d{3} % of the change in them\n")
        self.assertRegex(out, r"layers\.\*\.mlp\.down_proj +2 +\d+\.\d{3} % +\d+\.\d{3} %  "
                              r"model\.layers\.[01]\.mlp\.down_proj\n")

    def test_extraction_of_what_equals_the_base_says_so(self):
        same = self.folder / "same"
        shutil.copytree(EXAMPLES / "models/base", same)
        for ranks in (["--rank", "4"], ["--rank", "auto", "--energy", "0.9"]):
            done = self.run_ok("extract", EXAMPLES / "models/base", same, *ranks, "-o", self.folder / "out", "--force", "--json")
            self.assertIn("nothing differs between", done.stderr)
            self.assertTrue(any("nothing differs" in w for w in json.loads(done.stdout)["warnings"]))
            self.run_ok("verify", self.folder / "out")
        done = self.run_ok("extract", EXAMPLES / "models/base", EXAMPLES / "models/c", "--rank", "4", "-o", self.folder / "out", "--force")
        self.assertNotIn("nothing differs", done.stderr)

    def test_errors_of_rounded_factors_are_those_before_their_rounding(self):
        out = self.extract("--dtype", "bfloat16").stdout
        self.assertIn("14 modules decomposed; the factors, before their rounding to BF16, miss ", out)

    def test_json_has_every_module_and_adds_up(self):
        report = json.loads(self.extract("--json").stdout)["decompositions"]
        self.assertEqual(len(report["modules"]), 14)
        self.assertEqual(sum(kind["modules"] for kind in report["kinds"]), 14)
        for part in ("norm", "error"):
            squares = sum(module[part] ** 2 for module in report["modules"])
            self.assertAlmostEqual(squares ** 0.5, report[part], places=9)
        by_name = {module["module"]: module["relative_error"] for module in report["modules"]}
        for kind in report["kinds"]:
            self.assertEqual(by_name[kind["worst_module"]], kind["worst"])
            self.assertLessEqual(kind["mean"], kind["worst"])

    def test_merges_of_adapters_report_where_they_decompose(self):
        self.assertIn("8 modules decomposed", self.fuse("svd", "--rank", "4").stdout)
        self.assertNotIn("decomposed", self.fuse("cat", "--force").stdout)

    def config(self):
        return json.loads((self.folder / "out" / "adapter_config.json").read_text())

    def weights(self):
        """Names of the weight file to shapes."""
        with open(self.folder / "out" / "adapter_model.safetensors", "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}

    def test_cat_tells_the_ranks_and_what_vllm_needs(self):
        out = self.fuse("cat").stdout
        self.assertIn("rank 16 (8 + 8)\n", out)
        self.assertNotIn("--max-lora-rank", out)
        out = self.run_ok("adapter", "merge", ADAPTERS / "c-lora", ADAPTERS / "c-lora-r16", "-o", self.folder / "out",
                          "--no-sync", "--force").stdout
        self.assertIn("rank 24 (8 + 16)\n", out)
        self.assertIn("vLLM loads ranks up to 16 unless it is started with --max-lora-rank 32\n", out)

    def test_the_default_says_for_whom_it_is(self):
        self.assertIn("for PEFT: vLLM and llama.cpp load no modules_to_save; --for vllm", self.extract().stdout)
        self.assertTrue(self.config()["modules_to_save"])

    def test_servers_get_factors_of_linear_layers_alone(self):
        for reader in ("vllm", "llama.cpp"):
            done = self.extract("--for", reader, "--force", "--json")
            report = json.loads(done.stdout)["decompositions"]
            left = {entry["what"] for entry in report["left_out"]}
            self.assertEqual(left, {"norms", "embeddings and heads"})
            whole = sum(entry["norm"] ** 2 for entry in report["left_out"]) + report["norm"] ** 2
            self.assertAlmostEqual(whole ** 0.5, report["change"], places=6)
            self.assertIsNone(self.config()["modules_to_save"])
            self.assertEqual(self.config()["bias"], "none")
            for name in self.weights():
                self.assertRegex(name, r"layers\.\d\.(mlp|self_attn)\.\w+\.lora_[AB]\.weight$")
            self.run_ok("verify", self.folder / "out", "--all")
        said = self.extract("--for", "vllm", "--force")
        self.assertRegex(said.stdout, r"left out: .*norms \(\d+ tensors, [\d.]+ % of the change\)")
        share = 100 * sum(entry["norm"] ** 2 for entry in report["left_out"]) / report["change"] ** 2
        self.assertIn(f"warning: the adapter leaves out {share:.1f} % of the energy (squared norm) of the change, "
                      "which is in embeddings and heads, norms: vllm loads no adapter with them, --for peft keeps",
                      said.stderr)
        self.assertNotIn("leaves out", self.extract("--force").stderr)

    def test_llama_cpp_gets_one_rank(self):
        ranks = ["--rank", "auto", "--energy", "0.6"]
        self.run_ok("extract", MODELS / "base", MODELS / "c", *ranks, "-o", self.folder / "out", "--no-sync")
        self.assertGreater(len({shape[0] for name, shape in self.weights().items() if "lora_A" in name}), 1)
        self.run_ok("extract", MODELS / "base", MODELS / "c", *ranks, "--for", "llama.cpp", "-o", self.folder / "out",
                    "--no-sync", "--force")
        self.assertEqual({shape[0] for name, shape in self.weights().items() if "lora_A" in name},
                         {self.config()["r"]})
        self.assertEqual((self.config()["rank_pattern"], self.config()["alpha_pattern"]), ({}, {}))
        self.run_ok("verify", self.folder / "out", "--all")

    def test_bytes_are_those_of_the_whole_file(self):
        file = self.folder / "out" / "adapter_model.safetensors"
        for reader, size in (("peft", 200_000), ("vllm", 60_000), ("llama.cpp", 60_000)):
            self.run_ok("extract", MODELS / "base", MODELS / "c", "--bytes", str(size), "--for", reader, "-o",
                        self.folder / "out", "--no-sync", "--force")
            self.assertLessEqual(file.stat().st_size, size)
            self.assertGreater(file.stat().st_size, 0.8 * size)
            self.run_ok("verify", self.folder / "out", "--all")
        done = self.run_fails(2, "extract", MODELS / "base", MODELS / "c", "--bytes", "20000", "-o", self.folder / "out",
                             "--no-sync", "--force")
        self.assertIn("skip whole tensors", done.stderr)

    def test_merges_for_servers_refuse_what_servers_do_not_load(self):
        done = self.run_fails(2, "adapter", "merge", ADAPTERS / "python-dora", "--for", "vllm", "-o", self.folder / "out")
        self.assertIn("magnitudes of DoRA, which vLLM does not load", done.stderr)
        self.fuse("cat", "--for", "vllm")

    def test_plan_names_the_work(self):
        self.extract()
        self.assertEqual(self.rules()["extract: factor of the difference"], 28)
        self.fuse("svd", "--force")
        self.assertEqual(self.rules(), {"svd: factor of the low-rank sum": 16})
        self.fuse("ties_svd", "--density", "0.5", "--force")
        self.assertEqual(self.rules(), {"ties_svd: factor of the combined updates": 16})
        self.fuse("cat", "--force")
        self.assertEqual(self.rules(), {"cat: rows": 8, "cat: columns": 8})


if __name__ == "__main__":
    unittest.main()

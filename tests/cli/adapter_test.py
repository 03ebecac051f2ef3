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

    def test_extraction_tells_what_each_kind_of_module_leaves(self):
        out = self.extract().stdout
        self.assertIn("14 modules decomposed; the factors leave ", out)
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
        self.assertIn("14 modules decomposed; the factors, before their rounding to BF16, leave ", out)

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

"""The documents against the program, the sources and each other."""

import importlib.machinery
import importlib.util
import re
import unittest

from program import PROGRAM, SOURCE, Case

DOCS = [SOURCE / "README.md", SOURCE / "CONTRIBUTING.md", SOURCE / "bench" / "README.md",
        *sorted((SOURCE / "docs").glob("*.md"))]


def load(path):
    """A Python program of the tree as a module."""
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(path.stem, loader))
    loader.exec_module(module)
    return module


def prose(text):
    """Markdown without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


class Samples(Case):
    def test_print_what_the_documents_show(self):
        samples = load(SOURCE / "tools" / "samples")
        count = 0
        for document in samples.documents():
            found, wrong = samples.check(document, PROGRAM, False)
            count += found
            self.assertEqual(wrong, [], "tools/samples --update renews them")
        self.assertGreater(count, 5)

    def test_are_compared_but_for_what_varies(self):
        samples = load(SOURCE / "tools" / "samples")
        same = ["wrote a: 3 tensors", "0.08 s, 20.0 MB/s (storage rate not measured), peak memory 15 MiB"]
        self.assertIsNone(samples.compare(same, ["wrote a: 3 tensors", "1.5 s, 1.2 GB/s (92 % of the storage's "
                                                 "2.0 GB/s), peak memory 9.5 GiB"]))
        self.assertIsNotNone(samples.compare(same, ["wrote a: 4 tensors", same[1]]))
        self.assertIsNotNone(samples.compare(same, same[:1]))
        self.assertIsNone(samples.compare(["a", "…", "z"], ["a", "b", "c", "z"]))
        self.assertIsNotNone(samples.compare(["a", "…", "z"], ["a", "b", "c"]))
        self.assertIsNone(samples.compare(["x 12.345 %"], ["x 12.350 %"]))
        self.assertIsNotNone(samples.compare(["x 12.345 %"], ["x 13.345 %"]))
        self.assertEqual(samples.renewed(["a", "…", "z"], ["A", "b", "c", "z"]), ["A", "…", "z"])


class Links(unittest.TestCase):
    def anchors(self, path):
        """The names that GitHub gives the headings of a document."""
        heads = re.findall(r"^#+ +(.*)$", prose(path.read_text()), re.M)
        return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}

    def test_lead_to_files_and_headings(self):
        count = 0
        for document in DOCS:
            for target in re.findall(r"\]\(([^)\s]+)\)", prose(document.read_text())):
                if re.match(r"\w+:", target):
                    continue
                path, _, anchor = target.partition("#")
                file = (document.parent / path).resolve() if path else document
                with self.subTest(document=document.name, target=target):
                    self.assertTrue(file.exists())
                    if anchor and file.suffix == ".md":
                        self.assertIn(anchor, self.anchors(file))
                count += 1
        self.assertGreater(count, 30)


if __name__ == "__main__":
    unittest.main()

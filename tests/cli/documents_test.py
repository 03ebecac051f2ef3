"""The documents against the program, the sources and each other."""

import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
import unittest
import xml.dom.minidom

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

    def test_the_index_has_every_document(self):
        index = (SOURCE / "docs" / "README.md").read_text()
        for document in DOCS:
            if document.parent.name == "docs" and document.name != "README.md":
                self.assertIn(f"]({document.name})", index)
        self.assertTrue("](docs/README.md)" in (SOURCE / "README.md").read_text())


class Glossary(unittest.TestCase):
    def test_terms_are_sorted_and_stand_where_it_says(self):
        page = SOURCE / "docs" / "glossary.md"
        seen = []
        for part in page.read_text().split("\n## ")[1:]:
            terms = [row[0] for row in rows(part)]
            self.assertEqual(terms, sorted(terms, key=lambda term: term.lower().strip("(")))
            seen += terms
            for row in rows(part):
                self.assertEqual(len(row), 3, row)
                self.assertRegex(row[1], r"^[A-Z0-9`(].*\.$")
                target = re.search(r"\]\(([^)#]+)", row[2])
                file = (page.parent / target.group(1)).resolve() if target else SOURCE / code(row[2])[0]
                text = file.read_text().lower().replace("_", " ")
                self.assertTrue(any(word in text for word in row[0].lower().split(", ")), f"{file} lacks {row[0]}")
        self.assertEqual(len(seen), len(set(seen)))
        self.assertGreater(len(seen), 50)


class Library(unittest.TestCase):
    def test_page_shows_the_example_that_is_tested(self):
        shown = re.findall(r"^```\w*\n(.*?)^```", (SOURCE / "docs" / "library.md").read_text(), re.M | re.S)
        for name in ("merge.cpp", "CMakeLists.txt"):
            self.assertIn((SOURCE / "examples" / "cpp" / name).read_text(), shown, "the page copies examples/cpp")


class Pictures(unittest.TestCase):
    def test_are_what_their_script_draws(self):
        script = SOURCE / "tools" / "pictures"
        done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        shown = "".join(document.read_text() for document in DOCS)
        names = sorted(path.name for path in (SOURCE / "docs" / "pictures").iterdir())
        self.assertEqual(names, sorted(f"{draw().name}.svg" for draw in load(script).PICTURES))
        for name in names:
            self.assertIn(f"pictures/{name})", shown)
            text = (SOURCE / "docs" / "pictures" / name).read_text()
            self.assertIn("prefers-color-scheme: dark", text)
            xml.dom.minidom.parseString(text)

    def test_with_texts_that_overlap_or_leave_are_not_drawn(self):
        pictures = load(SOURCE / "tools" / "pictures")
        picture = pictures.Picture("p", 200, 100, "t", "a")
        picture.text(10, 50, "word")
        self.assertRaises(SystemExit, picture.text, 20, 52, "other")
        self.assertRaises(SystemExit, picture.text, 150, 20, "a long sentence")


def rows(text):
    """Cells of the tables of a document, without heads and rules."""
    lines = [line for line in prose(text).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\\\)\|", line)[1:-1]] for line in lines]
    return [row for i, row in enumerate(cells)
            if not set(row[0]) <= set("-:") and not (i + 1 < len(cells) and set(cells[i + 1][0]) == set("-"))]


def code(text):
    return re.findall(r"`([^`]+)`", text)


class Options(Case):
    """Options and commands that documents name exist."""

    def options(self):
        """By command, all options that the manual has, those of mergekit included."""
        page = re.sub(r"\\f[BIR]", "", self.run_ok("manual").stdout.replace("\\-", "-"))
        found, command = {}, ""
        for line in page.splitlines():
            if line.startswith(".SH INGOT "):
                command = line.removeprefix(".SH INGOT ").lower()
            if command:
                found.setdefault(command, set()).update(re.findall(r"(?<![\w-])--?[a-z][\w-]*", line))
        return found

    def test_of_ingot_in_commands_of_all_documents(self):
        known = self.options()
        everywhere = set().union(*known.values()) | {"--version", "--help"}
        count = 0
        for document in DOCS:
            for line in document.read_text().splitlines():
                for words in re.findall(r"(?:^|`|\$ |run: )(?:build/|build-cuda/|ingot/build/)?ingot ([a-z][^`#|]*)", line):
                    command = words.split()[0]
                    for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", words):
                        self.assertIn(option.replace("--no-", "--"),
                                      {o.replace("--no-", "--") for o in known.get(command, everywhere) | everywhere},
                                      f"{document.name}: {line}")
                        count += 1
        self.assertGreater(count, 20)

    def test_that_take_the_place_of_others(self):
        everywhere = set().union(*self.options().values())
        for name, second in (("from-mergekit.md", 1), ("from-peft.md", 1)):
            count = 0
            for row in rows((SOURCE / "docs" / name).read_text()):
                for option in (o for text in code(row[second]) for o in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)):
                    self.assertIn(option, everywhere, f"{name}: {row}")
                    count += 1
            self.assertGreater(count, 8)

    def test_of_mergekit_that_are_accepted_are(self):
        merge = self.options()["merge"]
        count = 0
        for row in rows((SOURCE / "docs" / "from-mergekit.md").read_text()):
            if len(row) == 3 and row[2].startswith("accepted"):
                for option in code(row[0]):
                    self.assertIn(option.replace("--no-", "--"), {o.replace("--no-", "--") for o in merge}, row)
                    count += 1
        self.assertGreater(count, 15)


class Environment(unittest.TestCase):
    def test_every_variable_is_documented_and_no_other(self):
        found = set()
        for folder in ("host", "kernels", "tools/ingot"):
            for file in (SOURCE / folder).rglob("*.[ch]*"):
                text = file.read_text()
                calls = re.findall(r"getenv\((?:\"(\w+)\"|(\w+))\)", text)
                found |= {name for name, _ in calls if name}
                for wrapper in {w for _, w in calls if w}:  # a function that takes the name
                    function = re.search(rf"(\w+)\(const char\* {wrapper}\) \{{", text)
                    self.assertIsNotNone(function, f"{file}: getenv({wrapper})")
                    found |= set(re.findall(rf"\b{function.group(1)}\(\"(\w+)\"\)", text))
        named = {name for row in rows((SOURCE / "docs" / "environment.md").read_text()) for name in code(row[0])}
        self.assertEqual(found, named)
        self.assertGreater(len(found), 4)


class Reference(unittest.TestCase):
    def keys(self, schema, path=""):
        """Every key of an object as the page writes it: a.b, a[].b."""
        for part in schema.get("oneOf", []) + schema.get("anyOf", []):
            yield from self.keys(part, path)
        for name, inner in schema.get("properties", {}).items():
            yield f"{path}{name}"
            yield from self.keys(inner, f"{path}{name}.")
        if "items" in schema:
            yield from self.keys(schema["items"], f"{path.removesuffix('.')}[].")

    def test_of_json_has_every_key_and_no_other(self):
        schema = json.loads((SOURCE / "docs" / "json.schema.json").read_text())
        parts = re.split(r"^## ", (SOURCE / "docs" / "json.md").read_text(), flags=re.M)[1:]
        self.assertEqual(len(parts), len(schema["$defs"]))
        for part, (name, inner) in zip(parts, schema["$defs"].items()):
            named = [key for row in rows(part) for key in code(row[0])]
            self.assertEqual(sorted(named), sorted(self.keys(inner)), f"docs/json.md, part {name}")
            self.assertTrue(all(row[2] for row in rows(part)))


class Keys(unittest.TestCase):
    """Keys of recipes: those that the parser knows stand in the documents, and no others."""

    def test_of_recipes_are_those_of_the_parser(self):
        parser = (SOURCE / "host" / "recipe" / "parse.cpp").read_text()
        for document, first, place in (("recipe.md", "merge_method", "at the top level"),
                                       ("adapters.md", "adapter_method", "at the top level of a recipe of adapters"),
                                       ("adapters.md", "extract", "at the top level of an extraction")):
            known = re.search(rf'\{{"{place}",\s*\{{([^}}]*)\}}', parser).group(1)
            named = [code(row[0])[0] for row in rows((SOURCE / "docs" / document).read_text()) if code(row[0])]
            begin = named.index(first)
            count = len(re.findall(r'"(\w+)"', known))
            self.assertEqual(set(named[begin:begin + count]), set(re.findall(r'"(\w+)"', known)), place)


class Methods(Case):
    def test_have_a_section_each(self):
        listed = self.run_ok("methods").stdout.split("\n\n")[0]
        names = re.findall(r"^  (\w+) ", listed, re.M)
        page = (SOURCE / "docs" / "methods.md").read_text()
        self.assertEqual(re.findall(r"^\$ ingot explain (\w+)$", page, re.M), names)
        self.assertEqual(re.findall(r"^## (\w+)$", page, re.M), names)


def messages():
    """The texts that the program can print: adjacent literals of the sources joined."""
    for folder in ("host", "kernels", "tools/ingot"):
        for file in (SOURCE / folder).rglob("*.cpp"):
            text = re.sub(r"^\s*//.*$", "", file.read_text(), flags=re.M)
            for found in re.finditer(r'"(?:[^"\\\n]|\\.)*"(?:\s*"(?:[^"\\\n]|\\.)*")*', text):
                yield "".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', found.group()))


class Messages(unittest.TestCase):
    def test_that_are_explained_are_those_of_the_program(self):
        known = list(messages())
        count = 0
        for row in rows((SOURCE / "docs" / "troubleshooting.md").read_text()):
            self.assertEqual(len(row), 3, row)
            for message in code(row[0]):
                pieces = [re.escape(piece.strip()) for piece in message.split("…")]
                pattern = re.compile(r".*\{[^}]*\}.*".join(pieces) if len(pieces) > 1 else pieces[0])
                self.assertTrue(any(pattern.search(text) for text in known), f"no message is: {message}")
                count += 1
        self.assertGreater(count, 60)


class Packages(unittest.TestCase):
    """The lists of packages are those of tools/setup."""

    def setUp(self):
        setup = (SOURCE / "tools" / "setup").read_text()
        found = re.search(r"packages\+=\(g\+\+(.*?)\)", setup, re.S)
        self.packages = {"g++", *found.group(1).split()}

    def installs(self):
        docker = (SOURCE / "Dockerfile").read_text().replace("\\\n", " ")
        return [set(line.split("--no-install-recommends")[1].split("&&")[0].split())
                for line in docker.splitlines() if "apt-get" in line]

    def test_of_the_dockerfile(self):
        build, run = self.installs()
        self.assertEqual(build, self.packages)
        self.assertFalse([package for package in run if package.endswith("-dev")])

    def test_of_the_image_are_the_libraries_of_the_program(self):
        if subprocess.run(["dpkg", "--version"], capture_output=True).returncode != 0:
            self.skipTest("no dpkg")
        _, run = self.installs()
        linked = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"lib(yaml|fmt|xxhash|uring|pcre2|openblas)", linked):
            self.assertTrue([package for package in run if library in package], library)

    def test_of_the_page(self):
        page = (SOURCE / "docs" / "install.md").read_text()
        listed = re.search(r"<!-- packages: debian -->\n```\n(.*?)\n```", page, re.S).group(1)
        self.assertEqual(set(listed.split()), self.packages)
        fedora = re.search(r"dnf install (.*)", page).group(1).split()
        self.assertEqual(len(fedora), len(self.packages))


if __name__ == "__main__":
    unittest.main()

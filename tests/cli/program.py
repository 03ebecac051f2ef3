"""Runs the program as a person would."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

PROGRAM = os.environ.get("INGOT_PROGRAM", "build/ingot")
SOURCE = pathlib.Path(os.environ.get("INGOT_SOURCE", pathlib.Path(__file__).parents[2]))
BUILD = pathlib.Path(os.environ.get("INGOT_BUILD", SOURCE / "build"))
# False where a sanitizer, whose memory and time are its own, is built in.
CACHE = BUILD / "CMakeCache.txt"
PLAIN = not CACHE.exists() or "INGOT_SANITIZE:STRING=\n" in CACHE.read_text()
EXAMPLES = SOURCE / "examples"

DONE, DIFFERS, USAGE, INPUT, IO, DEVICE = 0, 1, 2, 3, 4, 5

TIES = """\
models:
  - model: models/python
    parameters: {density: 0.5, weight: 0.5}
  - model: models/c
    parameters: {density: 0.5, weight: 0.3}
merge_method: ties
base_model: models/base
dtype: bfloat16
"""


def ingot(*words, env=None, **options):
    """The finished process, its output as text. Colours and locale are the test's business."""
    surroundings = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "HF_HOME")}
    return subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=120,
                          env=surroundings | (env or {}), **options)


class Case(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ingot-cli-"))
        self.addCleanup(shutil.rmtree, self.folder, True)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path

    def place(self, name):
        """A folder to write into that is called `model` wherever it is: the card's title is its name."""
        (self.folder / name).mkdir()
        return f"{name}/model"

    def run_ok(self, *words, **options):
        done = ingot(*words, **options)
        self.assertEqual(done.returncode, DONE, done.stderr + done.stdout)
        return done

    def run_fails(self, code, *words, **options):
        """`code`: None for any that is not 0."""
        done = ingot(*words, **options)
        if code is None:
            self.assertNotEqual(done.returncode, DONE, done.stderr + done.stdout)
        else:
            self.assertEqual(done.returncode, code, done.stderr + done.stdout)
        return done

    def merge(self, recipe=TIES, out="out", *words, **options):
        path = self.write("recipe.yml", recipe)
        return self.run_ok("merge", path, self.folder / out, "--root", EXAMPLES, *words, **options)

    def json(self, *words):
        return json.loads(self.run_ok(*words, "--json").stdout)


def bytes_of(folder):
    """Every file of a folder by its path."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}

#!/usr/bin/env python3
"""tools/truth.py gives its own known answers and the masks that docs/numbers.md shows.

answers_test.cpp holds the engine to the same masks. Exits 77 where no Python with NumPy is found.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHOWN = re.compile(r"\| mask of `(\S+)`, source (\d+), seed (\d+), density ([\d.]+), first (\d+) elements.*\| `([0-9a-f]+)` \|")


def python():
    """An interpreter with NumPy: this one, the system's (tools/setup gives it NumPy), or the oracle's."""
    for candidate in (sys.executable, "/usr/bin/python3", ROOT / ".venv" / "bin" / "python"):
        try:
            if subprocess.run([candidate, "-c", "import numpy"], capture_output=True, check=False).returncode == 0:
                return candidate
        except OSError:
            continue
    print("no Python with NumPy")
    sys.exit(77)


def main():
    truth = [python(), ROOT / "tools" / "truth.py"]
    subprocess.run([*truth, "check"], check=True)
    shown = SHOWN.findall((ROOT / "docs" / "numbers.md").read_text())
    wrong = 0
    for name, source, seed, density, count, expected in shown:
        found = subprocess.run([*truth, "mask", name, source, count, density, "--seed", seed],
                               capture_output=True, text=True, check=True).stdout.strip()
        if found != expected:
            print(f"mask of {name}, source {source}: the document shows {expected}, truth.py draws {found}")
            wrong += 1
    print(f"{len(shown)} masks, {wrong} wrong")
    return 1 if wrong or len(shown) < 2 else 0


if __name__ == "__main__":
    sys.exit(main())

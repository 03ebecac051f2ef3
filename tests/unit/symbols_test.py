#!/usr/bin/env python3
"""Code of one instruction set cannot stand in for another's.

symbols_test.py NM SPACE=OBJECT[;OBJECT...] ...   every symbol that the objects define for others lies in
the namespace SPACE, so the linker never has two of one name to choose from.
"""

import subprocess
import sys


def strangers(nm, space, objects):
    """What the objects define for others outside of their namespace."""
    found = []
    for path in objects:
        listing = subprocess.run([nm, "--extern-only", "--defined-only", "--demangle", "--format=posix", path],
                                 capture_output=True, text=True, check=True).stdout
        names = [line.rsplit(" ", 3)[0] for line in listing.splitlines() if line]
        if not any(name.startswith(space + "::") for name in names):
            found.append(f"{path}: nothing in {space}")
        # References to the language's runtime and the sanitizers' marks are no code.
        found += [f"{path}: {name}" for name in names
                  if not name.startswith((space + "::", "DW.ref.", "__odr_asan"))]
    return found


def main():
    nm, groups = sys.argv[1], [argument.split("=", 1) for argument in sys.argv[2:]]
    if not groups:
        sys.exit("symbols: no objects")
    found = [line for space, objects in groups for line in strangers(nm, space, objects.split(";"))]
    for line in found:
        print(line)
    print(f"{len(groups)} namespaces, {len(found)} symbols outside of theirs")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

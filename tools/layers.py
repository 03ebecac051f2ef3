#!/usr/bin/env python3
"""Checks which source may include which: a layer sees only the layers below it.

Every #include of the tree is resolved to a layer or a third-party library and looked up in the two
tables below. Prints one line for each violation and exits 1 if there is any.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1])

CORE = "core"  # error dtype progress shape tensor text version
SEAMS = "seams"  # store recipe adapter linalg backend derived cards facts methods
HEADERS = {CORE: "error dtype progress shape tensor text version",
           SEAMS: "store recipe adapter linalg backend derived cards facts methods",
           "plan": "plan", "merge": "merge"}

# What a layer may include beside itself.
MAY = {
    "math": [],
    CORE: [],
    SEAMS: [CORE, "math"],
    "plan": [CORE, "math", SEAMS],
    "merge": [CORE, "math", SEAMS, "plan"],
}
PUBLIC = [*MAY]
MAY |= {
    "host/base": [CORE, "math"],
    "host/store": [*PUBLIC, "host/base"],
    "host/recipe": [*PUBLIC, "host/base"],
    "host/token": [*PUBLIC, "host/base", "host/store"],
    "host/adapter": [*PUBLIC, "host/base", "host/store", "host/recipe", "host/token",
                     "host/measure"],
    "host/plan": [*PUBLIC, "host/base", "host/store", "host/recipe", "host/token", "host/adapter"],
    "host/engine": [*PUBLIC, "host/base", "host/store", "host/recipe", "host/token", "host/adapter",
                    "host/plan", "host/measure"],
    "host/measure": [CORE, "math", SEAMS],
    "host/cpu": [CORE, "math", SEAMS, "host/base"],
    "host/linalg": [CORE, "math", SEAMS, "host/base"],
    "kernels": [CORE, "math", SEAMS, "host/base"],
    "tools": PUBLIC,
}
TOP = {"tests", "bench"}  # may reach inside; nothing may include them

# Third-party headers, and the layers that may use them.
LIBRARIES = [
    (r"fmt/", lambda layer, file: layer.startswith(("host/", "tools")) and file.suffix == ".cpp"),
    (r"nlohmann/", lambda layer, file: layer.startswith(("host/", "tools"))),
    (r"yaml-cpp/", lambda layer, file: layer == "host/recipe"),
    (r"CLI/", lambda layer, file: layer == "tools"),
    (r"xxhash\.h", lambda layer, file: layer == "host/base"),
    (r"liburing", lambda layer, file: layer == "host/store"),
    (r"pcre2", lambda layer, file: layer == "host/adapter"),
    (r"cblas|lapack", lambda layer, file: layer == "host/linalg"),
    (r"cuda|cublas|cusolver|cub/|thrust/|nvtx", lambda layer, file: layer == "kernels"),
    (r"gtest/|gmock/|benchmark/|sanitizer/", lambda layer, file: False),
]
# The platform: everything else in angle brackets that has an extension or a folder.
PLATFORM = re.compile(r"^(sys/|linux/|asm/|[a-z0-9_]+\.h$)")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def layer_of(path):
    """The layer of a file, as a path relative to the root; None if it has none."""
    parts = path.parts
    if parts[0] == "include":
        if parts[2] == "math":
            return "math"
        return next((layer for layer, names in HEADERS.items() if path.stem in names.split()), None)
    if parts[0] == "host":
        return "/".join(parts[:2])
    if parts[:2] == ("tools", "ingot"):
        return "tools"
    return parts[0]


def target_of(name, file):
    """The file of the tree that an #include names, or None."""
    for folder in (file.parent, ROOT / "include", ROOT / "host", ROOT / "kernels", ROOT / "tests",
                   ROOT / "tools/ingot"):
        if (folder / name).is_file():
            return (folder / name).relative_to(ROOT)
    return None


def problems(file):
    path = file.relative_to(ROOT)
    layer = layer_of(path)
    if layer not in MAY and layer not in TOP:
        yield 1, f"{path.parent} is no known layer: add it to tools/layers.py"
        return
    for number, line in enumerate(file.read_text().splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quote, name = match.groups()
        if name.startswith(("./", "../", "/")) or "/../" in name:
            yield number, f"relative include {name}"
            continue
        target = target_of(name, file)
        if quote == '"':
            if target is None:
                yield number, f"no such file: {name}"
                continue
            other = layer_of(target)
            if layer not in TOP and other != layer and other not in MAY[layer]:
                yield number, f"{layer} may not include {name} ({other})"
        elif layer not in TOP:
            library = next((may for mark, may in LIBRARIES if re.match(mark, name)), None)
            if library is not None:
                if not library(layer, path):
                    yield number, f"{layer} may not include <{name}>" + (
                        "" if layer.startswith(("host/", "tools")) else " (third party)")
            elif path.parts[0] == "include" and not re.fullmatch(r"[a-z_0-9]+", name):
                yield number, f"a public header may include the standard library only, not <{name}>"
            elif (layer == "math" and name not in ("cstdint", "cstddef", "cmath")
                  and (path.name, name) != ("rule.hpp", "vector")):  # a Rule is the host's alone
                yield number, f"math may not include <{name}>"
            elif not re.fullmatch(r"[a-z_0-9]+", name) and not PLATFORM.match(name):
                yield number, f"<{name}> is no known library: add it to tools/layers.py"


def main():
    count = files = 0
    for folder in ("include", "host", "kernels", "tools", "tests", "bench"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix not in (".hpp", ".cpp", ".cu", ".cuh"):
                continue
            files += 1
            for number, text in problems(file):
                print(f"{file.relative_to(ROOT)}:{number}: {text}")
                count += 1
    print(f"{files} files, {count} violations")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())

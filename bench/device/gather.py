#!/usr/bin/env python3
"""Gathers programs, the libraries they need, the example models and the runner in one folder.

  gather.py FOLDER NAME=PROGRAM...

Programs go to bin/, stripped; libraries to lib/, the C library's apart in lib/c/, for machines whose own is
older. about.json says from which commit, with which compilers.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
C_LIBRARY = re.compile(r"^(ld-linux|libc\.|libm\.|libdl\.|libpthread\.|librt\.|libresolv\.|libmvec\.)")


def said(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def libraries(program):
    """Paths of the shared libraries of a program, the loader among them."""
    return {pathlib.Path(path) for path in re.findall(r"(/\S+) \(0x", said("ldd", program))}


def main():
    folder = pathlib.Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("bin", "lib/c", "results"):
        (folder / name).mkdir(parents=True)
    found, versions = set(), {(2, 17)}
    for pair in sys.argv[2:]:
        name, program = pair.split("=", 1)
        subprocess.run(["strip", "-o", folder / "bin" / name, program], check=True)
        found |= libraries(program)
    for library in sorted(found):
        place = folder / ("lib/c" if C_LIBRARY.match(library.name) else "lib") / library.name
        shutil.copy(library.resolve(), place)
    for binary in [*(folder / "bin").iterdir(), *(folder / "lib").glob("*.so*")]:
        versions |= {tuple(map(int, v.split("."))) for v in
                     re.findall(r"GLIBC_(2\.\d+)\b", said("objdump", "-T", binary))}
    shutil.copytree(ROOT / "examples", folder / "examples")
    for name in ("run", "peer.py"):
        shutil.copy(HERE / name, folder / name)
    about = {
        "commit": said("git", "-C", ROOT, "rev-parse", "HEAD"),
        "changed": bool(said("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no")),
        "compiler": said("c++", "--version").splitlines()[0],
        "nvcc": (re.findall(r"V([\d.]+)", said("nvcc", "--version")) or [""])[0],
        "c_library": list(max(versions)),
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()

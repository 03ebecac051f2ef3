"""The program over emulated devices writes the folder that the program writes on the CPU.

  program_test.py PROGRAM EMULATED FOLDER LIBRARIES [--one-way]

Merges every recipe of FOLDER/recipes, whose models lie in FOLDER or FOLDER/models, with both programs and in several ways; prints
the hash of each receipt, which holds the hash of every tensor and file. --one-way runs each recipe in one of the ways, in turn:
under a sanitizer a merge takes four to twelve times as long.
"""

import filecmp
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

plain, emulated, examples, libraries = sys.argv[1:5]
one_way = "--one-way" in sys.argv[5:]
models = next(path for path in (f"{examples}/models", examples) if pathlib.Path(path, "base").is_dir())


def run(*command, seed="0"):
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**os.environ, "EMU_SEED": seed, "EMU_DEVICES": "2"})
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def merge(program, recipe, out, *words, seed="0"):
    return run(program, "merge", recipe, out, "--root", examples, "--no-sync", *words, seed=seed)


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    ways = ((["--device", "cuda"], "0"),
            (["--device", "cuda", "--device-memory", "8MiB"], "1"),
            (["--device", "cuda:1,0", "--device-memory", "64MiB"], "3"),
            (["--device", "auto", "--memory", "128MiB", "--threads", "3"], "5"))
    for turn, recipe in enumerate(sorted(pathlib.Path(examples, "recipes").glob("*.yml"))):
        # The card has the folder's name as its title: the same name everywhere.
        expected = folder / recipe.stem / "cpu" / "model"
        expected.parent.mkdir(parents=True)
        merge(plain, recipe, expected)
        for words, seed in [ways[turn % len(ways)]] if one_way else ways:
            found = folder / recipe.stem / f"cuda-{seed}" / "model"
            found.parent.mkdir()
            said = merge(emulated, recipe, found, *words, seed=seed)
            if "cuda:0 Emulated device" not in said:
                sys.exit(f"{recipe.stem}: the device is not in the report: {said}")
            names = files(expected)
            if files(found) != names:
                sys.exit(f"{recipe.stem}: other files: {files(found)}")
            for name in names:
                if not filecmp.cmp(expected / name, found / name, shallow=False):
                    sys.exit(f"{recipe.stem} {' '.join(words)}: {name} differs")
        receipt = hashlib.sha256((expected / "ingot.json").read_bytes()).hexdigest()
        print(f"{recipe.stem}: the same bytes, receipt {receipt[:16]}", flush=True)

    # Adapters: the same bytes by kernels; by cuBLAS other ones, which verify holds to their bound.
    words = [f"{models}/base", f"{examples}/adapters/c-lora:0.5", f"{examples}/adapters/python-dora"]
    for name, program, more in (("bake-cpu", plain, []), ("bake-cuda", emulated, ["--device", "cuda"]),
                                ("bake-fast", emulated, ["--device", "cuda", "--fast-product", "--cuda-libraries",
                                                         libraries])):
        run(program, "bake", *words, "-o", folder / name, "--no-sync", "--dtype", "float32", *more)
        run(plain, "verify", folder / name, "--all")
    weights = {name: (folder / name / "model.safetensors").read_bytes() for name in
               ("bake-cpu", "bake-cuda", "bake-fast")}
    if weights["bake-cpu"] != weights["bake-cuda"]:
        sys.exit("bake --device cuda: other bytes than the CPU's")
    if weights["bake-cpu"] == weights["bake-fast"]:
        sys.exit("bake --fast-product: the bytes of the exact class; cuBLAS was not asked")
    print("bake: the same bytes by kernels, verified by cuBLAS", flush=True)

    # Types on factors have no base: the bytes of the CPU.
    pair = [f"{examples}/adapters/c-lora:0.5", f"{examples}/adapters/prose-lora:0.5"]

    def place(name, kind):
        (folder / name).mkdir(exist_ok=True)
        return folder / name / kind

    for kind in ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"):
        more = [] if kind == "linear" else ["--density", "0.5"]
        for name, program, device in (("cpu", plain, []), ("cuda", emulated, ["--device", "cuda"])):
            run(program, "adapter", "merge", *pair, "--type", kind, *more, "-o", place(name, kind), "--no-sync",
                *device)
        for name in files(place("cpu", kind)):
            if not filecmp.cmp(place("cpu", kind) / name, place("cuda", kind) / name, shallow=False):
                sys.exit(f"adapter merge --type {kind}: {name} differs")
    print("adapter merge: the same bytes", flush=True)

    # Decompositions by the libraries: within their bound, as the report says; a folder without them is an error.
    device = ["--device", "cuda", "--cuda-libraries", libraries, "--no-sync", "--json"]
    for kind in ("svd", "ties_svd", "dare_linear_svd", "magnitude_prune_svd"):
        more = [] if kind == "svd" else ["--density", "0.5"]
        said, _ = json.JSONDecoder().raw_decode(run(emulated, "adapter", "merge", *pair, "--type", kind, "--rank", "4", *more, "-o",
                              folder / kind, *device))
        if "cuSOLVER 7.8.9" not in said["solver"]:
            sys.exit(f"{kind}: decomposed by {said['solver']}")
        run(plain, "verify", folder / kind, "--all")
    said, _ = json.JSONDecoder().raw_decode(run(emulated, "extract", f"{models}/base", f"{models}/python", "--rank", "8",
                          "-o", folder / "extract", *device))
    if "cuSOLVER 7.8.9" not in said["solver"]:
        sys.exit(f"extract: decomposed by {said['solver']}")
    run(plain, "verify", folder / "extract", "--all")
    done = subprocess.run([emulated, "adapter", "merge", *pair, "--type", "svd", "-o", folder / "none", "--device", "cuda",
                           "--cuda-libraries", folder], capture_output=True, text=True, check=False)
    if done.returncode != 5 or "libcublas.so.13" not in done.stderr or (folder / "none").exists():
        sys.exit(f"a folder without libraries: exit {done.returncode}, {done.stderr}")
    print("decompositions: verified", flush=True)

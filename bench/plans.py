#!/usr/bin/env python3
"""How near the memory of plans is to the memory of runs.

    bench/plans.py PROGRAM FOLDER [--runs N]

Makes models of three sizes in FOLDER (4 GB, kept for the next time), plans and merges them by four
methods, from the page cache and past it, and prints a line for each: what was planned, what each run had
resident at most, and the ratio. docs/progress.md has what it printed.
"""

import argparse
import json
import pathlib
import random
import struct
import subprocess

SIZES = {"27 MiB": (4, 512), "200 MiB": (8, 1024), "1168 MiB": (12, 2048)}  # layers, width
METHODS = ("linear", "slerp", "ties", "dare_ties")
MIB = 1 << 20


def make(folder, layers, width):
    """A bf16 model of the shapes of Llama with numbers of no order."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"model.embed_tokens.weight": [8 * width, width]}
    for layer in range(layers):
        for name, rows, columns in (("self_attn.q_proj", 4, 4), ("self_attn.k_proj", 1, 4), ("self_attn.v_proj", 1, 4),
                                    ("self_attn.o_proj", 4, 4), ("mlp.gate_proj", 12, 4), ("mlp.up_proj", 12, 4),
                                    ("mlp.down_proj", 4, 12)):
            shapes[f"model.layers.{layer}.{name}.weight"] = [rows * width // 4, columns * width // 4]
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    block = bytearray(random.Random(str(folder)).randbytes(4 * MIB))
    block[1::2] = bytes(0x3c | byte & 0x81 for byte in block[1::2])  # between 0.007 and 0.03
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for at in range(0, end, len(block)):
            file.write(block[:end - at])
    (folder / "config.json").write_text(json.dumps(
        {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "hidden_size": width}))


def recipe(method, folders):
    base = "" if method == "linear" else f"base_model: {folders[0]}\n"
    more = "parameters: {t: 0.5}\n" if method == "slerp" else ""
    merged = {"linear": folders, "slerp": folders[:2]}.get(method, folders[1:])
    own = {"linear": "weight: 0.5", "slerp": ""}.get(method, "weight: 0.5, density: 0.5")
    models = "".join(f"- {{model: {folder}, parameters: {{{own}}}}}\n" for folder in merged)
    return f"merge_method: {method}\ndtype: bfloat16\n{base}{more}models:\n{models}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()

    def call(*words):
        done = subprocess.run([given.program, *map(str, words), "--json", "-j", "2"], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return json.loads(done.stdout)

    for size, shape in SIZES.items():
        folders = [given.folder / size.split()[0] / name for name in "abc"]
        for folder in folders:
            make(folder, *shape)
        for storage in ("auto", "direct"):
            for method in METHODS:
                path = given.folder / "recipe.yml"
                path.write_text(recipe(method, folders))
                for folder in folders:  # into the page cache
                    (folder / "model.safetensors").read_bytes()
                out = given.folder / "out"
                planned = call("merge", path, out, "--force", "--storage", storage, "--dry-run", "--no-probe")["memory"]["peak"]
                taken = [call("merge", path, out, "--force", "--storage", storage)["peak_memory"]
                         for _ in range(given.runs)]
                print(f"{size:>8} {storage:6} {method:9} planned {planned / MIB:4.0f} MiB, taken",
                      ", ".join(f"{peak / MIB:.0f} ({planned / peak:.2f})" for peak in taken), flush=True)


if __name__ == "__main__":
    main()

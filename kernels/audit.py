#!/usr/bin/env python3
"""Looks at what nvcc made of the kernels: arithmetic that the contract forbids, registers, spills.

  audit.py --nvcc NVCC [--architectures 75 80 ...] [--update]

Compiles every .cu file of this folder as the library does and checks
- the PTX: a fused multiply-add only where the source says fuse(), no flush to zero, no approximate
  division, root or function, no hardware conversion to or from a 16- or 8-bit float;
- what ptxas made of it: no register is spilled on any architecture. Registers, shared memory and stack
  of every kernel of ours stand in registers.json, which --update rewrites; what has changed since is
  listed. Thrust's kernels are only counted.
Prints what it found and exits 1 if anything is wrong.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
TABLE = HERE / "registers.json"
ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
FLAGS = ["-std=c++20", "-O3", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true",
         "-lineinfo", "-Xcompiler=-ffp-contract=off", f"-I{HERE.parent / 'include'}", f"-I{HERE}"]

# Kernels of libraries, whose names have the version and the architectures.
THEIRS = re.compile(r"(cub|thrust)::")
# Where math/ says fuse(): the lines of these functions may hold a fused multiply-add.
FUSE = re.compile(r"__builtin_fmaf?\(|\bfuse\(")
FORBIDDEN = [
    (re.compile(r"\.ftz\b"), "flushes subnormals to zero"),
    (re.compile(r"\.approx\b"), "is an approximation"),
    (re.compile(r"^(ex2|lg2|sin|cos|tanh|rsqrt|rcp)\.(?!rn)"), "is an approximation"),
    (re.compile(r"^cvt\..*\.(f16|bf16|f16x2|bf16x2|e4m3x2|e5m2x2)\b"), "converts by hardware"),
    (re.compile(r"^(mad|fma)\.(?!rn|lo|hi|wide)"), "is no IEEE operation"),
]


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def short(mangled):
    """'map_kernel<Sum<3>>' from a mangled kernel name."""
    name = run("c++filt", mangled).strip()
    name = re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", re.sub(r"\(anonymous namespace\)::", "", name))
    name = re.sub(r"\((?:ingot::math::)?(?:Vote|Divisor)\)(\d+)", r"\1", name)
    name = re.sub(r"\(unsigned int\)|(?<=\d)u\b", "", name)
    return re.sub(r"^(static )?void |ingot::(gpu|math)::", "", name).replace("> >", ">>")


def check_ptx(nvcc, source, folder):
    """The problems of one source's PTX, and how many fused operations it has."""
    ptx = folder / (source.stem + ".ptx")
    run(nvcc, *FLAGS, "-gencode", "arch=compute_75,code=compute_75", "-ptx", source, "-o", ptx)
    lines = ptx.read_text().splitlines()
    files = {}
    for line in lines:
        if match := re.match(r'\s*\.file\s+(\d+)\s+"([^"]+)"', line):
            files[match[1]] = pathlib.Path(match[2])
    texts = collections.defaultdict(list)
    at, fused, problems = None, 0, []
    for line in lines:
        if match := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
            at = files.get(match[1]), int(match[2])
            continue
        text = re.sub(r"^@!?%p\d+\s+", "", line.strip())
        for pattern, why in FORBIDDEN:
            if pattern.search(text):
                problems.append(f"{source.name}: {text} {why} (from {at and at[0].name}:{at and at[1]})")
        if re.match(r"fma\.", text):
            fused += 1
            file, number = at if at else (None, 0)
            if file is None or not file.is_file():
                problems.append(f"{source.name}: {text} comes from nowhere")
                continue
            if file not in texts:
                texts[file] = file.read_text().splitlines()
            if not FUSE.search(texts[file][number - 1]):
                problems.append(f"{source.name}: {text} is fused unasked (from {file.name}:{number})")
    return problems, fused


def measure(nvcc, source, architecture, folder):
    """Registers, shared memory and stack of every kernel; and the spills."""
    said = run(nvcc, *FLAGS, "-gencode", f"arch=compute_{architecture},code=sm_{architecture}",
               "-Xptxas=-v", "-cubin", source, "-o", folder / f"{source.stem}.{architecture}.cubin")
    rows, problems, name, stack = {}, [], None, 0
    for line in said.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = short(match[1])
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", line):
            stack = int(match[1])
            if int(match[2]) or int(match[3]):
                problems.append(f"{name} spills on {architecture}: {match[2]} bytes out, {match[3]} in")
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            rows[name] = {"registers": int(match[1]), "shared": int(shared[1]) if shared else 0,
                          "stack": stack}
    return rows, problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--architectures", type=int, nargs="*", default=ARCHITECTURES)
    parser.add_argument("--update", action="store_true", help="write registers.json")
    options = parser.parse_args()

    problems, table, theirs = [], {}, set()
    version = re.search(r"V([\d.]+)", run(options.nvcc, "--version"))[1]
    with tempfile.TemporaryDirectory() as name, \
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = pathlib.Path(name)
        sources = sorted(HERE.glob("*.cu"))
        looked = [pool.submit(check_ptx, options.nvcc, source, folder) for source in sources]
        measured = [(architecture, pool.submit(measure, options.nvcc, source, architecture, folder))
                    for architecture in options.architectures for source in sources]
        for source, result in zip(sources, looked):
            found, fused = result.result()
            problems += found
            print(f"{source.name}: {fused} fused operations, all asked for" if not found
                  else f"{source.name}: {len(found)} problems in the PTX")
        for architecture, result in measured:
            rows, found = result.result()
            problems += found
            for kernel, row in rows.items():
                if THEIRS.match(kernel):
                    theirs.add(re.sub(r"_SM_[\d_]+", "", kernel))
                    continue
                table.setdefault(kernel, {})[str(architecture)] = row
    if options.update:
        text = json.dumps({"nvcc": version, "kernels": dict(sorted(table.items()))}, indent=1)
        # One line per kernel and architecture.
        TABLE.write_text(re.sub(r"\{\s+(\"registers\": \d+),\s+(\"shared\": \d+),\s+(\"stack\": \d+)\s+\}",
                                r"{\1, \2, \3}", text) + "\n")
    committed = json.loads(TABLE.read_text())
    if committed["nvcc"] != version:
        print(f"registers.json was made with nvcc {committed['nvcc']}, this is {version}: not compared")
    else:
        changed = [f"{kernel} on {architecture}: {now}, was {was}"
                   for kernel in sorted(set(table) | set(committed["kernels"]))
                   for architecture in map(str, options.architectures)
                   if (now := table.get(kernel, {}).get(architecture)) !=
                   (was := committed["kernels"].get(kernel, {}).get(architecture))]
        if changed:
            print("registers.json is behind the kernels (kernels/audit.py --update):", *changed, sep="\n  ")
    most = max(row["registers"] for rows in table.values() for row in rows.values())
    print(f"nvcc {version}: {len(table)} kernels on {len(options.architectures)} architectures, "
          f"at most {most} registers, and {len(theirs)} of libraries; {len(problems)} problems")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

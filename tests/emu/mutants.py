#!/usr/bin/env python3
"""Breaks the kernels one line at a time; the tests must notice each time.

  mutants.py BUILD_FOLDER [--all | --only WORDS]

A mutant is a text that occurs exactly once in a source and what stands in its place. The sources that
change are compiled as the build compiles them, linked in place of the right ones, and a test program is
run: it must fail. Which mutants there are depends on the sanitizer of the build; without --all only the few
that FEW names are tried, which takes a minute or two.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "kernels"

# What is broken: name, file, text, replacement, sources to compile, test program, filter.
APPLY, FOLD, SELECT, PIPE = ("apply.cu", "kernel", "*Apply*:*ManyJobs*"), \
    ("measure.cu", "kernel", "*Folds*"), ("select.cu", "kernel", "*Verify*:*Histograms*:*Samples*"), \
    ("backend.cpp", "backend", "*AnyLegalOrder*:*ThreadsShare*")
ORDER = ("policy.cpp", "kernel", "*Verify*")  # of the emulator, over the steps of order.cuh
PLAIN = [
    ("the last pack is forgotten", "pack.cuh", "  return (count + kPack - 1) / kPack;\n",
     "  return count / kPack;\n", APPLY),
    ("what lies behind the end is counted", "pack.cuh",
     "(1U << static_cast<unsigned>(left)) - 1;", "(1U << kPack) - 1;", APPLY),
    ("threads behind the end count", "map.cuh", "inside ? valid(pack, job.tensor.count) : 0U",
     "valid(pack, job.tensor.count)", APPLY),
    ("an index of 32 bits", "apply.cu",
     "see<Lens>(known.lens[s], job.tensor.first + pack * kPack, base, x);",
     "see<Lens>(known.lens[s], static_cast<unsigned>(job.tensor.first + pack * kPack), base, x);",
     APPLY),
    ("sources are counted at every stage", "apply.cu", "take<stage == 0>(", "take<true>(", APPLY),
    ("the pack of the cut is not looked into", "mask.cuh", "if (run < kPack) {", "if (run < 0) {", APPLY),
    ("a mask that keeps nothing keeps NaN", "mask.cuh", "else if (!Lens::empty(piece)) {", "else {", APPLY),
    ("the divisor is forgotten", "walk.cuh", "(known == form ?", "(known == 0 ?", APPLY),
    ("a job is taken one span too late", "map.cuh", "span <= span ?", "span < span ?", APPLY),
    ("a span begins at the tensor's front", "map.cuh", "(span - job.span) * batch.packs",
     "(span - span) * batch.packs", APPLY),
    ("elements behind the end are added", "fold.cuh",
     "const unsigned here = left < kStep ? static_cast<unsigned>(left) : kStep;",
     "const unsigned here = left > 0 ? kStep : 0;", FOLD),
    ("lanes take neighbouring elements", "fold.cuh",
     "for (unsigned i = threadIdx.x; i < here; i += math::kLanes)",
     "for (unsigned i = threadIdx.x * kPack; i < threadIdx.x * kPack + kPack && i < here; ++i)", FOLD),
    ("a second bracket takes the keys of another stream", "select.cuh",
     "if (m == 0 || bracket.stream != brackets[group + m - 1].stream)", "if (m == 0)", SELECT),
    ("rows of a span are not counted on", "select.cuh", "unsigned at = place + before + ahead;",
     "unsigned at = place + ahead;", SELECT),
    ("a warp forgets the warps before", "select.cuh", "if (other < warp) at += warp_totals[other];",
     "", SELECT),
    ("ties of a point count twice", "select.cuh", "count[kAtLow] != 0 && !point",
     "count[kAtLow] != 0", SELECT),
    ("every lane adds for its equals", "select.cuh", "if (counted && first)", "if (counted)", SELECT),
    ("a short window is read to its end", "select.cuh",
     "length < math::kSampled ? length : math::kSampled", "math::kSampled", SELECT),
    ("a list that overflowed is put in order", "order.cuh", "return overflowed ? 0 : ", "return ",
     ORDER),
    ("spans lie in the order in which they were found", "order.cuh",
     "all.segments[part].offset + within", "starts[part] + within", ORDER),
    ("kernels do not wait for the copies", "call.hpp",
     "if (!begun_[kCompute] && begun_[kIn]) hand_over(kIn, lane_.in, lane_.compute);",
     "if (!begun_[kCompute] && begun_[kIn]) slot_.mark[1].record(lane_.in);", PIPE),
    ("copies back do not wait for the kernels", "call.hpp",
     "if (!begun_[kOut] && begun_[kCompute]) hand_over(kCompute, lane_.compute, lane_.out);",
     "if (!begun_[kOut] && begun_[kCompute]) slot_.mark[3].record(lane_.compute);", PIPE),
    ("the call does not wait", "call.hpp", "    last.wait();\n", "", PIPE),
    ("memory is given back too early", "call.hpp", "    bytes_ = bytes;\n    return memory_;",
     "    lane_.work().give(memory_, bytes);\n    return memory_;", PIPE),
]
ASAN = [
    ("the list of candidates has no end", "select.cuh", "if (at >= limit) break;", "", SELECT),
    ("one pack too many", "pack.cuh", "  return (count + kPack - 1) / kPack;\n",
     "  return count / kPack + 1;\n", FOLD),
]
TSAN = [
    ("counters are used before they are cleared", "map.cuh", "sums_[i] = 0;\n    __syncthreads();",
     "sums_[i] = 0;", APPLY),
    ("counters are read before they are full", "map.cuh",
     "atomicMax(&sums_[kChange], change);\n    __syncthreads();",
     "atomicMax(&sums_[kChange], change);", APPLY),
    ("numbers are read before they are there", "fold.cuh",
     "detail::fill<A>(tensor, known, group, at / kPack + threadIdx.x, step);\n      __syncthreads();",
     "detail::fill<A>(tensor, known, group, at / kPack + threadIdx.x, step);", FOLD),
    ("numbers are replaced while they are read", "fold.cuh",
     "tensor.first + at, i, lane);\n      });\n      __syncthreads();",
     "tensor.first + at, i, lane);\n      });", FOLD),
    ("halves fold before the lanes are there", "fold.cuh",
     "half > 0; half /= 2) {\n    __syncthreads();", "half > 0; half /= 2) {", FOLD),
    ("marks are read before they are set", "select.cuh",
     "atomicAdd(&counts[m * kCounters + c], sum);\n      }\n    __syncthreads();",
     "atomicAdd(&counts[m * kCounters + c], sum);\n      }", SELECT),
    ("totals are replaced while they are read", "select.cuh",
     "static_cast<std::uint32_t>(index)};\n        }\n        __syncthreads();",
     "static_cast<std::uint32_t>(index)};\n        }", SELECT),
    ("totals are read before they are there", "select.cuh",
     "warp_totals[warp] = ahead + mine;\n        __syncthreads();", "warp_totals[warp] = ahead + mine;",
     SELECT),
]
FEW = {
    "the last pack is forgotten", "an index of 32 bits", "elements behind the end are added",
    "a warp forgets the warps before", "kernels do not wait for the copies", "the call does not wait",
    "the list of candidates has no end", "one pack too many",
    "numbers are read before they are there", "totals are read before they are there",
}


def commands(build, target):
    """The commands that make a target, as ninja would run them."""
    done = subprocess.run(["ninja", "-C", build, "-t", "commands", target], capture_output=True,
                          text=True, check=True)
    return done.stdout.splitlines()


def run(command, build, timeout=300, **more):
    try:
        done = subprocess.run(command, cwd=build, capture_output=True, text=True, timeout=timeout,
                              check=False, **more)
    except subprocess.TimeoutExpired:
        return 124, "time is up"
    return done.returncode, done.stdout + done.stderr


def survives(mutant, build):
    """Why a mutant was not noticed, or None."""
    what, file, old, new, (source, program, tests) = mutant
    target = f"emu_{program}"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shutil.copytree(KERNELS, folder / "kernels")
        path = folder / "kernels" / file
        text = path.read_text()
        if text.count(old) != 1:
            return f"{what}: its text occurs {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new))

        lines = [line for line in commands(build, target)]
        right = "emu_kernels.dir/"
        compile_line = next(line for line in lines if right in line and f"/{source}.o" in line
                            and " -c " in line)
        words = [word for word in shlex.split(compile_line) if word != "-Werror"]
        obj = words[words.index("-o") + 1]
        words[words.index("-o") + 1] = str(folder / "mutant.o")
        if not (HERE / source).exists():
            words[words.index("-c") + 1] = str(folder / "kernels" / source)
        words = [f"-I{folder}/kernels" if word == f"-I{KERNELS}" else word for word in words]
        for option in ("-MT", "-MF"):
            words[words.index(option) + 1] = str(folder / "mutant.d")
        code, said = run(words, build)
        if code != 0:
            return f"{what}: does not compile: {said}"

        link_line = lines[-1].removeprefix(": && ").removesuffix(" && :")
        words = [str(folder / "mutant.o") if word == obj else word for word in shlex.split(link_line)]
        words[words.index("-o") + 1] = str(folder / "test")
        code, said = run(words, build)
        if code != 0:
            return f"{what}: does not link: {said}"
        code, said = run([str(folder / "test"), f"--gtest_filter={tests}"], build,
                         env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"})
        return None if code != 0 else f"{what}: no test noticed"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--only", metavar="WORDS", help="mutants whose name has these words")
    options = parser.parse_args()
    build = options.build.resolve()
    sanitizer = re.search(r"^INGOT_SANITIZE:\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.M)[1]
    mutants = TSAN if "thread" in sanitizer else ASAN if "address" in sanitizer else PLAIN
    if options.only:
        mutants = [m for m in mutants if options.only in m[0]]
    elif not options.all:
        mutants = [m for m in mutants if m[0] in FEW]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda m: survives(m, build), mutants))
    failures = [result for result in results if result]
    print(f"{len(mutants)} mutants, {len(failures)} survived or were no mutants")
    for failure in failures:
        print(failure)
    return 1 if failures or not mutants else 0


if __name__ == "__main__":
    sys.exit(main())

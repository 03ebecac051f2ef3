#!/usr/bin/env python3
"""Recipes with the habits of real ones, which mergekit runs: ingot runs them too and means the same.

  habits.py [PART...]     merges each habit with build/ingot and with mergekit; PART chooses by name

Each habit is a recipe that is not quite as the grammar has it. mergekit 0.1.5 runs it; ingot has to run
it with a warning, where there is one to give, and the tensors have to agree. REFUSED are the documented
exceptions (docs/recipe.md, "Differences"). Runs in the environment that `tools/oracle.py setup` makes.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import oracle

LINEAR = ("merge_method: linear\nmodels:\n- model: python\n  parameters: {weight: 0.5}\n"
          "- model: c\n  parameters: {weight: 0.5}\n")
TIES = ("merge_method: ties\nbase_model: base\nmodels:\n- model: python\n  parameters: {weight: 1, density: 1}\n"
        "- model: c\n  parameters: {weight: 1, density: 1}\n")
ONE = "merge_method: passthrough\nslices:\n- sources: [{model: python, layer_range: [0, 2]%s}]\n"


def stack(*parts):
    return "merge_method: passthrough\nslices:\n" + "".join(
        f"- sources: [{{model: {model}, layer_range: {layers}}}]\n" for model, layers in parts)


# name: (recipe, how many warnings ingot gives; None: some)
HABITS = {
    "plain": (LINEAR, 0),
    **{f"{key} without a value": (LINEAR + f"{key}:\n", 1) for key in (
        "parameters", "dtype", "out_dtype", "base_model", "tokenizer_source", "tokenizer", "chat_template", "slices",
        "modules")},
    "name without a value": (LINEAR + "name:\n", 0),
    "name that is a list": (LINEAR + "name: [a]\n", 0),
    "empty parameters": (LINEAR + "parameters: {}\n", 0),
    "empty list of slices": (LINEAR + "slices: []\n", 1),
    "empty modules": (LINEAR + "modules: {}\n", 1),
    "empty template": (LINEAR + 'chat_template: ""\n', 1),
    "empty list for a parameter": (LINEAR + "parameters: {normalize: []}\n", 1),
    "parameters of the base without a value": (TIES.replace("models:\n", "models:\n- model: base\n  parameters:\n"), 1),
    "normalize at the top": (LINEAR + "normalize: false\n", 1),
    "density at the top": (TIES.replace(", density: 1", "") + "density: 0.5\n", 1),
    "int8_mask at the top": (TIES + "int8_mask: true\n", 1),
    "weight beside the model too": (LINEAR.replace("- model: python\n", "- model: python\n  weight: 0.9\n"), 1),
    "density beside the model": (TIES.replace("- model: python\n", "- model: python\n  density: 0.1\n"), 1),
    "scale beside the source": (ONE % ", scale: 0.5", 1),
    "layer_range beside the model": (
        LINEAR.replace("- model: python\n", "- model: python\n  layer_range: [0, 1]\n"), 1),
    "dtype among the parameters": (LINEAR + "parameters: {dtype: float16}\n", 1),
    "dtype among a model's parameters": (LINEAR.replace("weight: 0.5", "weight: 0.5, dtype: float16", 1), 1),
    "method among the parameters": (LINEAR + "parameters: {merge_method: slerp}\n", 1),
    "tokenizer_source among the parameters": (LINEAR + "parameters: {tokenizer_source: base}\n", 1),
    "parameter of no method": (LINEAR + "parameters: {foo: 1}\n", 1),
    "parameter of another method": (LINEAR + "parameters: {t: 1}\n", 1),
    "keys of a model card": (LINEAR + "description: mine\nauthor: {a: [1]}\nlicense: mit\ntags: [x]\n", 4),
    "options of the program": (LINEAR + "lazy_unpickle: true\nrandom_seed: 3\n", 2),
    "dtype in a slice": (ONE % "" + "  dtype: float16\n", 1),
    "method in a slice": (ONE % "" + "  merge_method: linear\n", 1),
    "residual_weight in a slice": (ONE % "" + "  residual_weight: 0.5\n", 1),
    "slice keys without a value": (ONE % ", parameters: " + "  base_model:\n  parameters:\n", 3),
    "slice without layers between": (stack(("python", "[0, 2]"), ("c", "[1, 1]"), ("c", "[1, 2]")), 1),
    "slice without layers first": (stack(("c", "[0, 0]"), ("python", "[0, 2]")), 1),
    "slice without layers last": (stack(("python", "[0, 2]"), ("c", "[2, 2]")), 1),
    "slice without layers beyond the last": (stack(("python", "[0, 2]"), ("c", "[9, 9]")), 1),
    "layers as text": (stack(("python", "['0', '2']")), 0),
    "layers as floats": (stack(("python", "[0.0, 2.0]")), 0),
    "a key twice with one value": (LINEAR + "merge_method: linear\n", 1),
    "numbers as text": (LINEAR.replace("0.5", "'0.5'"), 0),
    "numbers as text in a gradient": (LINEAR.replace("weight: 0.5", "weight: ['0.5', '0.2']"), 0),
    "1e-1": (LINEAR.replace("weight: 0.5", "weight: 1e-1", 1), 0),
    "true for 1": (LINEAR.replace("0.5", "true"), 0),
    **{f"{value} for a yes or no": (LINEAR + f"parameters: {{normalize: {value}}}\n", 0)
       for value in ("0", '"false"', '"yes"', "1.0", "on")},
    "condition with another key": (
        LINEAR + "parameters:\n  normalize:\n  - {filter: mlp, value: false, note: x}\n  - value: true\n", 1),
    "filter without a value": (
        LINEAR + "parameters:\n  normalize:\n  - {filter: mlp, value: false}\n  - {filter: , value: true}\n", 1),
    "anchors and merge keys": (
        "merge_method: linear\nx: &p {weight: 0.5}\nmodels:\n- model: python\n  parameters: *p\n- model: c\n"
        "  parameters:\n    <<: *p\n", 1),
    "only the base": ("merge_method: ties\nbase_model: base\nmodels:\n- model: base\n", None),
    "linear of one": ("merge_method: linear\nmodels:\n- model: python\n  parameters: {weight: 0.5}\n", None),
    "slerp of one and the base": (
        "merge_method: slerp\nbase_model: python\nmodels:\n- model: c\nparameters: {t: 0.3}\n", 0),
    "marks of one document": ("---\n" + LINEAR + "...\n", 0),
    "byte-order mark and CRLF": ("\ufeff" + LINEAR.replace("\n", "\r\n"), 0),
    "JSON": (json.dumps({"merge_method": "linear", "models": [
        {"model": model, "parameters": {"weight": 0.5}} for model in ("python", "c")]}), 0),
    "slash behind a folder": (LINEAR.replace("model: c", "model: c/"), 0),
    "padding as text": (LINEAR + 'base_model: python\nparameters: {weight: 0}\n'
                        'tokenizer: {source: base, pad_to_multiple_of: "64", tokens: }\n', 1),
}

REFUSED = {
    "a key twice with two values": LINEAR + "merge_method: task_arithmetic\nbase_model: base\n",
    "slip of a key": LINEAR + "paramters: {normalize: false}\n",
    "slip of a parameter": TIES + "parameters: {lambda_: 0.5}\n",
    "layers backwards": stack(("python", "[0, 2]"), ("c", "[2, 1]")),
    "no layers at all": stack(("python", "[0, 0]")),
    "octal number": LINEAR.replace("weight: 0.5", "weight: 010", 1),
    "underscore in a number": LINEAR.replace("weight: 0.5", "weight: 1_0", 1),
    "doubles": LINEAR + "dtype: float64\n",
}


def tensors(folder):
    from safetensors.torch import load_file

    held = {}
    for path in sorted(folder.glob("*.safetensors")):
        held.update(load_file(path))
    return held


def by_mergekit(text, out):
    """Runs a recipe, raises what mergekit raises."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    with contextlib.redirect_stderr(io.StringIO()):
        run_merge(config, str(out), MergeOptions(quiet=True, write_model_card=False))
    return tensors(out)


def precise(text):
    """The recipe with float32 arithmetic and output where that can be added, and what rounding leaves."""
    fixed = re.search(r"^(out_)?dtype:", text, re.MULTILINE) or text.startswith("{") or text.endswith("...\n")
    return (text, 0.02) if fixed else (text + "dtype: float32\n", 1e-5)


def far(ours, theirs, bound):
    """What differs by more than a relative bound, or None."""
    if ours.keys() != theirs.keys():
        return f"names differ: {sorted(ours.keys() ^ theirs.keys())[:3]}"
    for name, tensor in ours.items():
        other = theirs[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            return f"{name}: {tensor.dtype} {list(tensor.shape)}, mergekit {other.dtype} {list(other.shape)}"
        apart = (tensor.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30)
        if not apart < bound:
            return f"{name}: {apart:.3g} apart"
    return None


def judge(program, text, said, refused, scratch):
    text, bound = precise(text)
    (scratch / "recipe.yml").write_bytes(text.encode())
    done = subprocess.run([program, "merge", scratch / "recipe.yml", scratch / "ours", "--no-sync"],
                          capture_output=True, text=True)
    try:
        theirs = by_mergekit(text, scratch / "theirs")
    except Exception as error:  # a recipe that mergekit refuses is no habit
        return f"mergekit refuses it: {type(error).__name__}: {str(error)[:100]}"
    if refused:
        return None if done.returncode in (2, 3) else f"exit {done.returncode}, to be refused"
    if done.returncode != 0:
        return f"exit {done.returncode}: {done.stderr.strip()[:200]}"
    count = done.stderr.count("warning:")
    if said is not None and count != said:
        return f"{count} warnings, {said} expected: {done.stderr.strip()[:300]}"
    return far(tensors(scratch / "ours"), theirs, bound)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build" / "ingot")
    parser.add_argument("only", nargs="*", help="parts of names; all if there is none")
    options = parser.parse_args()
    oracle.enter()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    program = options.program.resolve()
    os.chdir(ROOT / "examples" / "models")
    cases = [(name, text, said, False) for name, (text, said) in HABITS.items()]
    cases += [(name, text, None, True) for name, text in REFUSED.items()]
    failures = count = 0
    for name, text, said, refused in cases:
        if options.only and not any(part in name for part in options.only):
            continue
        with tempfile.TemporaryDirectory(prefix="ingot-habits-") as scratch:
            why = judge(program, text, said, refused, pathlib.Path(scratch))
        count += 1
        failures += why is not None
        if why:
            print(f"habits: {name}: {why}", flush=True)
    print(f"habits: {count} recipes, {failures} failed")
    return 1 if failures or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())

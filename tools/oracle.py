#!/usr/bin/env python3
"""Runs the real mergekit and holds ingot against it.

  oracle.py setup             a Python environment of its own (.venv) with the peers at pinned versions
  oracle.py record            runs mergekit over CASES on small cuts of the example models and writes
                              tests/golden/oracle, which the ctest label `golden` compares with
  oracle.py live              runs mergekit and build/ingot side by side on whole models, compares tensors,
                              errors against double precision, and the folders in transformers

The random masks of mergekit's dare methods are replaced by the ones ingot's contract defines
(truth.py), so that random methods can be compared element by element.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import unittest.mock
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PINS = {"torch": "2.15.0", "mergekit": "0.1.5", "transformers": "5.23.0", "peft": "0.21.2",
        "safetensors": "0.8.0", "numpy": "2.4.6"}
GOLDEN = ROOT / "tests" / "golden" / "oracle"
LIMIT = 200_000  # bytes of committed goldens


# ---------------------------------------------------------------------------------------------------
# The environment


def installed():
    """The versions in .venv, empty if there is none that runs."""
    if not PYTHON.exists():
        return {}
    code = ("import importlib.metadata as m, json, sys\n"
            "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
            "print(json.dumps({n: have.get(n) for n in sys.argv[1:]}))")
    done = subprocess.run([PYTHON, "-c", code, *PINS], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def setup():
    if installed() == PINS:
        print(f"oracle: {VENV} has the pinned versions")
        return
    shutil.rmtree(VENV, ignore_errors=True)
    print(f"oracle: installing mergekit {PINS['mergekit']}, torch {PINS['torch']} and what they need into "
          f"{VENV} (about 6 GB, half a minute to some minutes)", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", VENV])
    if made.returncode != 0:
        sys.exit("oracle: no Python environment could be made: install python3-venv")
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "uv"], check=True)
    subprocess.run([VENV / "bin" / "uv", "pip", "install", "--quiet", "--python", PYTHON,
                    *(f"{name}=={version}" for name, version in PINS.items())], check=True)
    if installed() != PINS:
        sys.exit(f"oracle: {VENV} does not hold the pinned versions: {installed()}")


def enter():
    """Continues in .venv's interpreter."""
    if installed() != PINS:
        sys.exit("oracle: the pinned peers are not installed; run: tools/oracle.py setup")
    if pathlib.Path(sys.prefix) != VENV:
        # mergekit walks hash sets of models: the fixed seed makes what it picks repeatable.
        settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
        os.execve(PYTHON, [str(PYTHON), *sys.argv], {**os.environ, **settings})


# ---------------------------------------------------------------------------------------------------
# The cases. LAYERS stands for the depth of the models, INNER for one less.


@dataclass(frozen=True)
class Case:
    text: str
    seed: int = 0
    deep: bool = False  # golden keeps two tensors of every layer instead of several of one


def merge(method, models, base=None, dtype="float32", out=None, extra=""):
    lines = ["models:"]
    for name, parameters in models:
        lines.append(f"  - model: ./{name}")
        if parameters:
            lines.append(f"    parameters: {{{parameters}}}")
    lines.append(f"merge_method: {method}")
    for key, value in (("base_model", base and f"./{base}"), ("dtype", dtype), ("out_dtype", out)):
        if value:
            lines.append(f"{key}: {value}")
    return "\n".join(lines) + "\n" + extra


PCP = ("python", "c", "prose")


def trio(*parameters):
    return list(zip(PCP, parameters))


CASES = {
    "linear": Case(merge("linear", trio("weight: 0.4", "weight: 0.3", "weight: 0.3"))),
    "linear-sum": Case(merge("linear", trio("weight: 1.2", "weight: -0.3", "weight: 0.25"),
                             extra="parameters: {normalize: false}\n")),
    "linear-filters": Case(merge("linear", [("python", ""), ("prose", "weight: 0.35")], extra="""\
parameters:
  weight:
    - {filter: mlp, value: [0.1, 0.65, 0.3]}
    - {filter: self_attn, value: [1, 0.2]}
    - value: 0.8
"""), deep=True),
    "linear-unequal": Case(merge("linear", trio("weight: 7", "weight: -1.9", "weight: 0.013"))),
    "linear-promoted": Case(merge("linear", trio("weight: 0.5", "weight: 0.2", "weight: 0.3"), dtype=None)),
    "linear-bf16": Case(merge("linear", [("python", "weight: 0.6"), ("c", "weight: 0.7")], dtype=None)),
    "linear-bf16-mixed": Case(merge("linear", trio("weight: 0.4", "weight: 0.3", "weight: 0.3"),
                                    dtype="bfloat16")),
    "linear-out-bf16": Case(merge("linear", trio("weight: 0.4", "weight: 0.3", "weight: 0.3"),
                                  out="bfloat16")),
    "slerp": Case(merge("slerp", [("python", ""), ("prose", "")], base="python", extra="""\
parameters: {t: 0.35}
""")),
    "slerp-layers": Case("""\
slices:
  - sources:
      - {model: ./python, layer_range: [0, LAYERS]}
      - {model: ./c, layer_range: [0, LAYERS]}
merge_method: slerp
base_model: ./python
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: float32
""", deep=True),
    "slerp-tuned-base": Case(merge("slerp", [("base", ""), ("c", "")], base="c", out="float16", extra="""\
parameters: {t: [0.1, 0.9]}
"""), deep=True),
    "slerp-bf16": Case(merge("slerp", [("python", ""), ("c", "")], base="c", dtype="bfloat16", extra="""\
parameters: {t: 0.6}
""")),
    "task-arithmetic": Case(merge("task_arithmetic", trio("weight: 1", "weight: [0.2, 0.8]", "weight: -0.3"),
                                  base="base", extra="parameters: {lambda: 0.9}\n"), deep=True),
    "task-arithmetic-mean": Case(merge("task_arithmetic", trio("weight: 0.9", "weight: 0.7", "weight: 0.4"),
                                       base="base", extra="parameters: {normalize: true}\n")),
    "task-arithmetic-away": Case(merge("task_arithmetic", [("c", "weight: -1")], base="base")),
    "task-arithmetic-bf16": Case(merge("task_arithmetic", [("python", "weight: 0.7"), ("c", "weight: 0.6")],
                                       base="base", dtype=None)),
    "ties": Case(merge("ties", trio("weight: 0.5, density: 0.35", "weight: 0.3, density: 0.35",
                                    "weight: 0.2, density: 0.35"), base="base")),
    "ties-sparse": Case(merge("ties", trio("weight: 0.5, density: 0.01", "weight: 0.4, density: 0.01",
                                           "weight: 0.6, density: 0.01"), base="base")),
    "ties-full": Case(merge("ties", trio("weight: 0.5", "weight: 0.4", "weight: 0.6"), base="base", extra="""\
parameters: {density: 1.0}
""")),
    "ties-filters": Case("""\
models:
  - model: ./base
  - model: ./python
    parameters: {density: 0.5, weight: 0.5}
  - model: ./c
    parameters: {density: 0.35, weight: [0.1, 0.7]}
  - model: ./prose
    parameters:
      density: [1, 0.7, 0.1]
      weight:
        - {filter: mlp, value: 0.5}
        - value: 0.2
merge_method: ties
base_model: ./base
parameters: {normalize: false, int8_mask: true, lambda: 1.3}
dtype: float32
""", deep=True),
    "ties-rescaled": Case(merge("ties", trio("weight: 0.5, density: 0.35", "weight: 0.3, density: 0.2",
                                             "weight: 0.4, density: 0.8"), base="base",
                                extra="parameters: {rescale: true}\n")),
    "ties-negative": Case(merge("ties", trio("weight: 0.8, density: 0.35", "weight: -0.5, density: 0.35",
                                             "weight: 0.45, density: 0.6"), base="base")),
    "ties-out-bf16": Case(merge("ties", trio("weight: 0.5, density: 0.35", "weight: 0.3, density: 0.35",
                                             "weight: 0.2, density: 0.35"), base="base", out="bfloat16")),
    "ties-f16": Case(merge("ties", trio("weight: 0.5, density: 0.5", "weight: 0.3, density: 0.5",
                                        "weight: 0.2, density: 0.5"), base="base", dtype="float16")),
    "dare-linear": Case(merge("dare_linear", trio("weight: 0.6, density: 0.35", "weight: 0.4, density: 0.7",
                                                  "weight: -0.2, density: 0.35"), base="base")),
    "dare-linear-plain": Case(merge("dare_linear", trio("weight: 0.6, density: 0.35",
                                                        "weight: 0.4, density: 0.01",
                                                        "weight: 0.3, density: 1"), base="base", extra="""\
parameters: {rescale: false, normalize: true}
"""), seed=20240229),
    "dare-linear-sparse": Case(merge("dare_linear", trio("weight: 0.6, density: 0.01",
                                                         "weight: 0.5, density: 0.01",
                                                         "weight: 0.4, density: 0.01"), base="base",
                                     out="bfloat16")),
    "dare-ties": Case(merge("dare_ties", [("base", ""), ("python", "density: 0.53, weight: 0.4"),
                                          ("c", "density: 0.53, weight: 0.3"),
                                          ("prose", "density: 0.53, weight: 0.3")], base="base",
                            extra="parameters: {int8_mask: true}\n")),
    "dare-ties-plain": Case(merge("dare_ties", trio("weight: 0.6, density: [0.9, 0.35]",
                                                    "weight: -0.4, density: 0.5",
                                                    "weight: 0.5, density: 0.8"), base="base", extra="""\
parameters: {rescale: false, normalize: true, lambda: 0.5}
"""), seed=(1 << 63) + 12345, deep=True),
    "dare-ties-bf16": Case(merge("dare_ties", [("python", "weight: 0.6, density: 0.35"),
                                               ("c", "weight: 0.5, density: 0.66")], base="base",
                                 dtype="bfloat16")),
    "passthrough-stack": Case("""\
slices:
  - sources: [{model: ./python, layer_range: [0, INNER]}]
  - sources: [{model: ./c, layer_range: [0, 1]}]
  - sources:
      - model: ./prose
        layer_range: [1, LAYERS]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: -0.75}
            - value: 1.0
merge_method: passthrough
dtype: float32
""", deep=True),
    "passthrough-f16": Case(merge("passthrough", [("python", "")], dtype="float16")),
}


def recipe(case, layers):
    return case.text.replace("LAYERS", str(layers)).replace("INNER", str(layers - 1))


# ---------------------------------------------------------------------------------------------------
# The peer


@dataclass
class Merged:
    """One output tensor as mergekit planned it."""

    name: str
    method: str
    base: str | None    # folder of the base, if the method has one
    sources: list       # folders of the other inputs, in file order
    inputs: dict        # folder -> tensor in double precision
    parameters: dict    # as truth.evaluate takes them
    arithmetic: str     # the dtype mergekit computed in: "float32", "bfloat16", ...
    buffer: bool        # not floating point: copied


class Peer:
    """mergekit in this process, with ingot's masks."""

    def __init__(self, threads=1):
        import numpy as np
        import torch
        import truth
        import yaml
        from mergekit import sparsify
        from mergekit.config import MergeConfiguration
        from mergekit.io.tasks import GatherTensors, LoaderCache
        from mergekit.merge import run_merge
        from mergekit.merge_methods import generalized_task_arithmetic, task_adapter
        from mergekit.options import MergeOptions
        torch.set_num_threads(threads)
        self.np, self.torch, self.truth, self.yaml = np, torch, truth, yaml
        self.configuration, self.options, self.run = MergeConfiguration, MergeOptions, run_merge
        self.gather, self.cache = GatherTensors, LoaderCache
        self.family, self.adapter = generalized_task_arithmetic, task_adapter
        self.sparsify = sparsify
        self.stored = {}

    def merge(self, text, root, out, seed=0, **options):
        """Runs a recipe from folder `root` into `out`; what it did, by output tensor."""
        planned, state = {}, {}
        execute = self.adapter.ExecuteMergeMethodTask.execute
        thin = self.family.sparsify

        def capturing(task, tensors, **rest):
            merged = self.capture(task, tensors, root)
            planned[merged.name] = merged
            state.update(name=merged.name, position=-1)
            return execute(task, tensors, **rest)

        def counting(tensor, density, *rest, **more):
            state["position"] += 1
            state["density"] = density
            return thin(tensor, density, *rest, **more)

        def drawing(probabilities):
            stream = self.truth.stream_of(state["name"], state["position"])
            mask = self.truth.keep_mask(seed, stream, probabilities.numel(), state["density"])
            return self.torch.from_numpy(mask).reshape(probabilities.shape).to(probabilities.dtype)

        self.cache.loaders.clear()
        patch = unittest.mock.patch.object
        with contextlib.chdir(root), patch(self.adapter.ExecuteMergeMethodTask, "execute", capturing), \
                patch(self.family, "sparsify", counting), patch(self.torch, "bernoulli", drawing):
            self.run(self.configuration.model_validate(self.yaml.safe_load(text)), str(out),
                     options=self.options(quiet=True, **options), config_source=text)
        return planned

    def capture(self, task, tensors, root):
        def tensor_of(model):
            if isinstance(task.gather_tensors, self.gather):
                info = task.gather_tensors.weight_info[model]
                held = self.model(pathlib.Path(root) / model.model.path)
                for name in [info.name, *(info.aliases or []), *(info.tied_names or [])]:
                    if name in held:
                        return held[name]
            return tensors[model].to(self.torch.float64).numpy()  # rows rearranged by a tokenizer setting

        present = [model for model in task.model_order if tensors.get(model) is not None]
        method = task.method_name
        base = task.base_model if method not in ("linear", "passthrough") else None
        others = [model for model in present if model != base]
        parameters = {key: value for key, value in task.parameters.items() if key != "int8_mask"}
        for model in others:
            for key, value in task.input_parameters[model].items():
                parameters.setdefault(key, []).append(value)
        dtypes = [tensors[model].dtype for model in present]
        wide = dtypes[0]
        for dtype in dtypes[1:]:
            wide = self.torch.promote_types(wide, dtype)
        return Merged(task.output_weight.name, method, base and base.model.path,
                      [model.model.path for model in others],
                      {model.model.path: tensor_of(model) for model in present}, parameters,
                      str(wide).removeprefix("torch."), not wide.is_floating_point)

    def model(self, folder):
        """{name: float64 array} of a model folder, read once."""
        folder = pathlib.Path(folder).resolve()
        if folder not in self.stored:
            held = {}
            for path in sorted(folder.glob("*.safetensors")):
                held.update({name: values for name, (_, values) in self.truth.read_safetensors(path).items()})
            for path in sorted(folder.glob("pytorch_model*.bin")):
                for name, tensor in self.torch.load(path, weights_only=True).items():
                    held[name] = tensor.to(self.torch.float64).numpy()
            self.stored[folder] = held
        return self.stored[folder]

    def exact(self, merged, seed=0):
        """The tensor in double precision."""
        base = merged.inputs[merged.base] if merged.base else None
        return self.truth.evaluate(merged.method, merged.name, base,
                                   [merged.inputs[source] for source in merged.sources], merged.parameters,
                                   seed)


def steps_allowed(merged):
    """Units in the last place of the largest term by which two f32 evaluations may differ."""
    reduces = merged.method == "slerp" or (merged.parameters.get("rescale") and
                                           any(d < 1 for d in merged.parameters.get("density", [])))
    return 4 if reduces else 1


def slack(merged, error):
    """Further units allowed where mergekit's own error, given in such units, uses up the tolerance.

    A reduction's error is common to all elements of a tensor, so half of the tolerance is enough there.
    """
    import numpy as np
    allowed = steps_allowed(merged)
    return np.where(error > (allowed if allowed == 1 else allowed / 2), np.ceil(error), 0.0)


# ---------------------------------------------------------------------------------------------------
# Goldens


def cut(source, target, truth):
    """Writes a three-layer model of a few thousand numbers cut out of an example model."""
    import numpy as np
    hidden, inner, heads, groups, width, vocabulary, layers = 8, 12, 2, 1, 4, 24, 3
    (file,) = source.glob("*.safetensors")
    held = truth.read_safetensors(file)
    small = {}

    def take(name, rows, columns, row=0, column=0, to=None):
        dtype, values = held[name]
        part = values[row:row + rows, column:column + columns] if columns else values[row:row + rows]
        small[to or name] = (dtype, part.shape, truth.encode(np.ascontiguousarray(part).reshape(-1), dtype))

    take("model.embed_tokens.weight", vocabulary, hidden, 40)
    take("lm_head.weight", vocabulary, hidden, 40)
    take("model.norm.weight", hidden, 0)
    for layer in range(layers):
        shift = layer * 8 % 24  # a third layer out of two: other rows and columns of the first
        old, new = f"model.layers.{layer % 2}.", f"model.layers.{layer}."
        for name, rows, columns in (("self_attn.q_proj", heads * width, hidden),
                                    ("self_attn.k_proj", groups * width, hidden),
                                    ("self_attn.v_proj", groups * width, hidden),
                                    ("self_attn.o_proj", hidden, heads * width),
                                    ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden),
                                    ("mlp.down_proj", hidden, inner)):
            take(f"{old}{name}.weight", rows, columns, shift, shift, f"{new}{name}.weight")
        for name in ("input_layernorm", "post_attention_layernorm"):
            take(f"{old}{name}.weight", hidden, 0, shift, 0, f"{new}{name}.weight")
    target.mkdir(parents=True)
    truth.write_safetensors(target / "model.safetensors", small, {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config.update(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                  num_attention_heads=heads, num_key_value_heads=groups, head_dim=width,
                  vocab_size=vocabulary)
    (target / "config.json").write_text(json.dumps(config, separators=(",", ":")) + "\n")
    return layers


def keeps(name, deep, layers):
    """Whether a golden holds this tensor: a few of each kind, so that all goldens stay small."""
    if deep:
        return name.endswith(("self_attn.q_proj.weight", "mlp.down_proj.weight"))
    some = ("input_layernorm.weight", "self_attn.k_proj.weight", "mlp.up_proj.weight")
    return name == "model.embed_tokens.weight" or (".layers.1." in name and name.endswith(some))


def record():
    import truth
    import numpy as np
    truth.check()
    peer = Peer()
    shutil.rmtree(GOLDEN, ignore_errors=True)
    models = GOLDEN / "models"
    for name in ("base", *PCP):
        layers = cut(ROOT / "examples" / "models" / name, models / name, truth)
    cases = {}
    for name, case in CASES.items():
        text = recipe(case, layers)
        (GOLDEN / f"{name}.yml").write_text(text)
        out = ROOT / "build" / "oracle" / name
        shutil.rmtree(out, ignore_errors=True)
        planned = peer.merge(text, models, out, case.seed, copy_tokenizer=False)
        (file,) = out.glob("*.safetensors")
        with open(file, "rb") as stream:
            raw = stream.read()
        begin = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:begin])
        header.pop("__metadata__", None)
        golden, units, ties, off, steps = {}, [], 0, 0, 1
        rounded = {m.arithmetic for m in planned.values()} != {"float32"}
        for tensor in sorted(header):
            entry, merged = header[tensor], planned[tensor]
            value = peer.exact(merged, case.seed)
            ties += int(value.tie.sum())
            steps = max(steps, steps_allowed(merged))
            if not keeps(tensor, case.deep, layers):
                continue
            first, last = entry["data_offsets"]
            data = raw[begin + first:begin + last]
            if rounded:
                exact = np.where(value.tie, np.nan, value.result)
                golden[tensor + "#truth"] = ("F64", entry["shape"], exact.astype("<f8").tobytes())
            else:
                # The exponent of the largest term gives the unit of comparison; the high byte is the slack.
                exponent = np.maximum(value.largest.astype(np.float32).view(np.uint32) >> 23 & 0xFF, 1)
                unit = np.exp2(exponent.astype(np.float64) - 127 - 23)
                more = np.zeros(value.result.shape)
                if entry["dtype"] == "F32":
                    theirs = truth.decode(data, "F32").reshape(value.result.shape)
                    more = np.minimum(slack(merged, np.abs(theirs - value.result) / unit), 254)
                off += int((~value.tie & (more > 0)).sum())
                code = more.astype(np.uint32) << 8 | exponent
                units.append(np.where(value.tie, 0xFFFF, code).astype("<u2").reshape(-1))
            golden[tensor] = (entry["dtype"], entry["shape"], data)
        if units:
            joined = np.concatenate(units)
            golden["#units"] = ("U16", joined.shape, joined.tobytes())
        truth.write_safetensors(GOLDEN / f"{name}.safetensors", golden)
        cases[name] = {"seed": case.seed, "tensors": len(header), "rounded": rounded, "steps": steps,
                       "ties": ties, "astray": off}
        print(f"{name:22} {len(header)} tensors, {'own dtype' if rounded else 'f32'}, {ties} ties, "
              f"{off} of mergekit's elements astray")
    shutil.rmtree(ROOT / "build" / "oracle")
    files = [ROOT / "tools" / "oracle.py", ROOT / "tools" / "truth.py",
             *sorted(path for path in GOLDEN.rglob("*") if path.is_file())]
    summary = {"versions": PINS, "regenerate": "tools/oracle.py setup && tools/oracle.py record",
               "files": {str(p.relative_to(ROOT)): f"{truth.xxh64(p.read_bytes()):016x}" for p in files},
               "cases": cases}
    (GOLDEN / "oracle.json").write_text(json.dumps(summary, indent=1) + "\n")
    size = sum(p.stat().st_size for p in GOLDEN.rglob("*") if p.is_file())
    print(f"oracle: {len(cases)} cases, {size} bytes in {GOLDEN.relative_to(ROOT)}")
    if size > LIMIT:
        sys.exit(f"oracle: goldens are over {LIMIT} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup")
    commands.add_parser("record")
    live = commands.add_parser("live")
    live.add_argument("--models", type=pathlib.Path, default=ROOT / "examples" / "models",
                      help="folder with base, python, c, prose, chat, python-sharded, python-bin")
    live.add_argument("--program", type=pathlib.Path, default=ROOT / "build" / "ingot")
    live.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    if options.command == "setup":
        setup()
        return 0
    enter()
    sys.path.insert(0, str(ROOT / "tools"))
    if options.command == "record":
        record()
        return 0
    sys.path.insert(0, str(ROOT / "tests" / "interop"))
    import interop
    return interop.live(options.models.resolve(), options.program.resolve(), options.only)


if __name__ == "__main__":
    sys.exit(main())

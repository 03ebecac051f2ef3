#!/usr/bin/env python3
"""Runs the real mergekit and holds ingot against it.

  oracle.py setup             a Python environment of its own (.venv) with the peers at pinned versions
  oracle.py record            runs mergekit over the recipes of cases.py on small models and writes
                              tests/golden/oracle, which the ctest label `golden` compares with
  oracle.py live              runs mergekit and build/ingot side by side on whole models, compares tensors,
                              errors against double precision, and the folders in transformers

The random masks of mergekit's dare and della methods are replaced by the ones ingot's contract defines
(truth.py), so that random methods can be compared element by element. Methods of ingot alone are compared with
truth.py; mergekit's planner reads their recipes.
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

import cases

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PINS = {"torch": "2.15.0", "mergekit": "0.1.5", "transformers": "5.23.0", "peft": "0.21.2",
        "safetensors": "0.8.0", "numpy": "2.4.6"}
GOLDEN = ROOT / "tests" / "golden" / "oracle"
PENDING = ROOT / "tests" / "golden" / "pending.txt"
LIMIT = 420_000  # bytes of committed goldens


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
    aborted: bool = False  # mergekit gave up on this tensor: the truth was written


# What only ingot has: parameters as mergekit's planner is told of them, (name, type, scope, default ...).
OWN = {
    "consensus": ("required", [("weight", float, "NON_BASE", 1.0), ("threshold", float, "SHARED", 0.4),
                               ("least", int, "SHARED", 2), ("lambda", float, "SHARED", 1.0)]),
    "average": ("ignored", [("schedule", str, "SHARED", "uniform"), ("alpha", float | None, "SHARED", None),
                            ("anchor", bool, "SHARED", False), ("window", int | None, "SHARED", None),
                            ("extrapolate", float, "SHARED", 0.0)]),
}
BASELESS = {"linear", "passthrough", "karcher", "average"}  # base_model is one input more, or none
TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}


class Peer:
    """mergekit in this process, with ingot's masks and ingot's choice among equals."""

    def __init__(self, threads=1):
        import numpy as np
        import torch
        import truth
        import yaml
        from mergekit import sparsify
        from mergekit.config import MergeConfiguration
        from mergekit.io.tasks import GatherTensors, LoaderCache
        from mergekit.merge import run_merge
        from mergekit.merge_methods import base, generalized_task_arithmetic, registry, sce, task_adapter
        from mergekit.options import MergeOptions
        torch.set_num_threads(threads)
        self.np, self.torch, self.truth, self.yaml = np, torch, truth, yaml
        self.configuration, self.options, self.run = MergeConfiguration, MergeOptions, run_merge
        self.gather, self.cache = GatherTensors, LoaderCache
        self.family, self.adapter = generalized_task_arithmetic, task_adapter
        self.sparsify, self.sce = sparsify, sce
        self.stored = {}
        for name, (policy, parameters) in OWN.items():
            registry.register(type(name, (base.GroupMergeMethod,), {
                "merge_group": None, "spec": base.MergeMethodSpec(name, tuple(
                    base.ParameterSpec(key, kind, base.ParameterScope[scope], default=default)
                    for key, kind, scope, default in parameters),
                    base.InputContract(base=base.BasePolicy(policy)))})())

    def merge(self, text, root, out, seed=0, abort=False, **options):
        """Runs a recipe from folder `root` into `out`; what it did, by output tensor.

        abort: mergekit may give up on a tensor.
        """
        planned, state = {}, {}
        execute = self.adapter.ExecuteMergeMethodTask.execute
        thin, mask_of = self.family.sparsify, self.sce.sce_mask

        def capturing(task, tensors, **rest):
            merged = self.capture(task, tensors, root)
            planned[merged.name] = merged
            state.update(merged=merged, position=-1)
            if merged.method not in OWN:
                try:
                    return execute(task, tensors, **rest)
                except (RuntimeError, ValueError) as error:
                    if not abort:
                        raise
                    print(f"    {merged.name}: mergekit: {error}")
                    merged.aborted = True
            exact = self.torch.from_numpy(self.exact(merged, seed).result)
            return exact.to(getattr(self.torch, merged.arithmetic))

        def counting(tensor, density, *rest, **more):
            state["position"] += 1
            state["density"] = density
            return thin(tensor, density, *rest, **more)

        def drawing(probabilities):
            merged, position = state["merged"], state["position"]
            stream, density = self.truth.stream_of(merged.name, position), state["density"]
            if merged.method.startswith("della"):
                base, other = (merged.inputs[m].astype(np.float32)
                               for m in (merged.base, merged.sources[position]))
                epsilon = merged.parameters["epsilon"][position]
                self.compare_probabilities(probabilities, other - base, density, epsilon)
                mask = self.truth.ranked_mask(seed, stream, other - base, density, epsilon)
            else:
                mask = self.truth.keep_mask(seed, stream, probabilities.numel(), density)
            return self.torch.from_numpy(mask).reshape(probabilities.shape).to(probabilities.dtype)

        def choosing(deltas, top, dtype=None):
            """sce's selection, with ingot's choice where mergekit's hangs on a rounding."""
            theirs = mask_of(deltas, top, dtype)
            merged = state["merged"]
            if merged.arithmetic not in ("float32", "float64"):
                return theirs
            base = merged.inputs[merged.base]
            ours, keys = self.truth.sce_mask([merged.inputs[m] - base for m in merged.sources], top)
            apart = ours != theirs.numpy().astype(bool)
            if apart.any() and ours.any() and not ours.all():
                edge = keys[ours].min()
                if (np.abs(keys[apart] - edge) <= 1e-5 * edge).all():
                    return self.torch.from_numpy(ours).to(theirs.dtype)
            return theirs

        np = self.np
        self.cache.loaders.clear()
        patch = unittest.mock.patch.object
        with contextlib.chdir(root), patch(self.adapter.ExecuteMergeMethodTask, "execute", capturing), \
                patch(self.family, "sparsify", counting), patch(self.torch, "bernoulli", drawing), \
                patch(self.sce, "sce_mask", choosing):
            self.run(self.configuration.model_validate(self.yaml.safe_load(text)), str(out),
                     options=self.options(quiet=True, **options), config_source=text)
        return planned

    def compare_probabilities(self, probabilities, delta, density, epsilon):
        """mergekit's keep probabilities of della are those of the thresholds that ingot draws with."""
        length = delta.shape[-1] if delta.ndim else 1
        if length == 1 or probabilities.dtype not in (self.torch.float32, self.torch.float64):
            return  # 0 / 0 there; or ranks that are rounded
        theirs = self.np.sort(probabilities.double().numpy().reshape(-1, length))
        ours = self.np.sort(self.truth.ranked_thresholds(delta, density, epsilon).reshape(-1, length)) * 2.0**-48
        if self.np.abs(theirs - ours).max() > 1e-6:
            raise AssertionError("della: ranks are not mergekit's")

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
        base = task.base_model if method not in BASELESS else None
        others = [model for model in present if model != base]
        parameters = {key: value for key, value in task.parameters.items()
                      if key != "int8_mask" and value is not None}
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


REORDERS = {"ram", "nearswap", "average"}  # roundings fall elsewhere than in mergekit, or it has none
REDUCES = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce", "ramplus_tl", "consensus"}


def steps_allowed(merged):
    """Units in the last place of the largest term by which two f32 evaluations may differ."""
    reduces = merged.method in REDUCES or (merged.parameters.get("rescale") and
                                           any(d < 1 for d in merged.parameters.get("density", [])))
    return 4 if reduces else 2 if merged.method in REORDERS else 1


def declared(text, merged, yaml):
    """The type a recipe asks for, as safetensors calls it. mergekit writes f32 for some methods all the same."""
    recipe = yaml.safe_load(text)
    return TYPES[recipe.get("out_dtype") or recipe.get("dtype") or merged.arithmetic]


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


def write_edges(folder, truth):
    """The models of cases.edges() as folders edge-NAME."""
    import numpy as np
    for model, tensors in cases.edges().items():
        held = {}
        for name, rows in tensors.items():
            values = np.array(rows)
            values = values.reshape(-1) if "norm" in name else values
            held[name] = ("F32", values.shape, truth.encode(values, "F32"))
        target = folder / f"edge-{model}"
        target.mkdir(parents=True)
        truth.write_safetensors(target / "model.safetensors", held, {"format": "pt"})
        config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "float32", "hidden_size": 4,
                  "intermediate_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1,
                  "num_key_value_heads": 1, "head_dim": 1, "vocab_size": 6, "tie_word_embeddings": False}
        (target / "config.json").write_text(json.dumps(config, separators=(",", ":")) + "\n")


def is_edge(case):
    return "./edge-" in case.text


def keeps(name, case):
    """Whether a golden holds this tensor: a few of each kind, so that all goldens stay small."""
    if is_edge(case):
        return True
    if case.deep:
        ends = ("self_attn.q_proj.weight", "mlp.down_proj.weight")
        return name.endswith(ends) and not (case.lean and ".layers.1." in name)
    some = ("input_layernorm.weight", "self_attn.k_proj.weight", "mlp.up_proj.weight")
    return (name == "model.embed_tokens.weight" and not case.lean) or (".layers.1." in name and name.endswith(some))


def in_double(peer, text, models, out, case):
    """What mergekit gives in f64, by tensor: the formula without the rounding of f32."""
    recipe = peer.yaml.safe_load(text)
    recipe.pop("out_dtype", None)
    recipe["dtype"] = "float64"
    planned = peer.merge(peer.yaml.safe_dump(recipe, sort_keys=False), models, out, case.seed, bool(case.ours),
                         copy_tokenizer=False)
    (file,) = out.glob("*.safetensors")
    return planned, {name: values for name, (_, values) in peer.truth.read_safetensors(file).items()}


# mergekit's factors are f32 here, whatever the inputs are.
F32_INSIDE = {"ramplus_tl", "dare_linear", "dare_ties", "della", "della_linear"}


class Disagreement(Exception):
    """mergekit and truth.py differ where no case says so, or do not where one says so."""


def record_case(name, case, peer, models, layers):
    """Writes the golden of one recipe; its entry of the summary."""
    import numpy as np
    truth, text = peer.truth, cases.recipe(case, layers)
    (GOLDEN / f"{name}.yml").write_text(text)
    out, out64 = (ROOT / "build" / "oracle" / folder for folder in (name, f"{name}-f64"))
    for folder in (out, out64):
        shutil.rmtree(folder, ignore_errors=True)
    planned = peer.merge(text, models, out, case.seed, bool(case.ours), copy_tokenizer=False)
    (file,) = out.glob("*.safetensors")
    theirs = truth.read_safetensors(file)
    (method,) = {m.method for m in planned.values()}
    planned64, double = in_double(peer, text, models, out64, case)
    golden, units = {}, []
    counts = {"ties": 0, "astray": 0, "overruled": 0}
    steps, furthest = 1, 0.0
    rounded = {m.arithmetic for m in planned.values()} != {"float32"}
    for tensor in sorted(theirs):
        merged, (_, peers) = planned[tensor], theirs[tensor]
        value, dtype = peer.exact(merged, case.seed), declared(text, merged, peer.yaml)
        sure = ~value.tie
        counts["ties"] += int(value.tie.sum())
        steps = max(steps, steps_allowed(merged))
        close = 1e-6 if method in F32_INSIDE else 1e-9
        apart = np.abs(double[tensor] - value.result) / np.maximum(value.largest, 2.0**-126)
        other = sure & ~(apart <= close) | merged.aborted | planned64[tensor].aborted
        furthest = max(furthest, float(np.max(np.where(sure & ~other, apart, 0.0), initial=0.0)))
        exponent = np.maximum(value.largest.astype(np.float32).view(np.uint32) >> 23 & 0xFF, 1)
        unit = np.exp2(exponent.astype(np.float64) - 127 - 23)
        if not rounded:
            wide = unit * 254
            if dtype != "F32":  # a step and a half of the type
                bits = {"BF16": 7, "F16": 10}[dtype]
                wide = 1.5 * np.exp2(np.floor(np.log2(np.maximum(np.abs(value.result), 2.0**-14))) - bits)
            other |= sure & ~(np.abs(peers - value.result) <= wide)
        if other.any() and not case.ours:
            at = tuple(int(i) for i in np.argwhere(other)[0])
            raise Disagreement(f"{name}: {tensor}{list(at)}: mergekit gives {peers[at]!r} and in f64 "
                     f"{double[tensor][at]!r}, truth.py {value.result[at]!r} ({int(other.sum())} elements)")
        counts["overruled"] += int(other.sum())
        if not keeps(tensor, case):
            continue
        if rounded:
            exact = np.where(value.tie, np.nan, value.result)
            golden[tensor + "#truth"] = ("F64", exact.shape, exact.astype("<f8").tobytes())
        else:
            # The exponent of the largest term gives the unit of comparison; the high byte is the slack.
            peers = np.where(other, truth.rounded(value.result, dtype), peers)
            more = np.zeros(value.result.shape)
            if dtype == "F32":
                more = np.where(other, 0, np.minimum(slack(merged, np.abs(peers - value.result) / unit), 254))
            counts["astray"] += int((sure & (more > 0)).sum())
            code = more.astype(np.uint32) << 8 | exponent
            units.append(np.where(value.tie, 0xFFFF, code).astype("<u2").reshape(-1))
        golden[tensor] = (dtype, peers.shape, truth.encode(peers, dtype))
    if bool(case.ours) != (counts["overruled"] > 0):
        raise Disagreement(f"{name} says that results differ from mergekit's ({case.ours}), and none does")
    if units:
        joined = np.concatenate(units)
        golden["#units"] = ("U16", joined.shape, joined.tobytes())
    truth.write_safetensors(GOLDEN / f"{name}.safetensors", golden)
    print(f"{name:24} {len(theirs):2} tensors, {'own dtype' if rounded else 'f32'}, {furthest:.0e} from mergekit's "
          f"f64, {counts['ties']} ties, {counts['astray']} astray, {counts['overruled']} overruled", flush=True)
    return {"method": method, "seed": case.seed, "tensors": len(theirs), "rounded": rounded, "steps": steps, **counts}


def record(only):
    import truth
    truth.check()
    peer = Peer()
    if not only:
        shutil.rmtree(GOLDEN, ignore_errors=True)
    models = GOLDEN / "models"
    shutil.rmtree(models, ignore_errors=True)
    for name in ("base", *cases.PCP):
        layers = cut(ROOT / "examples" / "models" / name, models / name, truth)
    write_edges(models, truth)
    chosen = {name: case for name, case in cases.CASES.items() if only in name}
    found, wrong = {}, []
    for name, case in chosen.items():
        try:
            found[name] = record_case(name, case, peer, models, layers)
        except Disagreement as error:
            wrong.append(str(error))
    shutil.rmtree(ROOT / "build" / "oracle")
    if wrong:
        sys.exit("oracle: " + "\noracle: ".join(wrong))
    if only:
        print("oracle: a part of the cases: tests/golden/oracle/oracle.json is as it was")
        return
    files = [*(ROOT / "tools" / f"{name}.py" for name in ("cases", "oracle", "truth")),
             *sorted(path for path in GOLDEN.rglob("*") if path.is_file())]
    summary = {"versions": PINS, "regenerate": "tools/oracle.py setup && tools/oracle.py record",
               "files": {str(p.relative_to(ROOT)): f"{truth.xxh64(p.read_bytes()):016x}" for p in files},
               "cases": found}
    (GOLDEN / "oracle.json").write_text(json.dumps(summary, indent=1) + "\n")
    size = sum(p.stat().st_size for p in GOLDEN.rglob("*") if p.is_file())
    print(f"oracle: {len(found)} cases, {size} bytes in {GOLDEN.relative_to(ROOT)}")
    if size > LIMIT:
        sys.exit(f"oracle: goldens are over {LIMIT} bytes")


def pending():
    """Methods that have goldens and that the engine does not have yet."""
    return set(PENDING.read_text().split()) if PENDING.exists() else set()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup")
    recording = commands.add_parser("record")
    recording.add_argument("--only", default="", help="cases whose name contains this, to try them")
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
        record(options.only)
        return 0
    sys.path.insert(0, str(ROOT / "tests" / "interop"))
    import interop
    return interop.live(options.models.resolve(), options.program.resolve(), options.only)


if __name__ == "__main__":
    sys.exit(main())

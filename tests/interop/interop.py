"""Merges whole models with mergekit and with ingot and compares: tensors, errors, folders, logits.

Run by `tools/oracle.py live`, in the environment that `tools/oracle.py setup` makes.
"""

import json
import logging
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import oracle
import torch
import transformers
import truth
from cases import CASES, Case, merge, recipe

# What mergekit's ordinary recipes do beyond CASES: containers, vocabularies, tied heads.
EXTRA = {
    "containers": Case(merge("linear", [("python-sharded", "weight: 0.5"), ("python-bin", "weight: 0.2"),
                                        ("c", "weight: 0.3")])),
    "task-arithmetic-sharded": Case(merge("task_arithmetic", [("python-sharded", "weight: 0.7"),
                                                              ("prose", "weight: 0.4")], base="base",
                                          dtype="bfloat16")),
    "tokenizer-base": Case(merge("linear", [("python", "weight: 0.4"), ("chat", "weight: 0.7")], base="base",
                                 extra="tokenizer_source: base\nparameters: {weight: 0.1}\n")),
    "tokenizer-chat": Case(merge("task_arithmetic", [("chat", "weight: 0.8"), ("c", "weight: 0.4")],
                                 base="base", extra="tokenizer_source: ./chat\n")),
    "chat": Case(merge("slerp", [("chat", ""), ("chat-python", "")], base="chat", extra="parameters: {t: 0.4}\n")),
    "tied": Case(merge("ties", [("tied-python", "weight: 0.7, density: 0.5"),
                                ("tied-c", "weight: 0.5, density: 0.5")], base="tied")),
    "tied-beside-untied": Case(merge("linear", [("tied-python", "weight: 0.7"), ("c", "weight: 0.3")],
                                     dtype="bfloat16")),
}

TEXTS = [
    "def read(path):\n    with open(path) as file:\n        return file.read()\n",
    "#include <stdio.h>\n\nint main(void) {\n  printf(\"hello\\n\");\n  return 0;\n}\n",
    "The program is distributed in the hope that it will be useful, but without any warranty.",
]


def tied(source, target):
    """A copy of a model without its own head."""
    target.mkdir()
    for path in source.glob("*"):
        if path.suffix != ".safetensors":
            shutil.copy(path, target)
    held = {}
    for path in source.glob("*.safetensors"):
        for name, (dtype, values) in truth.read_safetensors(path).items():
            if name != "lm_head.weight":
                held[name] = (dtype, values.shape, truth.encode(values.reshape(-1), dtype))
    truth.write_safetensors(target / "model.safetensors", held, {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (target / "config.json").write_text(json.dumps(config, indent=2))


def grafted(models, target):
    """The chat model with the python model's task vector added: a second model of its vocabulary."""
    target.mkdir()
    for path in (models / "chat").glob("*"):
        if path.suffix != ".safetensors":
            shutil.copy(path, target)
    chat, python, base = (read(models / name) for name in ("chat", "python", "base"))
    held = {}
    for name, (dtype, values) in chat.items():
        rows = base[name][1].shape[0]
        values[:rows] += python[name][1] - base[name][1]
        held[name] = (dtype, values.shape, truth.encode(values.reshape(-1), dtype))
    truth.write_safetensors(target / "model.safetensors", held, {"format": "pt"})


def stage(models, scratch):
    """A folder with the models and those this test derives from them."""
    root = scratch / "models"
    root.mkdir()
    for path in models.iterdir():
        if (path / "config.json").exists():
            (root / path.name).symlink_to(path)
    for name, source in (("tied", "base"), ("tied-python", "python"), ("tied-c", "c")):
        tied(models / source, root / name)
    grafted(models, root / "chat-python")
    return root


def read(folder):
    """{name: (dtype, float64 array)} of the safetensors of a folder."""
    held = {}
    for path in sorted(folder.glob("*.safetensors")):
        held.update(truth.read_safetensors(path))
    return held


def ordinal(values, dtype):
    """Places of 16-bit floats on the line of representable numbers."""
    code = np.frombuffer(truth.encode(values.reshape(-1), dtype), "<u2").astype(np.int64)
    return np.where(code & 0x8000, -(code & 0x7FFF), code).reshape(values.shape)


class Row:
    """What a recipe's comparison found."""

    def __init__(self, name):
        self.name, self.failures = name, []
        self.tensors = self.elements = self.unequal = self.astray = self.ties = self.ties_unequal = 0
        self.ulp, self.allowed, self.ratio = 0.0, 0, 0.0
        self.errors = [0.0, 0.0]  # summed squares: ingot, mergekit
        self.arithmetic, self.loss, self.agree = set(), (0.0, 0.0), 0.0

    def fail(self, text):
        self.failures.append(text)

    def tensor(self, merged, own, peer, value, declared):
        (own_dtype, ours), (peer_dtype, theirs) = own, peer
        name = merged.name
        if peer_dtype != declared and not merged.buffer:  # arcee_fusion, ramplus_tl: f32 whatever the recipe says
            peer_dtype, theirs = declared, truth.rounded(theirs, declared)
        if own_dtype != peer_dtype or ours.shape != theirs.shape:
            self.fail(f"{name}: mergekit wrote {peer_dtype}{list(theirs.shape)}, ingot {own_dtype}{list(ours.shape)}")
            return
        self.tensors += 1
        self.elements += ours.size
        self.arithmetic.add(merged.arithmetic)
        if merged.buffer:
            if not np.array_equal(ours, theirs):
                self.fail(f"{name}: a copied buffer differs")
            return
        sure = ~value.tie
        unequal = ours != theirs
        self.unequal += int((unequal & sure).sum())
        self.ties += int(value.tie.sum())
        ours_off, theirs_off = np.abs(ours - value.result), np.abs(theirs - value.result)
        unit = np.exp2(np.floor(np.log2(np.maximum(value.largest, 2.0**-126))) - 23)
        if merged.arithmetic == "float32":
            allowed = oracle.steps_allowed(merged)
            self.allowed = max(self.allowed, allowed)
            apart = np.abs(ours - theirs) / unit
            if own_dtype == "F32":
                wrong = unequal & (apart > allowed)
                self.ulp = max(self.ulp, float((apart * sure).max()))
            else:
                places = [ordinal(x, own_dtype) for x in (ours, theirs, truth.rounded(value.result, own_dtype))]
                wrong = unequal & (np.abs(places[0] - places[1]) > 1)
                if (unequal & sure).mean() > 0.01:
                    self.fail(f"{name}: {int(unequal.sum())} of {ours.size} elements differ after rounding")
            # Where mergekit's own error uses up the tolerance, so many more units are allowed.
            if own_dtype == "F32":
                near = apart <= allowed + oracle.slack(merged, theirs_off / unit)
            else:
                near = (np.abs(places[0] - places[2]) <= 1) & (np.abs(places[1] - places[2]) > 1)
            astray = wrong & sure & near
            self.astray += int(astray.sum())
            bad = wrong & sure & ~astray
            if bad.any():
                at = tuple(int(i) for i in np.argwhere(bad)[0])
                self.fail(f"{name}{list(at)}: mergekit {theirs[at]!r}, ingot {ours[at]!r}, exact "
                          f"{value.result[at]!r}: {apart[at]:.1f} ulp of the largest term, {allowed} allowed "
                          f"({int(bad.sum())} elements)")
            # At a tie ingot decides as its contract says: as the peer did by chance, or as the truth does.
            tied_wrong = value.tie & wrong
            self.ties_unequal += int(tied_wrong.sum())
            # Where a decision hangs on a rounding of the measured numbers themselves, either way is right.
            off = ours_off if value.other is None else np.minimum(ours_off, np.abs(ours - value.other))
            lost = tied_wrong & (off > np.maximum(4 * unit, np.abs(value.result) * 2.0**-8))
            if lost.any():
                at = tuple(int(i) for i in np.argwhere(lost)[0])
                self.fail(f"{name}{list(at)}: a tie decided neither as mergekit nor as the contract: mergekit "
                          f"{theirs[at]!r}, ingot {ours[at]!r}, exact {value.result[at]!r}")
        if merged.method in oracle.OWN:
            return  # the peer wrote the truth, rounded once
        squares = [float((off[sure] ** 2).sum()) for off in (ours_off, theirs_off)]
        self.errors = [total + square for total, square in zip(self.errors, squares)]
        if squares[0] > 0:
            ratio = np.sqrt(squares[0] / squares[1]) if squares[1] > 0 else np.inf
            self.ratio = max(self.ratio, float(ratio))
            if ratio > 1.01:
                self.fail(f"{name}: RMS error {ratio:.4f} times mergekit's")


class Overheard(logging.Handler):
    """Collects what transformers says at warning level or above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


def load(folder):
    """(model, tokenizer, everything that was warned of)"""
    handler = Overheard()
    loggers = [logging.getLogger(name) for name in ("transformers", "")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            batch = tokenizer(TEXTS[0][:16], return_tensors="pt")
            model.eval().generate(**batch, do_sample=False, max_new_tokens=4)
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    said = handler.said + [str(w.message) for w in caught]
    said += [f"{kind}: {sorted(map(str, names))}" for kind, names in report.items() if names]
    return model, tokenizer, said


def speak(model, tokenizer):
    """(mean loss, most likely next tokens) over TEXTS."""
    losses, best = [], []
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt").input_ids
            out = model(ids, labels=ids)
            losses.append(float(out.loss))
            best.append(out.logits[0].argmax(-1))
    return float(np.mean(losses)), torch.cat(best)


def check_folder(row, same, out, peer, donor):
    """Whether `out` serves: config, tokenizer, companions, loading without a word, logits as the peer's."""
    for name in ("config.json", "README.md", "ingot.json", "generation_config.json", "tokenizer.json",
                 "tokenizer_config.json"):
        if not (out / name).exists():
            row.fail(f"{name} is absent from the output")
    if not any(out.glob("*.yml")):
        row.fail("no recipe in the output")
    config = json.loads((out / "config.json").read_text())
    peers = json.loads((peer / "config.json").read_text())
    held = read(out)
    deepest = max(int(m[1]) for m in (re.search(r"\.layers\.(\d+)\.", name) for name in held) if m) + 1
    facts = {
        "num_hidden_layers": deepest,
        "vocab_size": held["model.embed_tokens.weight"][1].shape[0],
        "tie_word_embeddings": "lm_head.weight" not in held,
        "dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[
            held["model.embed_tokens.weight"][0]],
    }
    for key, fact in facts.items():
        said = config.get(key, config.get("torch_dtype") if key == "dtype" else None)
        if said != fact:
            row.fail(f"config.json says {key} {said!r}, the weights say {fact!r}")
    ignored = set(facts) | {"transformers_version", "torch_dtype", "_name_or_path"}
    for key in sorted((set(config) | set(peers)) - ignored):
        if config.get(key) != peers.get(key):
            row.fail(f"config.json has {key}: {config.get(key)!r}, mergekit's {peers.get(key)!r}")
    if (donor / "chat_template.jinja").exists() and not (out / "chat_template.jinja").exists():
        row.fail("the donor's chat_template.jinja is absent from the output")
    if any(held[name][1].shape[0] != facts["vocab_size"] for name in ("lm_head.weight",) if name in held):
        row.fail("the head and the embedding differ in height")

    model, tokenizer, said = load(out)
    for text in said:
        row.fail(f"transformers, loading the folder: {text}")
    if len(tokenizer) > facts["vocab_size"]:
        row.fail(f"the tokenizer has {len(tokenizer)} tokens, the embedding {facts['vocab_size']} rows")
    theirs, their_tokenizer, _ = load(peer)
    if tokenizer.get_vocab() != their_tokenizer.get_vocab():
        row.fail("the tokenizer's vocabulary is not mergekit's")
    loss, best = speak(model, tokenizer)
    their_loss, their_best = speak(theirs, their_tokenizer)
    row.loss, row.agree = (loss, their_loss), float((best == their_best).float().mean())
    close = 1e-4 if row.arithmetic == {"float32"} and not row.ties else 0.05
    if not same:
        return  # the tensors differ from mergekit's for a reason that the case gives
    if abs(loss - their_loss) > close * their_loss or not np.isfinite(loss):
        row.fail(f"loss {loss:.5f} on sample texts, mergekit's folder {their_loss:.5f}")
    if row.agree < (0.98 if close < 0.01 else 0.8):
        row.fail(f"the most likely next token agrees with mergekit's folder in {row.agree:.1%} of places only")


def compare(name, text, seed, root, program, scratch, peer):
    row = Row(name)
    theirs, ours = scratch / "mergekit", scratch / "ingot"
    for folder in (theirs, ours):
        shutil.rmtree(folder, ignore_errors=True)
    (scratch / "recipe.yml").write_text(text)
    planned = peer.merge(text, root, theirs, seed)
    done = subprocess.run([program, "merge", scratch / "recipe.yml", ours, "--seed", str(seed), "--quiet",
                           "--no-sync"], cwd=root, capture_output=True, text=True)
    if done.returncode != 0:
        row.fail(f"ingot merge: {done.stderr.strip() or done.stdout.strip()}")
        return row
    check = subprocess.run([program, "verify", ours, "--quiet"], cwd=root, capture_output=True, text=True)
    if check.returncode != 0:
        row.fail(f"ingot verify: {check.stdout.strip()} {check.stderr.strip()}")
    own, other = read(ours), read(theirs)
    for missing in sorted(set(other) - set(own)):
        row.fail(f"{missing}: mergekit writes it, ingot does not")
    for extra in sorted(set(own) - set(other)):
        row.fail(f"{extra}: ingot writes it, mergekit does not")
    for tensor in sorted(set(own) & set(other)):
        row.tensor(planned[tensor], own[tensor], other[tensor], peer.exact(planned[tensor], seed),
                   oracle.declared(text, planned[tensor], peer.yaml))
    base = peer.yaml.safe_load(text).get("base_model")
    donor = root / base if base else theirs
    check_folder(row, name not in CASES or not CASES[name].ours, ours, theirs, donor)
    return row


def header():
    return ("recipe", "tensors", "elements", "type", "unequal", "max ulp", "allowed", "astray", "ties", "other",
            "RMS ingot", "RMS mergekit", "worst ratio", "loss", "mergekit", "same token")


def cells(row):
    rms = [np.sqrt(e / max(row.elements, 1)) for e in row.errors]
    types = "/".join(sorted({"float32": "f32", "bfloat16": "bf16", "float16": "f16"}.get(a, a)
                            for a in row.arithmetic))
    exact = "float32" in row.arithmetic
    return (row.name, row.tensors, row.elements, types, row.unequal if exact else "-",
            f"{row.ulp:.2f}" if exact else "-", row.allowed if exact else "-", row.astray if exact else "-",
            row.ties, row.ties_unequal if exact else "-", f"{rms[0]:.3g}", f"{rms[1]:.3g}", f"{row.ratio:.4f}",
            f"{row.loss[0]:.4f}", f"{row.loss[1]:.4f}", f"{row.agree:.1%}")


def table(rows):
    lines = [header(), tuple("-" * 3 for _ in header())] + [cells(row) for row in rows]
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(header()))]
    for line in lines:
        yield "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(line, widths)) + " |"


def cases(models, root, layers, peer):
    """(name, recipe text, seed, folder its paths start at)"""
    waiting = oracle.pending()
    for name, case in {**CASES, **EXTRA}.items():
        text = recipe(case, layers)
        if oracle.is_edge(case):
            continue  # models without a tokenizer: goldens only
        if (method := peer.yaml.safe_load(text)["merge_method"]) in waiting:
            print(f"{name}: not run: {method} is in {oracle.PENDING.name}")
            continue
        yield name, text, case.seed, root
    for folder in (oracle.ROOT / "examples" / "recipes", models / "recipes"):
        for path in sorted(folder.glob("*.yml")):
            text = path.read_text()
            named = set(re.findall(r"(?:model|base_model):\s*[\"']?([^\s\"',}]+)", text))
            for start in (root, models, models.parent, oracle.ROOT):
                if all((start / name).exists() for name in named):
                    yield f"{path.parent.parent.name}/{path.stem}", text, 0, start
                    break
            else:
                print(f"{path}: not run: its models are not in {models}")


def live(models, program, only):
    truth.check()
    transformers.logging.set_verbosity_warning()
    transformers.logging.disable_progress_bar()
    started, rows = time.time(), []
    peer = oracle.Peer(threads=2)
    print(f"{platform.machine()} · python {platform.python_version()} · " +
          " · ".join(f"{name} {version}" for name, version in oracle.PINS.items()))
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        root = stage(models, scratch)
        layers = json.loads((models / "base" / "config.json").read_text())["num_hidden_layers"]
        for name, text, seed, start in cases(models, root, layers, peer):
            if only in name:
                row = compare(name, text, seed, start, program, scratch, peer)
                rows.append(row)
                print(f"{'FAILED' if row.failures else 'ok':7} {name}", flush=True)
                for failure in row.failures[:12]:
                    print(f"        {failure}")
    print()
    for line in table(rows):
        print(line)
    failed = [row.name for row in rows if row.failures]
    ties = sum(row.ties for row in rows)
    print(f"\n{len(rows) - len(failed)} passed, {len(failed)} failed, in {time.time() - started:.0f} s; "
          f"{sum(row.elements for row in rows)} elements, {ties} rounding ties")
    return 1 if failed or not rows else 0

#!/usr/bin/env python3
"""Holds `ingot bake` against PEFT on the example adapters and on models made for it.

  bakes.py record            PEFT's merged weights of the example adapters, some rows of each changed tensor,
                             into tests/golden/bakes, which the ctest label `golden` compares with
  bakes.py live              PEFT and build/ingot side by side: tensors, logits and greedy text of whole
                             models of several architectures, with every kind of adapter

Needs the environment of oracle.py (oracle.py setup).
"""

import argparse
import json
import pathlib
import shutil
import sys

import oracle

GOLDEN = oracle.ROOT / "tests" / "golden" / "bakes"
ROWS = 3  # of every changed tensor: enough to tell a wrong factor, scaling, layout or row
LIMIT = 300_000  # bytes of committed goldens

# name -> adapters in order
SETS = {name: [name] for name in ("c-ia3", "c-lora", "c-lora-r16", "chat-lora", "prose-lora",
                                  "prose-lora-patterns", "python-dora", "python-ia3", "python-lora")}
SETS |= {"two": ["python-lora", "prose-lora"], "lora-dora": ["c-lora", "python-dora"],
         "dora-lora": ["python-dora", "c-lora"]}


def record():
    import peft
    import torch
    import transformers
    import truth
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    examples = oracle.ROOT / "examples"
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    base = examples / "models" / "base"
    stored = {}
    for name, adapters in SETS.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        if "chat-lora" in adapters:  # three tokens more
            model.resize_token_embeddings(512, mean_resizing=False)
        wrapped = peft.PeftModel.from_pretrained(model, examples / "adapters" / adapters[0], adapter_name="a0")
        for i, other in enumerate(adapters[1:], 1):
            wrapped.load_adapter(examples / "adapters" / other, adapter_name=f"a{i}")
        wrapped.base_model.set_adapter([f"a{i}" for i in range(len(adapters))])
        merged = wrapped.merge_and_unload(adapter_names=[f"a{i}" for i in range(len(adapters))])
        tensors = {}
        for key, value in merged.state_dict().items():
            if key in before and value.shape == before[key].shape and torch.equal(value, before[key]):
                continue
            # The last rows, where a vocabulary has grown.
            rows = value[-ROWS:] if value.ndim == 2 else value
            tensors[key] = ("F32", list(rows.shape), rows.contiguous().numpy().astype("<f4").tobytes())
        truth.write_safetensors(GOLDEN / f"{name}.safetensors", tensors)
        stored[name] = {"adapters": adapters, "tensors": len(tensors)}
        print(f"{name:22} {len(tensors)} tensors changed")
    files = [pathlib.Path(__file__).resolve(), *sorted(GOLDEN.glob("*.safetensors")),
             *sorted(p for p in (examples / "adapters").rglob("*") if p.is_file())]
    summary = {"versions": {n: oracle.PINS[n] for n in ("peft", "torch", "transformers")},
               "regenerate": "tools/oracle.py setup && tools/bakes.py record", "rows": ROWS,
               "files": {str(p.relative_to(oracle.ROOT)): f"{truth.xxh64(p.read_bytes()):016x}" for p in files},
               "cases": stored}
    (GOLDEN / "bakes.json").write_text(json.dumps(summary, indent=1) + "\n")
    size = sum(p.stat().st_size for p in GOLDEN.iterdir())
    print(f"bakes: {len(stored)} cases, {size} bytes in {GOLDEN.relative_to(oracle.ROOT)}")
    if size > LIMIT:
        sys.exit(f"bakes: goldens are over {LIMIT} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record")
    live = commands.add_parser("live")
    live.add_argument("--program", type=pathlib.Path, default=oracle.ROOT / "build" / "ingot")
    live.add_argument("--only", default="", help="cases whose name this expression finds")
    options = parser.parse_args()
    oracle.enter()
    if options.command == "record":
        record()
        return 0
    sys.path.insert(0, str(oracle.ROOT / "tests" / "interop"))
    import bakes as interop
    return interop.live(oracle.ROOT / "examples" / "models", oracle.ROOT / "examples" / "adapters",
                        options.program.resolve(), options.only)


if __name__ == "__main__":
    sys.exit(main())

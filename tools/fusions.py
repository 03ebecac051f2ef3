#!/usr/bin/env python3
"""Records what PEFT's add_weighted_adapter makes of the example adapters, for every combination type.

  fusions.py        writes tests/golden/fusions.json, which the ctest label `golden` compares with

Needs the environment of oracle.py (oracle.py setup). PEFT draws its masks from ours (docs/numbers.md), so
that random types compare too. Of each module's update, B times A, the norm and some elements are kept.
"""

import json
import pathlib
import sys

import oracle

OUTPUT = oracle.ROOT / "tests" / "golden" / "fusions.json"
ADAPTERS = ["c-lora", "prose-lora", "python-lora"]
WEIGHTS = [2.0, 1.0, -0.5]
DENSITY = 0.4
ELEMENTS = 24  # of each module that are kept
MODULES = ["layers.0.self_attn.q_proj", "layers.1.self_attn.k_proj", "layers.1.self_attn.o_proj"]


def cases():
    """type, vote, rank (0: PEFT's default)."""
    for name in ("linear", "cat", "magnitude_prune", "dare_linear"):
        yield name, "total", 0
    for name in ("ties", "dare_ties", "ties_svd", "dare_ties_svd"):
        yield from ((name, vote, 0) for vote in ("total", "frequency"))
    for name in ("svd", "magnitude_prune_svd", "dare_linear_svd"):
        yield name, "total", 0
    yield "svd", "total", 24


def places(count):
    return [i * 7919 % count for i in range(ELEMENTS)]


def main():
    oracle.enter()
    import peft.utils.merge_utils as primitives
    import torch
    import truth
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(oracle.ROOT / "examples" / "models" / "base",
                                                dtype=torch.float32)
    folder = oracle.ROOT / "examples" / "adapters"
    model = PeftModel.from_pretrained(base, folder / ADAPTERS[0], adapter_name=ADAPTERS[0])
    for name in ADAPTERS[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    layers = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()
              if hasattr(module, "get_delta_weight")}

    def draws(of_updates):
        """Our masks in the order in which PEFT asks for them."""
        for name in layers:
            for side in ("A",) if of_updates else ("A", "B"):
                tensor = f"base_model.model.{name}.lora_{side}.weight"
                for position in range(len(ADAPTERS)):
                    yield truth.stream_of(tensor, position)

    record = []
    for kind, vote, rank in cases():
        streams = draws(kind.endswith("_svd"))

        def prune(tensor, density, rescale):
            mask = truth.keep_mask(0, next(streams), tensor.numel(), density)
            kept = tensor * torch.from_numpy(mask).reshape(tensor.shape).to(tensor.dtype)
            return kept / density if rescale else kept

        primitives.random_pruning = prune
        arguments = {"svd_rank": rank or None} if kind.endswith("svd") else {}
        if "ties" in kind or "dare" in kind or "magnitude" in kind:
            arguments["density"] = DENSITY
        if "ties" in kind:
            arguments["majority_sign_method"] = vote
        model.add_weighted_adapter(ADAPTERS, WEIGHTS, "merged", combination_type=kind, **arguments)
        if "dare" in kind:
            assert next(streams, None) is None, kind
        modules = {}
        for name, layer in layers.items():
            if not name.endswith(tuple(MODULES)):
                continue
            update = layer.get_delta_weight("merged").double().flatten()
            modules[name] = {"norm": update.norm().item(),
                             "elements": [float(f"{update[i].item():.9g}")
                                          for i in places(update.numel())]}
        assert len(modules) == len(MODULES), list(layers)
        record.append({"type": kind, "vote": vote, "rank": rank, "modules": modules})
        model.delete_adapter("merged")
    source = pathlib.Path(__file__).resolve()
    summary = {"versions": {name: oracle.PINS[name] for name in ("peft", "torch", "transformers")},
               "files": {str(source.relative_to(oracle.ROOT)): f"{truth.xxh64(source.read_bytes()):016x}"},
               "adapters": ADAPTERS, "weights": WEIGHTS, "density": DENSITY, "cases": record}
    OUTPUT.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"fusions: {len(record)} cases, {OUTPUT.stat().st_size} bytes in {OUTPUT}")


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Loads merges of models that are not alike with transformers.

  forms.py                merges experts kept in one tensor and apart, and text-only with image-text forms of a
                          model, and loads every output without a missing, unexpected or mismatched tensor;
                          weights are those of the formula

Needs the environment of oracle.py (oracle.py setup).
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import oracle

RECIPE = """\
models:
  - model: one
    parameters: {weight: 0.25}
  - model: two
    parameters: {weight: 0.75}
merge_method: linear
dtype: float32
"""


def mixtral(transformers):
    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM, config


def gemma(transformers):
    text = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, head_dim=8)
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                  patch_size=14)
    whole = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return ((transformers.Gemma3ForConditionalGeneration, whole),
            (transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig(**text)))


def merge(program, folder):
    recipe = folder / "recipe.yml"
    recipe.write_text(RECIPE)
    shutil.rmtree(folder / "out", ignore_errors=True)
    for words in (["merge", recipe, folder / "out"], ["verify", folder / "out"]):
        done = subprocess.run([program, *words, "--root", folder], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"ingot {words[0]} failed:\n{done.stdout}{done.stderr}")
    return folder / "out"


def load(kind, folder):
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    wrong = {key: sorted(map(str, value))[:4] for key, value in info.items() if value}
    if wrong:
        raise SystemExit(f"{kind.__name__} does not load clean: {wrong}")
    return model.state_dict()


def compare(what, found, one, two, shared):
    worst = max(float((found[n].double() - (0.25 * one[m].double() + 0.75 * two[t].double())).abs().max())
                for n, (m, t) in shared.items())
    print(f"{what:44s} {len(shared)} tensors, off by {worst:.1e}")
    if not worst < 1e-6:
        raise SystemExit(f"{what}: not the formula's weights")


def experts(program, folder, transformers):
    kind, config = mixtral(transformers)
    models = [kind(config) for _ in range(2)]
    states = [model.state_dict() for model in models]
    for first in (True, False):
        models[0].save_pretrained(folder / "one", save_original_format=first)
        models[1].save_pretrained(folder / "two", save_original_format=not first)
        found = load(kind, merge(program, folder))
        compare(f"experts {'apart' if first else 'in one tensor'} meet the other", found, *states,
                {name: (name, name) for name in states[0]})
        for name in ("one", "two"):
            shutil.rmtree(folder / name)


def forms(program, folder, transformers):
    (whole, whole_config), (text, text_config) = gemma(transformers)
    image, words = whole(whole_config), text(text_config)
    states = image.state_dict(), words.state_dict()
    longer = {name: name.replace("model.", "model.language_model.", 1) for name in states[1]}
    shared = {short: long for short, long in longer.items() if long in states[0]}
    for first in (True, False):
        (image if first else words).save_pretrained(folder / "one")
        (words if first else image).save_pretrained(folder / "two")
        found = load(whole if first else text, merge(program, folder))
        if first:
            compare("an image-text model meets a text-only one", found, *states,
                    {long: (long, short) for short, long in shared.items()})
            tower = [n for n in states[0] if n not in set(shared.values()) and not n.startswith("lm_head")]
            if not tower or any(not bool((found[n] == states[0][n]).all()) for n in tower):
                raise SystemExit("the tower is not that of the image-text model")
        else:
            compare("a text-only model meets an image-text one", found, states[1], states[0],
                    {short: (short, long) for short, long in shared.items()})
        for name in ("one", "two"):
            shutil.rmtree(folder / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "build" / "ingot"))
    program = pathlib.Path(parser.parse_args().program).resolve()
    oracle.enter()
    import torch
    import transformers
    torch.manual_seed(5)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="ingot-forms-") as folder:
        experts(program, pathlib.Path(folder), transformers)
        forms(program, pathlib.Path(folder), transformers)


if __name__ == "__main__":
    main()

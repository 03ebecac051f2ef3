#!/usr/bin/env python3
"""Stacks layers of every kind of model that transformers generates text with, and asks transformers what
they have become.

  layers.py               for each model type: a tiny model, its layers rearranged by several recipes of slices
                          with build/ingot; the output loads without a key missing or left over, its layers are of
                          the kinds that their sources are (modules, shapes, windows, rotation), with their
                          values, and it computes where the source does; or ingot has refused
  layers.py --only NAME   types whose name this expression finds

Each type is taken twice: with the config that transformers saves, and with the lists by layer left out where the
class makes the same up without them, as many vendors' configs have it. Needs the environment of oracle.py.
"""

import argparse
import gc
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import oracle

LAYERS = 4
LARGEST = 10_000_000  # parameters of a model that counts as tiny

# Of whatever a configuration has: its size.
TINY = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    sliding_window=16, moe_intermediate_size=32, num_experts=4, num_local_experts=4, n_routed_experts=4,
    num_experts_per_tok=2, num_experts_per_token=2, n_shared_experts=1, n_group=1, topk_group=1, q_lora_rank=16,
    kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, shared_expert_intermediate_size=32,
    linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
    mamba_d_state=16, mamba_d_head=16, mamba_n_heads=8, mamba_n_groups=1, mamba_dt_rank=8, ssm_state_size=16,
    mamba_num_heads=8, mamba_head_dim=16, n_groups=1, state_size=8, n_layer=LAYERS, n_embd=64, n_head=4,
    n_positions=128, n_inner=96, d_model=64, n_layers=LAYERS, n_heads=4, num_layers=LAYERS, num_heads=4, d_ff=96, ffn_dim=96,
    word_embed_proj_dim=64, hidden_size_per_layer_input=8, vocab_size_per_layer_input=128, global_head_dim=32,
    query_pre_attn_scalar=16, laurel_rank=8, altup_num_inputs=2, first_k_dense_replace=1, num_dense_layers=1,
    shared_intermediate_size=48, intermediate_size_mlp=96, block_ff_dim=96, block_multiple_of=8, lru_width=64,
    attention_window_size=16, local_attention=16, attention_hidden_size=64, index_n_heads=2, index_head_dim=16, index_topk=8,
    moe_num_experts=4, moe_k=2, moe_topk=2, ffn_hidden_size=96, expert_ffn_hidden_size=32, zero_expert_num=2,
    num_shared_experts=1, dim=64, hidden_dim=96, dense_intermediate_size=96, embedding_size=64,
    expert_layer_period=2, expert_layer_offset=1, attn_layer_period=2, attn_layer_offset=1,
    interleave_moe_layer_step=2, moe_layer_start_index=1, use_mamba_kernels=False, num_kv_shared_layers=0,
    n_mamba_heads=8, mamba_headdim=16, mamba_ngroups=1, num_mem_blocks=1, adapter_rank=8, o_lora_rank=16,
    swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=16, swa_v_head_dim=16, max_window_layers=2)

# Of single types, beside or in place of that.
OWN = {
    "bamba": dict(attn_layer_indices=[1, 3]),
    "afmoe": dict(global_attn_every_n_layers=2),
    "gemma3_text": dict(sliding_window_pattern=2),
    "gemma4_text": dict(hidden_size_per_layer_input=0),
    "exaone4": dict(sliding_window_pattern=2),
    "exaone_moe": dict(sliding_window_pattern=2),
    "bailing_hybrid": dict(layer_group_size=2),
    "falcon": dict(num_kv_heads=2),
    "gemma3n_text": dict(num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "granitemoehybrid": dict(layer_types=["mamba", "mamba", "attention", "mamba"]),
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "llama4_text": dict(num_experts_per_tok=1, num_local_experts=2),
    "mamba2": dict(num_heads=8, head_dim=16, state_size=16),
    "mllama_text_model": dict(cross_attention_layers=[1, 3]),
    "modernbert-decoder": dict(global_attn_every_n_layers=2),
    "nemotron_h": dict(layers_block_type=["mamba", "mlp", "attention", "mamba"]),
    "qwen2_moe": dict(mlp_only_layers=[1]),
    "qwen3_moe": dict(decoder_sparse_step=2),
    "qwen3": dict(use_sliding_window=True),
    "recurrent_gemma": dict(block_types=["recurrent", "recurrent", "attention"]),
    "smollm3": dict(no_rope_layer_interval=2),
    "zamba": dict(layers_block_type=["mamba", "hybrid"] * 2),
    "zamba2": dict(layers_block_type=["mamba", "hybrid"] * 2),
    "dots1": dict(layer_types=["full_attention"] * 2 + ["sliding_attention"] * 2),
}
SHRUNK = {name: dict(first_k_dense_replace=2) for name in ("deepseek_v2", "dots1")}

# Lists by layer that classes make up where a config has none.
LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "moe_layers", "indexer_types",
         "activation_sparsity_pattern", "layer_rope_theta", "per_layer_config", "num_attention_heads_per_layer")

# As (first, last + 1) of each slice.
RECIPES = [[(0, 3), (1, 4)], [(0, 1), (2, 4)], [(1, 4)], [(2, 4), (0, 3)]]

# Of a module: what tells its place, not its kind; 'seed' is of BigBird's random blocks, 'residual_scale' of MiniCPM's
# follows the depth, in every layer alike.
PLACE = re.compile(r"^(.*_idx|sliding_window_pattern|layer_id|layer_index|layer_number|block_idx|training|seed|residual_scale|num_hidden_layers|num_layers|_.*|kv_shared_layer_index|"
                   r"call_super_init|dump_patches|T_destination)$")


class Unbuilt(Exception):
    """The type has no tiny model of this kind."""


def tiny(name):
    """The configuration of a model type, shrunk."""
    cls = transformers.CONFIG_MAPPING[name]
    fields = getattr(cls, "__dataclass_fields__", {})
    mapped = getattr(cls, "attribute_map", {})
    keys = {k: v for k, v in TINY.items() if k in fields and k not in mapped and fields[k].default != "auto"}
    for source, target in mapped.items():
        if source in TINY and target in fields and target not in TINY:
            keys[target] = TINY[source]
    return cls(**{**keys, **SHRUNK.get(name, {}), **OWN.get(name, {})})


def layers_of(model):
    """The longest list of layers with the name of its first, and those layers."""
    best = None
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and name.split(".")[-1] in ("layers", "h", "blocks", "block", "layer"):
            if best is None or len(module) > len(best[1]):
                best = (name, module)
    if best is None:
        raise Unbuilt("no layers")
    return best


def kind(layer):
    """What a layer is: its modules, their plain attributes, the shapes of its tensors."""
    out = []
    for name, module in layer.named_modules():
        plain = {k: v for k, v in vars(module).items()
                 if not PLACE.match(k) and (v is None or isinstance(v, (bool, int, float, str)))}
        out.append((name, type(module).__name__, sorted(plain.items(), key=str)))
    out.append(sorted((k, tuple(v.shape)) for k, v in layer.named_parameters()))
    return out


def text_of(config):
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def said(config, count):
    """What the configuration says of each layer."""
    text = text_of(config)
    out = [[] for _ in range(count)]
    for key in LISTS:
        value = getattr(text, key, None)
        if key == "per_layer_config" or value is None:
            continue
        for i in range(count):
            out[i].append((key, i in value if key == "moe_layers" else value[i] if i < len(value) else "none"))
    return out


def empty(folder):
    """The model of a folder without values, and its configuration."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config), config


def kinds(folder):
    model, config = empty(folder)
    layers = layers_of(model)[1]
    return [(kind(layer), what) for layer, what in zip(layers, said(config, len(layers)))]


def recipe(slices):
    return "merge_method: passthrough\nslices:\n" + "".join(
        f"- sources: [{{model: a, layer_range: [{x}, {y}]}}]\n" for x, y in slices)


def run(folder, slices, program):
    """Whether ingot stacked the slices (else it refused, in a sentence)."""
    (folder / "r.yml").write_text(recipe(slices))
    shutil.rmtree(folder / "out", ignore_errors=True)
    done = subprocess.run([program, "merge", folder / "r.yml", folder / "out", "--root", folder, "--no-sync",
                           "--quiet"], capture_output=True, text=True)
    if done.returncode:
        message = done.stdout + done.stderr
        if "error" not in message or done.returncode not in (1, 2, 3, 4, 5, 6, 65, 66, 78):
            raise AssertionError(f"exit {done.returncode}: {message[:300]}")
        return False, message
    return True, done.stdout + done.stderr


def compare(folder, slices, before, name):
    """The output's layers against their sources."""
    order = [i for x, y in slices for i in range(x, y)]
    after = kinds(folder / "out")
    if len(after) != len(order):
        raise AssertionError(f"{len(after)} layers, not {len(order)}")
    for j, i in enumerate(order):
        if after[j] != before[i]:
            this = [(x, y) for x, y in zip(str(after[j]).split("), ("), str(before[i]).split("), (")) if x != y]
            raise AssertionError(f"layer {j} is not of the kind of layer {i}: {str(this[:1])[:300]}")


def speaks(model):
    """Whether a model computes logits; classes may need what a tiny one has not."""
    try:
        with torch.no_grad():
            model.eval()(input_ids=torch.arange(3, 9)[None], use_cache=False)
        return True
    except Exception:
        return False


def loads(folder, slices, clean, values, ran):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder / "out", output_loading_info=True)
    found = {k: sorted(map(str, v)) for k, v in info.items() if v and k in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    extra = {k: [x for x in v if x not in clean.get(k, [])] for k, v in found.items()}
    if any(extra.values()):
        raise AssertionError(f"loads with {str(extra)[:300]}")
    if ran and not speaks(model):
        raise AssertionError("loads, but does not compute")
    order = [i for x, y in slices for i in range(x, y)]
    prefix, layers = layers_of(model)
    for j, i in enumerate(order):
        for key, value in layers[j].state_dict().items():
            theirs = values.get(f"{prefix}.{i}.{key}")
            if theirs is None or not torch.equal(value, theirs):
                raise AssertionError(f"{prefix}.{j}.{key} is not that of layer {i}")


def check(name, folder, program):
    try:
        torch.manual_seed(7)
        config = tiny(name)
        with torch.device("meta"):
            size = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            raise Unbuilt("too large")
        model = transformers.AutoModelForCausalLM.from_config(tiny(name))
        if len(layers_of(model)[1]) != LAYERS:
            raise Unbuilt("not as deep as asked for")
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.02)
        model.save_pretrained(folder / "a")
        del model
        whole, info = transformers.AutoModelForCausalLM.from_pretrained(folder / "a", output_loading_info=True)
        before = kinds(folder / "a")
    except Exception as e:
        raise Unbuilt(f"{type(e).__name__}: {str(e)[:120]}") from e
    clean = {k: sorted(map(str, v)) for k, v in info.items() if v}
    values, ran = whole.state_dict(), speaks(whole)
    uniform = all(k == before[0] for k in before)
    stacked = refused = 0

    def go(slices, what, load):
        nonlocal stacked, refused
        done, message = run(folder, slices, program)
        if not done:
            refused += 1
            if uniform and "has a part for each layer" not in message:
                raise AssertionError(f"{what} {slices}: refused: {message[:300]}")
            return
        stacked += 1
        try:
            compare(folder, slices, before, name)
            if load:
                loads(folder, slices, clean, values, ran)
        except AssertionError as e:
            raise AssertionError(f"{what} {slices}: {e}") from e
        except Exception as e:
            raise AssertionError(f"{what} {slices}: {type(e).__name__} {str(e)[:300]}") from e

    for slices in RECIPES[:1] if uniform else RECIPES:
        go(slices, "as saved", load=True)
    # As vendors have it: without the lists that the class makes up.
    path = folder / "a" / "config.json"
    held = json.loads(path.read_text())
    short = {k: v for k, v in held.items() if k not in LISTS}
    if not uniform and short != held:
        path.write_text(json.dumps(short))
        try:
            same = kinds(folder / "a") == before
        except Exception:  # the class needs the list
            same = False
        if same:
            for slices in RECIPES[::3]:
                go(slices, "without lists", load=False)
    return "alike" if uniform else f"{stacked} stacked, {refused} refused"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build" / "ingot")
    parser.add_argument("--only", default="", help="types whose name this expression finds")
    options = parser.parse_args()
    oracle.enter()
    global torch, transformers
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    names = sorted(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    failures = built = 0
    for name in names:
        if not re.search(options.only, name):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            try:
                result = check(name, pathlib.Path(scratch), options.program.resolve())
                built += 1
                print(f"{name:32} {result}", flush=True)
            except Unbuilt as e:
                print(f"{name:32} not built: {e}", flush=True)
            except Exception as e:
                failures += 1
                print(f"{name:32} FAILED: {type(e).__name__}: {str(e)[:600]}", flush=True)
            gc.collect()
    print(f"{failures} types failed" if failures else f"all {built} types that have a tiny model agree")
    return 1 if failures or not built else 0


if __name__ == "__main__":
    sys.exit(main())

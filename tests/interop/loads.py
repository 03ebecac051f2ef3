#!/usr/bin/env python3
"""Loads the adapters that ingot writes with PEFT.

  loads.py                merges and extracts adapters with build/ingot, loads every folder with PEFT on its
                          base without a warning, and compares the updates with the folder's factors, the
                          logits with PEFT's own combination, and a bake of the folder with the loaded one

Needs the environment of oracle.py (oracle.py setup).
"""

import argparse
import contextlib
import json
import logging
import pathlib
import re
import shutil
import sys
import tempfile
import unittest.mock
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import oracle

CLOSE = 1e-5  # relative, of logits and updates in f32

# ---------------------------------------------------------------------------------------------------
# The cases: adapters on a base, and what is made of them


class Case:
    """`make` gives (base, adapters) in a folder; the rest says how ingot merges them and how PEFT does."""

    def __init__(self, make, weights=(), options=(), theirs=None, plain=None, kept=None, command="merge",
                 inherited=None):
        self.make, self.weights, self.options, self.theirs = make, weights, list(options), theirs
        self.plain = plain  # what takes the folder: "vllm", or "all" for llama.cpp's converter too
        self.kept = kept  # the adapter whose logits the result must have as it stands
        self.command = command
        self.inherited = inherited  # warning that the sources give too


def examples(*names):
    def make(folder):
        return ROOT / "examples" / "models" / "base", [ROOT / "examples" / "adapters" / n for n in names]
    return make


def trained(model, *configs, prepare=None):
    """Adapters with random values on a random model."""
    def make(folder):
        return bakes.build(bakes.Case(model, *configs, prepare=prepare), folder)
    return make


def tuned(model, config):
    """A base and a model that PEFT has merged an adapter into."""
    def make(folder):
        base, adapters = bakes.build(bakes.Case(model, config), folder)
        merged = bakes.peft.PeftModel.from_pretrained(bakes.load(base), adapters[0]).merge_and_unload()
        merged.save_pretrained(folder / "tuned")
        return base, [folder / "tuned"]
    return make


# What loads a model of each kind of architecture: its config, small, and what it is given.
SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
ENCODER = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
               max_position_embeddings=64, pad_token_id=0)


def architectures():
    import transformers as T

    text = dict(SMALL, rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2]),
                tie_word_embeddings=False)
    seeing = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16,
                  patch_size=8)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    both = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                encoder_ffn_dim=48, decoder_ffn_dim=48, d_model=32, vocab_size=96, pad_token_id=0, bos_token_id=1,
                eos_token_id=2, decoder_start_token_id=0)
    return {
        "tied": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**SMALL, tie_word_embeddings=True)),
        "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                                                       bos_token_id=1, eos_token_id=2)),
        "neox": lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**ENCODER, bos_token_id=1, eos_token_id=2)),
        "qwen-vl": lambda: T.Qwen2_5_VLForConditionalGeneration(T.Qwen2_5_VLConfig(
            text_config=text, tie_word_embeddings=False, image_token_id=90, video_token_id=91, vision_start_token_id=92,
            vision_end_token_id=93, vision_config=dict(
                depth=2, hidden_size=32, intermediate_size=48, num_heads=4, patch_size=4, out_hidden_size=32,
                fullatt_block_indexes=[1], window_size=16, spatial_merge_size=2, temporal_patch_size=2))),
        "llava": lambda: T.LlavaForConditionalGeneration(T.LlavaConfig(
            text_config=T.LlamaConfig(**SMALL), image_token_id=90, image_token_index=90,
            vision_config=T.CLIPVisionConfig(**dict(seeing, num_hidden_layers=3), projection_dim=32))),
        "gemma-vl": lambda: T.Gemma3ForConditionalGeneration(T.Gemma3Config(
            text_config=T.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=16, query_pre_attn_scalar=8),
            vision_config=T.SiglipVisionConfig(**seeing), mm_tokens_per_image=4, image_token_id=90,
            image_token_index=90, boi_token_index=91, eoi_token_index=92)),
        "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)),
        "qwen-moe": lambda: T.Qwen3MoeForCausalLM(T.Qwen3MoeConfig(
            **SMALL, **experts, head_dim=8, decoder_sparse_step=1, mlp_only_layers=[], tie_word_embeddings=False)),
        "gpt-oss": lambda: T.GptOssForCausalLM(T.GptOssConfig(
            **SMALL, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
            layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=False)),
        "granite": lambda: T.GraniteMoeForCausalLM(T.GraniteMoeConfig(**SMALL, num_local_experts=4,
                                                                      num_experts_per_tok=2)),
        "nemotron-h": lambda: T.NemotronHForCausalLM(T.NemotronHConfig(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            layers_block_type=["mamba", "moe", "attention", "moe"], num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=8, n_groups=1, chunk_size=8,
            n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_group=1, topk_group=1,
            moe_shared_expert_intermediate_size=24, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
            eos_token_id=2)),
        "mamba": lambda: T.Mamba2ForCausalLM(T.Mamba2Config(
            vocab_size=96, hidden_size=32, state_size=8, num_hidden_layers=2, num_heads=8, head_dim=8, expand=2,
            n_groups=1, chunk_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)),
        "bert": lambda: T.BertForMaskedLM(T.BertConfig(**ENCODER)),
        "modernbert": lambda: T.ModernBertForMaskedLM(T.ModernBertConfig(
            **ENCODER, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=8)),
        "t5": lambda: T.T5ForConditionalGeneration(T.T5Config(
            vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1,
            decoder_start_token_id=0)),
        "whisper": lambda: T.WhisperForConditionalGeneration(T.WhisperConfig(
            **both, num_mel_bins=8, max_source_positions=30, max_target_positions=64, begin_suppress_tokens=None,
            suppress_tokens=None)),
        "bart": lambda: T.BartForConditionalGeneration(T.BartConfig(**both, max_position_embeddings=64,
                                                                    forced_eos_token_id=2)),
        "vit": lambda: T.ViTForImageClassification(T.ViTConfig(**dict(seeing, patch_size=4), num_labels=5)),
        "dino": lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**dict(seeing, patch_size=4), mlp_ratio=2, num_labels=5)),
        "swin": lambda: T.SwinForImageClassification(T.SwinConfig(
            image_size=16, patch_size=4, embed_dim=16, depths=[2, 1], num_heads=[2, 2], window_size=2, num_labels=5)),
        "segformer": lambda: T.SegformerForImageClassification(T.SegformerConfig(
            num_encoder_blocks=2, depths=[2, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[3, 3],
            strides=[2, 2], num_attention_heads=[2, 2], mlp_ratios=[2, 2], num_labels=5)),
    }


def whole(kind):
    """A model, and one in which every parameter is another."""
    import torch

    def make(folder):
        torch.manual_seed(11)
        model = architectures()[kind]().float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(folder / "base")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(folder / "tuned")
        return folder / "base", [folder / "tuned"]
    return make


def vision(*configs):
    """Convolutions: the patches of a vision transformer, and a head of its own."""
    import torch
    import transformers

    def make(folder):
        torch.manual_seed(11)
        config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                        intermediate_size=48, image_size=16, patch_size=4, num_labels=5)
        model = transformers.ViTForImageClassification(config)
        model.save_pretrained(folder / "base")
        adapters = []
        for i, config in enumerate(configs):
            wrapped = bakes.peft.get_peft_model(load(folder / "base"), config)
            torch.manual_seed(100 + i)
            bakes.stir(wrapped)
            adapters.append(folder / f"adapter{i}")
            wrapped.save_pretrained(adapters[-1])
        return folder / "base", adapters
    return make


def cases():
    import peft
    from bakes import QV, gpt2, grow, llama, lora

    three, weights = examples("c-lora", "prose-lora", "python-lora"), (2.0, 1.0, -0.5)
    found = {}
    for name in ("linear", "cat", "magnitude_prune", "dare_linear", "svd", "magnitude_prune_svd",
                 "dare_linear_svd", "ties", "dare_ties", "ties_svd", "dare_ties_svd"):
        for vote in ("total", "frequency") if "ties" in name else ("total",):
            options, theirs = [], {"combination_type": name}
            if any(word in name for word in ("ties", "dare", "magnitude")):
                options += ["--density", "0.4"]
                theirs["density"] = 0.4
            if "ties" in name:
                options += ["--majority-sign", vote]
                theirs["majority_sign_method"] = vote
            found[f"{name}-{vote}" if "ties" in name else name] = Case(
                three, weights, ["--type", name, *options], theirs, plain="all")

    def ia3(*targets):
        return peft.IA3Config(target_modules=list(targets), task_type="CAUSAL_LM",
                              feedforward_modules=[t for t in targets if t == "down_proj"])

    def mixtral():
        return llama(cls="Mixtral", num_local_experts=4, num_experts_per_tok=2)

    experts = lora(["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    patterns = lora(["q_proj", "v_proj", "down_proj"], rank_pattern={r"layers\.0\..*q_proj": 2},
                    alpha_pattern={"down_proj": 3})
    cat = {"combination_type": "cat"}
    both = trained(llama, lora(QV), lora(QV))
    found |= {
        "ia3": Case(examples("c-ia3", "python-ia3"), (0.5, 1.5)),
        "ia3-plain-sum": Case(trained(llama, ia3("k_proj", "down_proj"), ia3("k_proj", "down_proj")),
                              (0.7, 0.6), ["--type", "linear", "--compat", "ia3-plain-sum"], {}),
        "ia3-apart": Case(trained(llama, ia3("k_proj", "down_proj"), ia3("k_proj", "o_proj")), (0.7, 0.6),
                          ["--type", "linear"]),
        "dora-cat": Case(examples("python-dora"), kept=0),
        "dora-linear": Case(examples("python-dora"), options=["--type", "linear"], kept=0),
        "one": Case(examples("c-lora"), plain="all", kept=0),
        "keep-scaling": Case(both, (0.7, -0.4), ["--keep-scaling"], cat, plain="all"),
        "ranks": Case(examples("c-lora", "c-lora-r16"), (0.5, 0.25), theirs=cat, plain="all"),
        "ranks-svd": Case(examples("c-lora", "c-lora-r16"), (0.5, 0.25), ["--type", "svd", "--rank", "6"],
                          {"combination_type": "svd", "svd_rank": 6}, plain="all"),
        "energy": Case(three, weights, ["--type", "svd", "--rank", "auto", "--energy", "0.9"], plain="vllm"),
        "patterns": Case(trained(llama, patterns, lora(QV)), (0.5, 1.5), theirs=cat),
        "patterns-svd": Case(trained(llama, patterns, lora(QV)), (0.5, 1.5), ["--type", "svd", "--rank", "16"],
                             plain="vllm"),
        "patterns-linear": Case(trained(llama, patterns, patterns), (0.5, 1.5), ["--type", "linear"]),
        "rslora": Case(trained(llama, lora(QV, use_rslora=True), lora(QV)), (1.0, 0.5), plain="all"),
        "rslora-kept": Case(trained(llama, lora(QV, use_rslora=True)), options=["--keep-scaling"], plain="all",
                            kept=0),
        "rslora-later": Case(trained(llama, lora(QV), lora(QV, use_rslora=True)), (1.0, 0.5), theirs=cat,
                             plain="all"),
        "apart": Case(trained(llama, lora(QV), lora(["q_proj", "up_proj"])), (0.5, 2.0), theirs=cat, plain="vllm"),
        "regex": Case(trained(llama, lora(r".*layers\.1\..*(q|o)_proj"), lora(QV)), (0.5, 2.0), plain="vllm"),
        "layers": Case(trained(llama, lora(QV, layers_to_transform=[1]), lora(QV)), (0.5, 2.0), plain="vllm"),
        "saved": Case(trained(llama, lora(QV, modules_to_save=["lm_head", "input_layernorm"])), kept=0),
        "saved-two": Case(trained(llama, lora(QV, modules_to_save=["lm_head"]), lora(["o_proj"])), (1.0, 0.5)),
        "saved-average": Case(trained(llama, lora(QV, modules_to_save=["lm_head"]),
                                      lora(QV, modules_to_save=["lm_head"])), (1.0, 0.5),
                              ["--whole-tensors", "average"]),
        "saved-tied": Case(trained(lambda: llama(tied=True), lora(QV, modules_to_save=["embed_tokens"])), kept=0,
                           inherited="tied layer"),
        "bias-all": Case(trained(lambda: llama(attention_bias=True), lora(["q_proj"], bias="all")), kept=0),
        "bias-only": Case(trained(lambda: llama(attention_bias=True), lora(["q_proj"], bias="lora_only")),
                          kept=0),
        "lora-bias": Case(trained(lambda: llama(attention_bias=True), lora(["q_proj"], lora_bias=True)), kept=0),
        "lora-bias-two": Case(trained(lambda: llama(attention_bias=True), lora(["q_proj"], lora_bias=True),
                                      lora(["q_proj", "k_proj"])), (0.5, 2.0)),
        "tokens": Case(trained(llama, lora(QV, trainable_token_indices=[3, 1, 90])), kept=0),
        "tokens-two": Case(trained(llama, lora(QV, trainable_token_indices=[3, 1, 90]), lora(QV)), (1.0, 0.5)),
        "tokens-tied": Case(trained(lambda: llama(tied=True), lora(QV, trainable_token_indices=[3, 1, 90])),
                            kept=0),
        "embedding": Case(trained(llama, lora(["embed_tokens", "q_proj"])), kept=0),
        "embedding-two": Case(trained(llama, lora(["embed_tokens", "q_proj"]), lora(["embed_tokens"])),
                              (0.5, 1.5), ["--whole-tensors", "average"]),
        "grown": Case(trained(llama, lora(QV), prepare=grow), kept=0),
        "grown-saved": Case(trained(llama, lora(QV, modules_to_save=["embed_tokens", "lm_head"]), prepare=grow),
                            kept=0),
        "experts": Case(trained(mixtral, experts), kept=0),
        "experts-two": Case(trained(mixtral, experts, experts), (0.5, 1.5)),
        "experts-svd": Case(trained(mixtral, experts, experts), (0.5, 1.5), ["--type", "svd", "--rank", "3"]),
        "gpt2": Case(trained(gpt2, lora(["c_attn", "c_fc"], fan_in_fan_out=True),
                             lora(["c_attn", "c_proj"], fan_in_fan_out=True)), (0.5, 1.5), theirs=cat,
                     plain="vllm"),
        "gpt2-svd": Case(trained(gpt2, lora(["c_attn"], fan_in_fan_out=True),
                                 lora(["c_attn"], fan_in_fan_out=True)), (0.5, 1.5),
                         ["--type", "svd", "--rank", "3"], {"combination_type": "svd", "svd_rank": 3},
                         plain="all"),
        "conv2d": Case(vision(peft.LoraConfig(r=4, target_modules=["projection", "query"],
                                              init_lora_weights=False),
                              peft.LoraConfig(r=2, target_modules=["projection"], init_lora_weights=False,
                                              modules_to_save=["classifier"])), (0.5, 1.5)),
        "conv2d-svd": Case(vision(*[peft.LoraConfig(r=4, target_modules=["projection"],
                                                    init_lora_weights=False)] * 2), (0.5, 1.5),
                           ["--type", "svd", "--rank", "5"], {"combination_type": "svd", "svd_rank": 5}),
        "extract": Case(tuned(llama, lora(["q_proj", "down_proj"])), options=["--rank", "6"], plain="all",
                        command="extract"),
        "extract-energy": Case(tuned(llama, lora(["q_proj", "down_proj"])),
                               options=["--rank", "auto", "--energy", "0.8"], plain="vllm", command="extract"),
        "extract-saved": Case(tuned(llama, lora(QV, modules_to_save=["lm_head", "embed_tokens", "norm"])),
                              options=["--rank", "6"], command="extract"),
        "extract-biases": Case(tuned(lambda: llama(attention_bias=True), lora(QV, bias="all")),
                               options=["--rank", "6"], command="extract"),
        "extract-experts": Case(tuned(mixtral, experts), options=["--rank", "8"], command="extract",
                                inherited=r"(rank|alpha)_pattern keys did not match .*gate_up_proj"),
        # At full rank PEFT gives the logits of the tuned model, whatever the architecture.
        **{f"whole-{kind}": Case(whole(kind), options=["--rank", "96"], command="extract")
           for kind in architectures()},
        **{f"served-{kind}-{reader}": Case(whole(kind), options=["--rank", "8", "--for", reader], command="extract",
                                           plain="all" if reader == "llama.cpp" else "vllm",
                                           inherited=r"(rank|alpha)_pattern keys did not match .*gate_up_proj")
           for kind in ("tied", "neox", "qwen-vl", "mixtral", "bert", "gpt-oss") for reader in ("vllm", "llama.cpp")},
        "served-bytes": Case(whole("tied"), options=["--bytes", "60000", "--for", "llama.cpp"], plain="all",
                             command="extract"),
        "all-linear": Case(trained(architectures()["qwen-moe"], *[lora("all-linear")] * 2), (0.5, 1.5),
                           inherited=r"(rank|alpha)_pattern keys did not match"),
        "all-linear-svd": Case(trained(architectures()["qwen-moe"], *[lora("all-linear")] * 2), (0.5, 1.5),
                               ["--type", "svd", "--rank", "4"],
                               inherited=r"(rank|alpha)_pattern keys did not match"),
        "extract-gpt2": Case(tuned(gpt2, lora(["c_attn", "c_proj"], fan_in_fan_out=True)),
                             options=["--rank", "5"], command="extract"),
    }
    return found


# ---------------------------------------------------------------------------------------------------
# A folder, read by its own rules


def scaling(config, name, rank):
    def pattern(field, otherwise):
        for key, value in config[field].items():
            if re.match(rf"(.*\.)?({key})$", name):
                return value
        return otherwise
    said = pattern("rank_pattern", config["r"])
    if said != rank:
        raise bakes.Failure(f"{name}: rank {rank} in the file, {said} in the configuration")
    return pattern("alpha_pattern", config["lora_alpha"]) / (rank ** 0.5 if config["use_rslora"] else rank)


def updates(folder):
    """Path of a module -> the update that the factors of the folder stand for, outputs by inputs."""
    import torch

    config = json.loads((folder / "adapter_config.json").read_text())
    held, found = bakes.held(folder), {}
    for key, a in held.items():
        hit = re.fullmatch(r"base_model\.model\.(.*)\.lora_(embedding_)?A(\.weight)?", key)
        if not hit or ".experts." in key:
            continue
        name, b = hit[1], held[key.replace("lora_A.", "lora_B.").replace("lora_embedding_A", "lora_embedding_B")]
        update = torch.tensordot(b.double().flatten(1), a.double(), 1) * scaling(config, name, a.shape[0])
        found[name] = update.T if hit[2] else update
    return found


def served(folder, converter):
    """What vLLM's loader asks of a folder, and llama.cpp's converter, which knows one alpha.

    vLLM (docs: LoRA Adapters; vllm/lora): ranks up to --max-lora-rank, of 8, 16, 32, 64, 128, 256, 320 and 512; neither
    modules_to_save nor biases nor DoRA; linear layers of the language model; the scaling is lora_alpha / r for all.
    convert_lora_to_gguf.py: every tensor is a lora_A or a lora_B of a matrix, and lora_alpha is divided by each one's
    own rank."""
    config = json.loads((folder / "adapter_config.json").read_text())
    if config["r"] > 512 or config["peft_type"] != "LORA":
        raise bakes.Failure(f"r is {config['r']} and the type {config['peft_type']}: vLLM takes LoRA up to 512")
    for field in ("r", "lora_alpha"):
        if not isinstance(config[field], int):
            raise bakes.Failure(f"{field} is {config[field]!r}, servers take integers")
    for field in ("modules_to_save", "use_dora", "use_rslora", "target_parameters", "trainable_token_indices",
                  "layer_replication", "lora_bias"):
        if config.get(field):
            raise bakes.Failure(f"{field} is set, which servers do not take")
    if config["bias"] != "none" or not isinstance(config["target_modules"], list):
        raise bakes.Failure("servers take neither biases nor expressions for modules")
    held = bakes.held(folder)
    for key, tensor in held.items():
        hit = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if not hit or tensor.ndim != 2:
            raise bakes.Failure(f"{key} of shape {list(tensor.shape)} is no factor that servers know")
        if re.search(r"embed|wte|wpe|lm_head|norm|conv|visual|vision|\.(gate|router)$", hit[1]):
            raise bakes.Failure(f"{key}: no linear layer of the language model that servers adapt")
        if hit[1] not in config["target_modules"]:
            raise bakes.Failure(f"{key}: target_modules does not name its module")
        if hit[2] == "B":
            continue
        rank = tensor.shape[0]
        if held[key.replace("lora_A", "lora_B")].shape[1] != rank or rank > config["r"]:
            raise bakes.Failure(f"{key}: no counterpart of rank {rank}, or above r")
        if scaling(config, hit[1], rank) != config["lora_alpha"] / (rank if converter else config["r"]):
            raise bakes.Failure(f"{key}: its scaling is not lora_alpha / {'rank' if converter else 'r'}")


# ---------------------------------------------------------------------------------------------------
# PEFT


class Record(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


@contextlib.contextmanager
def silence(inherited):
    """Whatever warns, in any way, is a failure, but for what a source that PEFT saved gives rise to too."""
    record = Record()
    logging.getLogger().addHandler(record)
    for name in ("peft", "transformers"):
        logging.getLogger(name).addHandler(record)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        for name in (None, "peft", "transformers"):
            logging.getLogger(name).removeHandler(record)
    # Of libraries about each other: no folder could be the reason.
    said = [str(w.message) for w in caught if not issubclass(w.category, (FutureWarning, DeprecationWarning))]
    said = [text for text in said + record.said if not (inherited and re.search(inherited, text))]
    if said:
        raise bakes.Failure(f"a warning: {said[0][:300]}")


def load(folder):
    import torch
    import transformers

    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()


def heard(model):
    import torch

    kind = model.config.model_type
    if kind in ("t5", "bart", "whisper") or hasattr(model.config, "num_channels") or hasattr(model.config, "vision_config"):
        torch.manual_seed(3)
        words = torch.randint(3, 89, (2, 12))
        with torch.no_grad():
            if kind == "whisper":
                return model(input_features=torch.randn(2, 8, 60), decoder_input_ids=words).logits
            if kind in ("t5", "bart"):
                return model(input_ids=words, decoder_input_ids=words.flip(0)).logits
            if hasattr(model.config, "vision_config"):
                return model(input_ids=words, attention_mask=torch.ones_like(words)).logits
            return model(torch.randn(2, 3, 16, 16)).logits
    return bakes.logits(model)


def apart(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


def worn(base, adapter, inherited=None, written=True):
    """The base with a folder on it, as PEFT loads it: no warning; of one that we wrote, no key over or missing."""
    import peft

    model = load(base)
    rows = [t.shape[0] for n, t in bakes.held(adapter).items() if n.endswith("embed_tokens.weight")]
    if rows and rows[0] != model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(rows[0], mean_resizing=False)
    with silence(inherited):
        model = peft.PeftModel.from_pretrained(model, adapter)
        tensors = peft.load_peft_weights(adapter, device="cpu")
        result = peft.set_peft_model_state_dict(model, tensors)
    # PEFT counts the base's own tensors as missing, and what the far end of a tied pair shares.
    missing = [k for k in result.missing_keys if re.search(r"lora_|ia3_|tokens_delta|modules_to_save", k)
               and not re.search(r"base_layer|lm_head.token_adapter", k)]
    if written and (missing or result.unexpected_keys):
        raise bakes.Failure(f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}")
    return model.eval()


def masks(model, kind, count):
    """Our masks in the order in which PEFT asks for them."""
    import torch

    def draws():
        for name, module in model.named_modules():
            if not hasattr(module, "get_delta_weight"):
                continue
            for side in ("A",) if kind.endswith("_svd") else ("A", "B"):
                for position in range(count):
                    yield truth.stream_of(f"{name}.lora_{side}.weight", position)
    streams = draws()

    def prune(tensor, density, rescale):
        kept = tensor * torch.from_numpy(truth.keep_mask(0, next(streams), tensor.numel(), density)).reshape(
            tensor.shape).to(tensor.dtype)
        return kept / density if rescale else kept
    return unittest.mock.patch("peft.utils.merge_utils.random_pruning", prune)


def combined(base, adapters, case):
    """PEFT's own combination."""
    import peft

    model = peft.PeftModel.from_pretrained(load(base), adapters[0], adapter_name="a0")
    names = ["a0"]
    for i, other in enumerate(adapters[1:], 1):
        names.append(f"a{i}")
        model.load_adapter(other, adapter_name=names[-1])
    arguments = {} if case.theirs is None else case.theirs
    with masks(model, arguments.get("combination_type", ""), len(names)):
        model.add_weighted_adapter(names, list(case.weights), "merged", **arguments)
    model.set_adapter("merged")
    return model.eval()


def summed(base, adapters, weights):
    """Path -> the sum of the updates of adapters, each loaded by itself."""
    total = {}
    for adapter, weight in zip(adapters, weights):
        for path, layer in layers(worn(base, adapter, ".", False)).items():
            total[path] = total.get(path, 0) + weight * layer.get_delta_weight("default").detach().double()
    return total


def layers(model):
    return {n.removeprefix("base_model.model."): m for n, m in model.named_modules()
            if hasattr(m, "get_delta_weight")}


def run(name, case, program, scratch):
    import torch

    folder = scratch / name
    folder.mkdir()
    base, adapters = case.make(folder)
    out = folder / "out"
    weights = case.weights or [1.0] * len(adapters)
    if case.command == "extract":
        bakes.ingot(program, "extract", base, adapters[0], *case.options, "-o", out, "--no-sync")
    else:
        bakes.ingot(program, "adapter", "merge", *(f"{a}:{w}" for a, w in zip(adapters, weights)),
                    *case.options, "-o", out, "--no-sync")
    bakes.ingot(program, "verify", out, "--quiet", "--all")
    model = worn(base, out, case.inherited)
    update = 0.0
    adapted = layers(model)
    # transformers 5 has Mixtral's experts and routers under another name than its files.
    stated = {path if path in adapted else path.replace(".block_sparse_moe.", ".mlp."): update
              for path, update in updates(out).items()}
    for path, ours in stated.items():
        layer = adapted[path]
        delta = layer.get_delta_weight("default").detach()
        if type(layer.get_base_layer()).__name__ == "Conv1D":
            delta = delta.T
        update = max(update, apart(delta, ours.reshape(delta.shape)))
    left = [p for p in adapted if ".experts" not in p and p not in stated]
    if left:
        raise bakes.Failure(f"{left[0]}: PEFT adapts it, the folder has no factors")
    if "--type" not in case.options and case.command == "merge":
        sums = summed(base, adapters, weights)
        if set(sums) != set(adapted):
            raise bakes.Failure(f"adapted modules differ: {sorted(set(sums) ^ set(adapted))[:3]}")
        for path, layer in adapted.items():
            update = max(update, apart(layer.get_delta_weight("default").detach(), sums[path]))
    if not update <= CLOSE:
        raise bakes.Failure(f"update: relative difference {update:.3g}")
    if case.plain:
        served(out, case.plain == "all")
    logits = heard(model)
    figures = [f"updates {update:.1e}"]
    others = {}
    if case.theirs is not None:
        others["combination"] = combined(base, adapters, case)
    if case.kept is not None:
        others["adapter"] = worn(base, adapters[case.kept], case.inherited, False)
    if case.command == "extract" and not {"auto", "--for"} & set(case.options):
        others["tuned"] = load(adapters[0])
    for label, other in others.items():
        figures.append(f"{label} {apart(logits, heard(other)):.1e}")
        if not apart(logits, heard(other)) <= CLOSE:
            raise bakes.Failure(f"{label}: logits differ by {apart(logits, heard(other)):.3g}")
    if torch.equal(logits, heard(load(base))):
        raise bakes.Failure("the adapter changes nothing")
    bakes.ingot(program, "bake", base, out, "-o", folder / "baked", "--no-sync", "--dtype", "float32")
    baked = load(folder / "baked")
    figures.append(f"baked {apart(heard(baked), logits):.1e}")
    if not apart(heard(baked), logits) <= CLOSE:
        raise bakes.Failure(f"baked: logits differ by {apart(heard(baked), logits):.3g}")
    if type(baked).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        if not torch.equal(bakes.generate(baked), bakes.generate(model)):
            raise bakes.Failure("baked: greedy text differs")
    shutil.rmtree(folder)
    return ", ".join(figures)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build" / "ingot")
    parser.add_argument("--only", default="", help="cases whose name this expression finds")
    options = parser.parse_args()
    oracle.enter()
    global bakes, truth
    import bakes
    import torch
    import transformers
    import truth

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_warning()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    todo = {n: c for n, c in cases().items() if re.search(options.only, n)}
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, case in todo.items():
            try:
                print(f"{name:24} {run(name, case, options.program.resolve(), pathlib.Path(scratch))}", flush=True)
            except Exception as e:  # whatever it is, the other cases are still worth running
                failures += 1
                print(f"{name:24} FAILED: {type(e).__name__}: {str(e)[:600]}", flush=True)
    print(f"{failures} of {len(todo)} cases failed" if failures else f"all {len(todo)} cases agree")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

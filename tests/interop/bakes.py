"""Bakes adapters with PEFT and with ingot and compares: tensors, folders, logits, greedy text.

Run by `tools/bakes.py live`, in the environment that `tools/oracle.py setup` makes.
"""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

WIDTH = 32


def llama(tied=False, cls="Llama", vocabulary=96, **more):
    config = getattr(transformers, f"{cls}Config")(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **more)
    return getattr(transformers, f"{cls}ForCausalLM")(config)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=96, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0))


def experts(cls, **more):
    return llama(cls=cls, **more)


def encoder(cls, **more):
    return getattr(transformers, f"{cls}ForMaskedLM")(getattr(transformers, f"{cls}Config")(
        vocab_size=96, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, **more))


def roberta():
    return encoder("Roberta", bos_token_id=1, eos_token_id=2)


def modernbert():
    return encoder("ModernBert", bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=8)


def pair(cls, **more):
    """Encoder and decoder."""
    return getattr(transformers, f"{cls}ForConditionalGeneration")(getattr(transformers, f"{cls}Config")(
        vocab_size=96, d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, **more))


def whisper():
    return pair("Whisper", num_mel_bins=8, max_source_positions=30, max_target_positions=64,
                begin_suppress_tokens=None, suppress_tokens=None)


def bart():
    return pair("Bart", max_position_embeddings=64, forced_eos_token_id=2)


def t5(**more):
    return transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=96, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=0, **more))


def prophetnet():
    return transformers.ProphetNetForConditionalGeneration(transformers.ProphetNetConfig(
        vocab_size=96, hidden_size=WIDTH, encoder_ffn_dim=48, decoder_ffn_dim=48, num_encoder_layers=2,
        num_decoder_layers=2, num_encoder_attention_heads=4, num_decoder_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1))


def xlnet():
    return transformers.XLNetLMHeadModel(transformers.XLNetConfig(
        vocab_size=96, d_model=WIDTH, n_layer=2, n_head=4, d_inner=48, pad_token_id=0))


def flaubert():
    return transformers.FlaubertWithLMHeadModel(transformers.FlaubertConfig(
        vocab_size=96, emb_dim=WIDTH, n_layers=2, n_heads=4, max_position_embeddings=64, pad_index=0))


def neox():
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(
        vocab_size=96, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2))


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16,
        patch_size=8, num_labels=5))


def qwen_moe():
    return llama(cls="Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8,
                 decoder_sparse_step=1, mlp_only_layers=[])


def granite_moe():
    return llama(cls="GraniteMoe", num_local_experts=4, num_experts_per_tok=2)


def nemotron():
    return transformers.NemotronHForCausalLM(transformers.NemotronHConfig(
        vocab_size=96, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=4,
        layers_block_type=["mamba", "moe", "attention", "moe"], num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=8, n_groups=1, chunk_size=8,
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=24, n_group=1, topk_group=1, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2))


def stir(model, scale=0.2):
    """Every trained parameter moved away from where training would start."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)


class Case:
    """Makes a base and adapters on it in a folder."""

    def __init__(self, model, *configs, weights=None, prepare=None, close=1e-5, merged=None, logits=True,
                 after=None, copies=False):
        self.copies = copies
        self.model, self.configs, self.weights = model, configs, weights
        self.prepare, self.close, self.merged, self.logits, self.after = prepare, close, merged, logits, after


def lora(targets, **more):
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False,
                           task_type="CAUSAL_LM", **more)


def plain(targets, **more):
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, **more)


QV = ["q_proj", "v_proj"]
GROWN = 5


def grow(model):
    model.resize_token_embeddings(model.config.vocab_size + GROWN, mean_resizing=False)


CASES = {
    "lora": Case(llama, lora(QV)),
    "rslora": Case(llama, lora(QV, use_rslora=True)),
    "patterns": Case(llama, lora(["q_proj", "v_proj", "down_proj"], rank_pattern={r"layers\.0\..*q_proj": 2},
                                 alpha_pattern={"down_proj": 3})),
    "regex": Case(llama, lora(r".*layers\.1\..*(q|o)_proj")),
    "layers": Case(llama, lora(QV, layers_to_transform=[1])),
    "two": Case(llama, lora(QV), lora(["q_proj", "up_proj"])),
    "dora": Case(llama, lora(QV, use_dora=True)),
    "dora-two": Case(llama, lora(QV, use_dora=True), lora(["q_proj"], use_dora=True)),
    "dora-lora": Case(llama, lora(QV, use_dora=True), lora(QV)),
    "lora-dora": Case(llama, lora(QV), lora(QV, use_dora=True)),
    "lora-bias": Case(lambda: llama(attention_bias=True), lora(["q_proj"], lora_bias=True)),
    "bias-all": Case(lambda: llama(attention_bias=True), lora(["q_proj"], bias="all")),
    "bias-only": Case(lambda: llama(attention_bias=True), lora(["q_proj"], bias="lora_only")),
    "saved": Case(llama, lora(QV, modules_to_save=["lm_head", "input_layernorm"])),
    "saved-tied": Case(lambda: llama(tied=True), lora(QV, modules_to_save=["embed_tokens"])),
    "embedding": Case(llama, lora(["embed_tokens", "q_proj"])),
    "embedding-dora": Case(llama, lora(["embed_tokens"], use_dora=True)),
    "embedding-tied": Case(lambda: llama(tied=True), lora(["embed_tokens", "q_proj"]), merged="apart"),
    "head": Case(llama, lora(["lm_head", "q_proj"])),
    "head-tied": Case(lambda: llama(tied=True), lora(["lm_head", "q_proj"]), merged="apart"),
    "both-tied": Case(lambda: llama(tied=True), lora(["embed_tokens", "lm_head"]), merged="apart"),
    "both-tying": Case(lambda: llama(tied=True), lora(["embed_tokens", "q_proj"], ensure_weight_tying=True),
                       merged="apart"),
    "tokens": Case(llama, lora(QV, trainable_token_indices=[3, 1, 90])),
    "tokens-tied": Case(lambda: llama(tied=True), lora(QV, trainable_token_indices=[3, 1, 90])),
    "tokens-new": Case(llama, lora(QV, trainable_token_indices=[96, 98, 3]), prepare=grow),
    "tokens-new-tied": Case(lambda: llama(tied=True), lora(QV, trainable_token_indices=[96, 98, 3]), prepare=grow),
    "tokens-alone": Case(llama, peft.TrainableTokensConfig(token_indices=[5, 2], task_type="CAUSAL_LM")),
    "grown": Case(llama, lora(QV), prepare=grow),
    "grown-tied": Case(lambda: llama(tied=True), lora(QV), prepare=grow),
    "grown-saved": Case(llama, lora(QV, modules_to_save=["embed_tokens", "lm_head"]), prepare=grow),
    "grown-adapted": Case(llama, lora(["q_proj", "embed_tokens", "lm_head"]), prepare=grow),
    "replicated": Case(llama, lora(QV, layer_replication=[[0, 2], [0, 2], [1, 2]]), merged="forward"),
    "gpt2": Case(gpt2, lora(["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "gpt2-dora": Case(gpt2, lora(["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True)),
    "gpt2-ia3": Case(gpt2, peft.IA3Config(target_modules=["c_attn", "c_proj"], feedforward_modules=["c_proj"],
                                          fan_in_fan_out=True, task_type="CAUSAL_LM")),
    "ia3": Case(llama, peft.IA3Config(target_modules=["k_proj", "down_proj", "o_proj"],
                                      feedforward_modules=["down_proj"], task_type="CAUSAL_LM")),
    "ia3-bias": Case(lambda: llama(attention_bias=True),
                     peft.IA3Config(target_modules=["k_proj", "q_proj"], feedforward_modules=["q_proj"],
                                    task_type="CAUSAL_LM")),
    "adalora": Case(llama, peft.AdaLoraConfig(init_r=4, target_r=4, lora_alpha=8, target_modules=QV,
                                              total_step=10, task_type="CAUSAL_LM")),
    "loha": Case(llama, peft.LoHaConfig(r=4, alpha=8, target_modules=QV, task_type="CAUSAL_LM")),
    "lokr": Case(llama, peft.LoKrConfig(r=4, alpha=8, target_modules=QV, task_type="CAUSAL_LM")),
    "lokr-both": Case(llama, peft.LoKrConfig(r=2, alpha=8, decompose_both=True, target_modules=QV,
                                             task_type="CAUSAL_LM")),
    "oft": Case(llama, peft.OFTConfig(oft_block_size=8, target_modules=QV, task_type="CAUSAL_LM")),
    "oft-exact": Case(llama, peft.OFTConfig(oft_block_size=8, target_modules=QV, use_cayley_neumann=False,
                                            task_type="CAUSAL_LM")),
    "oft-shared": Case(llama, peft.OFTConfig(oft_block_size=8, target_modules=QV, block_share=True, coft=True,
                                             task_type="CAUSAL_LM")),
    "boft": Case(llama, peft.BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=1, target_modules=QV,
                                        task_type="CAUSAL_LM")),
    "hra": Case(llama, peft.HRAConfig(r=4, target_modules=QV, task_type="CAUSAL_LM")),
    "hra-gs": Case(llama, peft.HRAConfig(r=4, apply_GS=True, target_modules=QV, task_type="CAUSAL_LM")),
    "vera": Case(llama, peft.VeraConfig(r=4, target_modules=QV, save_projection=True, task_type="CAUSAL_LM")),
    "miss": Case(llama, peft.MissConfig(r=4, target_modules=QV, task_type="CAUSAL_LM")),
    "miss-mini": Case(llama, peft.MissConfig(r=4, mini_r=2, init_weights="mini", target_modules=QV,
                                             task_type="CAUSAL_LM")),
    "miss-bat": Case(llama, peft.MissConfig(r=4, init_weights="bat", target_modules=QV,
                                            task_type="CAUSAL_LM")),
    "layer-norm": Case(llama, peft.LNTuningConfig(target_modules=["input_layernorm", "norm"],
                                                  task_type="CAUSAL_LM")),
    "mixed": Case(llama, lora(QV), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[],
                                                  task_type="CAUSAL_LM"), logits=False, merged="chain"),
    "mixtral": Case(lambda: llama(cls="Mixtral", num_local_experts=4, num_experts_per_tok=2),
                    lora(["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])),
    "mixtral-rslora": Case(lambda: llama(cls="Mixtral", num_local_experts=4, num_experts_per_tok=2),
                           lora(["q_proj"], target_parameters=["experts.gate_up_proj"], use_rslora=True)),
    "mixtral-old-names": Case(lambda: llama(cls="Mixtral", num_local_experts=4, num_experts_per_tok=2),
                              lora(["q_proj", "w1", "w2", "w3"])),
    "qwen3-moe-old-names": Case(lambda: llama(cls="Qwen3Moe", num_experts=4, num_experts_per_tok=2,
                                              moe_intermediate_size=24, head_dim=8, decoder_sparse_step=1,
                                              mlp_only_layers=[]),
                                lora(["q_proj", "gate_proj", "up_proj", "down_proj"])),
    "qwen3-moe": Case(lambda: llama(cls="Qwen3Moe", num_experts=4, num_experts_per_tok=2,
                                    moe_intermediate_size=24, head_dim=8, decoder_sparse_step=1,
                                    mlp_only_layers=[]),
                      lora(["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])),
    "gpt-oss": Case(lambda: llama(cls="GptOss", num_local_experts=4, num_experts_per_tok=2, head_dim=8),
                    lora(["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])),
    "gpt-oss-square": Case(lambda: llama(cls="GptOss", num_local_experts=4, num_experts_per_tok=2, head_dim=8),
                           lora(["q_proj"], target_parameters=["experts.down_proj"])),
    # Heads, embeddings and names that classes have in their own way: PEFT's forward pass is the judge.
    "own-whisper-head": Case(whisper, plain(["q_proj", "proj_out"]), merged="apart"),
    "own-whisper-saved": Case(whisper, plain(["q_proj"], modules_to_save=["embed_tokens"]), merged="apart"),
    "own-whisper-tying": Case(whisper, plain(["q_proj"], modules_to_save=["embed_tokens"],
                                             ensure_weight_tying=True), merged="apart"),
    "own-bert-embedding": Case(lambda: encoder("Bert"), plain(["query", "word_embeddings"]), merged="apart"),
    "own-bert-grown": Case(lambda: encoder("Bert"), plain(["query"]), prepare=grow, merged="apart"),
    "own-roberta-saved": Case(roberta, plain(["query"], modules_to_save=["word_embeddings"]), merged="apart"),
    "own-modernbert-head": Case(modernbert, plain(["Wqkv", "decoder"]), merged="apart"),
    "own-bart-embedding": Case(bart, plain(["q_proj", "shared"]), merged="apart"),
    "own-bart-saved": Case(bart, plain(["q_proj"], modules_to_save=["shared"]), merged="apart"),
    "own-bart-grown": Case(bart, plain(["q_proj"]), prepare=grow, merged="apart"),
    "own-bert-copies": Case(lambda: encoder("Bert"), plain(["query", "word_embeddings"]), merged="apart",
                            copies=True),
    "own-bert-copies-grown": Case(lambda: encoder("Bert"), plain(["query"]), prepare=grow, merged="apart",
                                  copies=True),
    "own-bart-copies-tokens": Case(bart, plain(["q_proj"], trainable_token_indices={"shared": [5, 9]}),
                                   merged="apart", copies=True),
    "own-t5-copies-head": Case(t5, plain(["q", "lm_head"]), merged="apart", copies=True),
    "own-t5-copies-grown": Case(t5, plain(["q"]), prepare=grow, merged="apart", copies=True),
    "own-t5-untied-head": Case(lambda: t5(tie_word_embeddings=False), plain(["q", "lm_head"]), merged="apart"),
    "own-xlnet-head": Case(xlnet, plain(["layer_1", "lm_loss"]), merged="apart"),
    "own-flaubert-grown": Case(flaubert, plain(["q_lin"]), prepare=grow, merged="apart"),
    "own-prophetnet-embedding": Case(prophetnet, plain(["query_proj", "prophetnet.word_embeddings"]),
                                     merged="apart"),
    "own-neox-saved": Case(neox, plain(["query_key_value"], modules_to_save=["lm_head"]), merged="apart"),
    "own-neox-head": Case(neox, plain(["query_key_value", "lm_head"]), merged="apart"),
    "own-vit": Case(vit, plain("all-linear"), merged="apart"),
    "own-granite-experts": Case(granite_moe, plain(
        ["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]), merged="apart"),
    "own-nemotron": Case(nemotron, plain(
        ["q_proj"], target_parameters=["mixer.experts.up_proj", "mixer.experts.down_proj"]), merged="apart"),
    "own-router-alpha": Case(qwen_moe, plain("all-linear", alpha_pattern={"down_proj": 32}), merged="apart"),
    "own-router-rank": Case(qwen_moe, plain("all-linear", rank_pattern={"down_proj": 2}), merged="apart"),
    "own-norms": Case(llama, plain(["q_proj"], modules_to_save=["norm"]), merged="apart"),
    "own-saved-tying": Case(lambda: llama(tied=True), plain(["q_proj"], modules_to_save=["embed_tokens"],
                                                            ensure_weight_tying=True), merged="apart"),
    "own-gpt2-tying": Case(gpt2, plain(["c_attn", "wte"], fan_in_fan_out=True, ensure_weight_tying=True),
                           merged="apart"),
}


class Failure(Exception):
    pass


def ingot(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"ingot {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout + done.stderr


def held(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def logits(model, seed=3):
    torch.manual_seed(seed)
    kind = model.config.model_type
    with torch.no_grad():
        if kind == "vit":
            return model(pixel_values=torch.randn(2, 3, 16, 16)).logits
        ids = torch.randint(0, min(model.config.vocab_size, 96), (2, 20))
        if kind == "whisper":
            return model(input_features=torch.randn(2, 8, 60), decoder_input_ids=ids).logits
        if model.config.is_encoder_decoder:
            return model(input_ids=ids, decoder_input_ids=ids[:, :12]).logits
        return model(input_ids=ids).logits


def generate(model):
    ids = torch.tensor([[1, 7, 20, 33]])
    return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)


def build(case, folder):
    """Base, adapters and PEFT's merged model in a folder; the adapters' folders."""
    torch.manual_seed(7)
    model = case.model().float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at zero
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.tie_weights()
    base = folder / "base"
    model.save_pretrained(base)
    if case.copies:  # as older releases and torch.save leave them
        tensors = load_file(base / "model.safetensors")
        tensors |= {copy: model.state_dict()[name].clone() for copy, name in model.all_tied_weights_keys.items()}
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    if case.prepare:
        case.prepare(model)
        with torch.no_grad():
            model.get_input_embeddings().weight[-GROWN:].normal_(0, 0.3)
            if not model.config.tie_word_embeddings:
                model.get_output_embeddings().weight[-GROWN:].normal_(0, 0.3)
        model.config.name_or_path = model.name_or_path = str(base)
    adapters = []
    for i, config in enumerate(case.configs):
        fresh = load(base)
        if case.prepare:
            case.prepare(fresh)
            fresh.load_state_dict(model.state_dict())
        fresh.name_or_path = fresh.config._name_or_path = str(base)
        wrapped = peft.get_peft_model(fresh, config)
        torch.manual_seed(100 + i)
        stir(wrapped)
        adapters.append(folder / f"adapter{i}")
        wrapped.save_pretrained(adapters[-1])
    return base, adapters


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    return getattr(transformers, config["architectures"][0]).from_pretrained(folder, dtype=torch.float32).eval()


def reference(case, base, adapters):
    """The model with adapters as PEFT has it: merged, or unmerged where its merging is known to be off."""
    model = load(base)
    if case.prepare:
        case.prepare(model)
    if case.merged == "chain":
        for path in adapters:
            model = peft.PeftModel.from_pretrained(model, path).merge_and_unload()
        return model
    names = [f"a{i}" for i in range(len(adapters))]
    wrapped = peft.PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0])
    for name, path in zip(names[1:], adapters[1:]):
        wrapped.load_adapter(path, adapter_name=name)
    wrapped.base_model.set_adapter(names)
    wrapped.eval()
    if case.merged in ("apart", "forward"):
        return wrapped
    return wrapped.merge_and_unload(adapter_names=names)


def listen(out, theirs):
    """Relative difference of the logits of a baked folder and of PEFT's model; greedy text must be equal."""
    ours = load(out)
    a, b = logits(ours), logits(theirs)
    apart = ((a - b).norm() / b.norm()).item()
    if not apart <= 1e-5:
        raise Failure(f"logits: relative difference {apart:.3g}")
    causal = type(ours).__name__.endswith(("CausalLM", "LMHeadModel"))
    if causal and not torch.equal(generate(ours), generate(theirs)):
        raise Failure("greedy text differs")
    return apart


def compare(name, case, program, scratch):
    folder = scratch / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base, adapters = build(case, folder)
    out = folder / "out"
    said = ingot(program, "bake", base, *adapters, "-o", out, "--no-sync", "--dtype", "float32")
    ingot(program, "verify", out, "--quiet", "--all")
    theirs = reference(case, base, adapters)
    before, after = held(base), held(out)
    if all(n in after and torch.equal(before[n].float(), after[n]) for n in before) and not case.prepare:
        raise Failure("nothing changed")
    worst = 0.0
    if case.merged in (None, "chain"):
        theirs.save_pretrained(folder / "peft")
        own, other = held(out), held(folder / "peft")
        # An adapter that brings both ends of a tied pair leaves them apart: the head repeats the embedding.
        if set(own) - set(other) == {"lm_head.weight"}:
            other["lm_head.weight"] = other["model.embed_tokens.weight"]
        if set(own) != set(other):
            raise Failure(f"tensors differ: {sorted(set(own) ^ set(other))[:6]}")
        for tensor in sorted(own):
            a, b = own[tensor].double(), other[tensor].double()
            if a.shape != b.shape:
                raise Failure(f"{tensor}: PEFT {list(b.shape)}, ingot {list(a.shape)}")
            error = ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
            worst = max(worst, error)
            if not error <= case.close:
                raise Failure(f"{tensor}: relative difference {error:.3g}")
    apart = 0.0
    if case.logits:
        apart = listen(out, theirs)
    return worst, apart, [line for line in said.splitlines() if "warning" in line]


def zoo(program, models, adapters, scratch):
    """The example adapters: real ones, on the example base."""
    base = models / "base"
    sets = [[path.name] for path in sorted(adapters.iterdir())]
    sets += [["python-lora", "prose-lora"], ["c-lora", "python-dora"], ["python-dora", "c-lora"],
             ["python-ia3", "c-lora-r16"]]
    for names in sets:
        case = Case(None, merged="chain" if len({n.split("-")[1] for n in names} - {"dora", "lora"}) > 1 or
                    "ia3" in names[0] and len(names) > 1 else None)
        if "chat-lora" in names:
            case.prepare = lambda model: model.resize_token_embeddings(512, mean_resizing=False)
        folder = scratch / "-".join(names)
        out = folder / "out"
        paths = [adapters / name for name in names]
        shutil.rmtree(folder, ignore_errors=True)
        yield "+".join(names), case, base, paths, out


def run_zoo(name, case, base, paths, out, program):
    ingot(program, "bake", base, *paths, "-o", out, "--no-sync", "--dtype", "float32")
    ingot(program, "verify", out, "--quiet", "--all")
    theirs = reference(case, base, paths)
    other = theirs.state_dict()
    worst = 0.0
    own = held(out)
    for tensor in own:
        a, b = own[tensor].double(), other[tensor].double()
        error = ((a - b).norm() / b.norm()).item()
        worst = max(worst, error)
        if not error <= case.close:
            raise Failure(f"{tensor}: relative difference {error:.3g}")
    return worst, listen(out, theirs), []


def live(models, adapters, program, only=""):
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        todo = [(n, lambda n=n, c=c: compare(n, c, program, scratch)) for n, c in CASES.items()]
        todo += [(n, lambda a=(n, *rest): run_zoo(*a, program))
                 for n, *rest in zoo(program, models, adapters, scratch)]
        for case, run in todo:
            if only and not re.search(only, case):
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    worst, apart, said = run()
                print(f"{case:28} tensors {worst:.2g}, logits {apart:.2g}", *said[:2], sep="\n    ", flush=True)
            except Failure as e:
                failures += 1
                print(f"{case:28} FAILED: {e}", flush=True)
            except Exception as e:  # PEFT or transformers could not make the case
                failures += 1
                print(f"{case:28} FAILED: {type(e).__name__}: {str(e)[:400]}", flush=True)
    print(f"{failures} of the cases failed" if failures else "all cases agree")
    return 1 if failures else 0


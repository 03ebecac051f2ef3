#!/usr/bin/env python3
"""Records what PEFT makes of every family of adapters: small adapters with random values on one small
model, and the weights after merge_and_unload.

  families.py        writes tests/golden/families, which the ctest label `golden` compares with

Needs the environment of oracle.py (oracle.py setup). The base is stored in bf16; every case has its merged tensors twice: of the base as bf16, and of the
base raised to f32, as NAME@f32.
"""

import json
import pathlib
import shutil
import sys

import oracle

FOLDER = oracle.ROOT / "tests" / "golden" / "families"
LIMIT = 1_000_000  # bytes of committed goldens


def cases():
    """name -> adapters in order, each (configuration, options of filling)."""
    import peft

    def lora(*targets, **more):
        return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": list(targets), **more})

    def ia3(targets, ahead=()):
        return peft.IA3Config(target_modules=list(targets), feedforward_modules=list(ahead))

    def loha(*targets, **more):
        return peft.LoHaConfig(r=3, alpha=5, target_modules=list(targets), **more)

    def lokr(*targets, **more):
        return peft.LoKrConfig(**{"r": 2, "alpha": 3, "target_modules": list(targets), **more})

    def oft(*targets, **more):
        return peft.OFTConfig(**{"r": 0, "oft_block_size": 4, "target_modules": list(targets), **more})

    return {
        "lora": [lora("lin", "up")],
        "lora-rslora": [lora("lin", use_rslora=True)],
        "lora-patterns": [lora("lin", "up", rank_pattern={"up": 7}, alpha_pattern={"lin": 3})],
        "lora-bias": [lora("lin", lora_bias=True)],
        "lora-transposed": [lora("turned")],
        "lora-embedding": [lora("embed")],
        "lora-conv1d": [lora("conv1")],
        "lora-conv2d": [lora("conv2", "point")],
        "lora-conv3d": [lora("conv3")],
        "lora-attention": [lora("attention")],
        "lora-experts": [lora(target_parameters=["experts.fused"])],
        "lora-experts-transposed": [lora(target_parameters=["laid.fused"])],
        "lora-two": [lora("lin"), lora("lin", r=7, lora_alpha=20)],
        "lora-pissa": [lora("lin", "up", init_lora_weights="pissa"), lora("lin")],
        "lora-pissa-transposed": [lora("turned", init_lora_weights="pissa")],
        "lora-olora": [lora("lin", "up", init_lora_weights="olora")],
        "dora": [lora("lin", use_dora=True)],
        "dora-transposed": [lora("turned", use_dora=True)],
        "dora-embedding": [lora("embed", use_dora=True)],
        "dora-conv": [lora("conv1", "conv2", "conv3", use_dora=True)],
        "dora-two": [lora("lin", use_dora=True), lora("lin", r=7, use_dora=True)],
        "dora-after-lora": [lora("lin"), lora("lin", r=7, use_dora=True)],
        "ia3": [ia3(["lin", "up"], ["up"])],
        "ia3-transposed": [ia3(["turned"])],
        "ia3-transposed-inputs": [ia3(["turned"], ["turned"])],
        "ia3-conv": [ia3(["conv2", "conv3"], ["conv3"])],
        "ia3-groups": [ia3(["grouped"], ["grouped"])],
        "adalora": [peft.AdaLoraConfig(init_r=6, target_r=3, lora_alpha=9, total_step=10, tinit=1, tfinal=1,
                                       target_modules=["lin", "up"])],
        "adalora-transposed": [peft.AdaLoraConfig(init_r=6, lora_alpha=9, total_step=10, tinit=1, tfinal=1,
                                                  target_modules=["turned"])],
        "loha": [loha("lin", "up")],
        "loha-conv": [loha("conv1", "conv2", "point")],
        "loha-conv-cp": [loha("conv1", "conv2", use_effective_conv2d=True)],
        "loha-two": [loha("lin"), loha("lin")],
        "lokr": [lokr("lin", "up")],
        "lokr-full": [lokr("lin", r=40)],
        "lokr-both": [lokr("lin", r=1, decompose_both=True, decompose_factor=4)],
        "lokr-conv": [lokr("conv1", "conv2", "point", r=1)],
        # PEFT fails on a Conv1d in this form (PyTorch's kron of a view).
        "lokr-conv-cp": [lokr("conv2", r=1, use_effective_conv2d=True)],
        "lokr-conv-full": [lokr("conv1", "conv2", r=40)],
        "oft": [oft("lin", "up")],
        "oft-series": [oft("lin", num_cayley_neumann_terms=2), oft("lin", num_cayley_neumann_terms=3)],
        "oft-exact": [oft("lin", use_cayley_neumann=False)],
        "oft-constrained": [oft("lin", coft=True, eps=0.3)],
        "oft-shared": [oft("lin", block_share=True)],
        "oft-conv": [oft("conv2")],
        "oft-embedding": [oft("embed")],
        "boft": [peft.BOFTConfig(boft_block_size=4, target_modules=["lin"])],
        # Of blocks that later stages mix: 2, then 4 blocks.
        "boft-stages": [peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=3, target_modules=["lin"]),
                        peft.BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=2, target_modules=["up"])],
        "boft-conv": [peft.BOFTConfig(boft_block_size=4, target_modules=["conv2"])],
        "hra": [peft.HRAConfig(r=4, target_modules=["lin"])],
        "hra-orthonormal": [peft.HRAConfig(r=4, apply_GS=True, target_modules=["lin"])],
        "hra-conv": [peft.HRAConfig(r=4, target_modules=["conv2"])],
        "vera": [peft.VeraConfig(r=8, target_modules=["lin", "up"])],
        "miss": [peft.MissConfig(r=4, target_modules=["lin", "up"])],
        "miss-mini": [peft.MissConfig(r=4, mini_r=5, init_weights="mini", target_modules=["lin"])],
        "miss-bat": [peft.MissConfig(r=4, init_weights="bat", target_modules=["lin"])],
        "tokens": [peft.TrainableTokensConfig(token_indices=[5, 2, 9], target_modules=["embed"])],
        "norm": [peft.LNTuningConfig(target_modules=["norm"])],
    }


def model(dtype):
    """One layer of every kind. Values lie on bf16's grid, so the base is the same in both types."""
    import torch
    from transformers.pytorch_utils import Conv1D

    class Experts(torch.nn.Module):
        def __init__(self, *shape, transposed=False):
            super().__init__()
            self.is_transposed = transposed
            self.fused = torch.nn.Parameter(torch.zeros(shape))

        def forward(self, x):
            return x

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(16, 20)
            self.up = torch.nn.Linear(12, 16, bias=False)
            self.turned = Conv1D(12, 16)
            self.embed = torch.nn.Embedding(11, 12)
            self.conv1 = torch.nn.Conv1d(4, 6, 3)
            self.conv2 = torch.nn.Conv2d(4, 6, 3)
            self.point = torch.nn.Conv2d(4, 6, 1)
            self.conv3 = torch.nn.Conv3d(4, 6, (2, 3, 1))
            self.grouped = torch.nn.Conv2d(8, 6, 1, groups=2)
            self.attention = torch.nn.MultiheadAttention(8, 2)
            self.experts = Experts(3, 10, 6)
            self.laid = Experts(3, 6, 10, transposed=True)
            self.norm = torch.nn.LayerNorm(16)

        def forward(self, x):
            return self.lin(x)

    tiny = Tiny()
    generator = torch.Generator().manual_seed(1)
    for parameter in tiny.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).bfloat16().to(dtype)
    return tiny


def fill(name, tuned):
    """Random values for what is trained: small enough that no rotation or product gets out of hand."""
    import torch

    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    for key, parameter in tuned.named_parameters():
        if not parameter.requires_grad:
            continue
        values = torch.randn(parameter.shape, generator=generator)
        if "ia3_l" in key or "boft_s" in key:
            values = 1 + 0.5 * values
        elif "oft_" in key:
            values = 0.2 * values
        elif "magnitude" in key:
            values = parameter.data.float() * (1 + 0.3 * values)
        else:
            values = 0.5 * values
        parameter.data = values.to(parameter.dtype)


class Blocks:
    """Stands for PEFT's CUDA extension, without which it knows only one stage: blocks on a diagonal."""

    @staticmethod
    def forward(blocks):
        import torch
        return [torch.stack([torch.block_diag(*stage) for stage in blocks])]


def record(name, configs, folder):
    import peft
    import torch
    from safetensors.torch import save_file

    names = []
    for i, config in enumerate(configs):
        at = folder / chr(ord("a") + i)
        tuned = peft.get_peft_model(model(torch.float32), config)
        fill(f"{name}{i}", tuned)
        if name == "adalora":
            prune(tuned, config)
        tuned.save_pretrained(at)
        (at / "README.md").unlink(missing_ok=True)
        names.append(at.name)
    merged = {}
    for dtype, suffix in ((torch.float32, "@f32"), (torch.bfloat16, "")):
        before = {k: v.clone() for k, v in model(dtype).state_dict().items()}
        tuned = peft.PeftModel.from_pretrained(model(dtype), folder / names[0])
        for other in names[1:]:
            tuned.load_adapter(folder / other, adapter_name=other)
        # Merging several OFT adapters reverses the order of the forward pass, which counts here.
        order = ["default", *names[1:]]
        order = order[::-1] if name.startswith("oft") else order
        after = tuned.merge_and_unload(adapter_names=order).state_dict()
        for key, value in after.items():
            assert value.dtype == dtype, (name, key, value.dtype)
            if not torch.equal(value, before[key]):
                merged[key + suffix] = value.contiguous()
    assert any(k.endswith("@f32") for k in merged) and any("@" not in k for k in merged), name
    save_file(merged, folder / "merged.safetensors")


def prune(tuned, config):
    """What AdaLoRA's rank allocation leaves: some ranks of one module are gone."""
    config.rank_pattern = {}
    for key, parameter in tuned.named_parameters():
        if "lora_E" in key:
            kept = [not (".lin." in key and k in (1, 4)) for k in range(parameter.shape[0])]
            config.rank_pattern[key.removeprefix("base_model.model.").removesuffix(".default")] = kept


def main():
    oracle.enter()
    import peft.tuners.boft.layer
    import safetensors.torch
    import torch
    import truth

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    peft.tuners.boft.layer.get_fbd_cuda = lambda: Blocks
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    base = FOLDER / "base"
    base.mkdir()
    safetensors.torch.save_file(model(torch.bfloat16).state_dict(), base / "model.safetensors")
    (base / "config.json").write_text('{"architectures": ["Tiny"], "dtype": "bfloat16"}\n')
    for name, configs in cases().items():
        record(name, configs, FOLDER / name)
    source = pathlib.Path(__file__).resolve()
    summary = {"versions": {name: oracle.PINS[name] for name in ("peft", "torch", "transformers")},
               "files": {str(source.relative_to(oracle.ROOT)): f"{truth.xxh64(source.read_bytes()):016x}"}}
    (FOLDER / "families.json").write_text(json.dumps(summary, indent=1) + "\n")
    size = sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file())
    print(f"families: {size} bytes in {FOLDER}")
    if size > LIMIT:
        sys.exit(f"families: at most {LIMIT} bytes are meant to be committed")


if __name__ == "__main__":
    main()

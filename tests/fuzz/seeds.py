#!/usr/bin/env python3
"""Writes the seeds of the corpus: small valid pickles, archives, configs and adapters.

    python3 tests/fuzz/seeds.py

Seeds are named seed-*; the other files of the corpora are written by hand or broke a target once.
"""
import collections
import io
import json
import pathlib
import pickle
import sys
import types
import zipfile

ROOT = pathlib.Path(__file__).parents[2]
CORPUS = ROOT / "tests/fuzz/corpus"


def write(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{name}").write_bytes(data if isinstance(data, bytes) else data.encode())


# Names that a pickle refers to: enough of torch and numpy for pickle to write them down.
def stand_in(module, name):
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(parts[i]))
    function = lambda *args: None  # noqa: E731
    function.__module__, function.__name__, function.__qualname__ = module, name, name
    setattr(sys.modules[module], name, function)
    return function


class Call:
    """An object that pickles as a call of `function`."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


class Storage:
    def __init__(self, kind, key, count):
        self.id = ("storage", kind, key, "cpu", count)


class Pickler(pickle._Pickler):  # the one in Python, which asks for persistent ids of any object
    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None


def pickled(value, protocol=2):
    out = io.BytesIO()
    Pickler(out, protocol).dump(value)
    return out.getvalue()


def pickles():
    rebuild = {v: stand_in("torch._utils", f"_rebuild_{v}")
               for v in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")}
    kinds = {name: stand_in("torch", name + "Storage") for name in "Float Half BFloat16 Long Bool".split()}
    untyped = stand_in("torch.storage", "UntypedStorage")
    float8 = stand_in("torch", "float8_e4m3fn")
    hooks = collections.OrderedDict

    def tensor(kind, key, count, offset, shape, stride):
        return Call(rebuild["tensor_v2"], Storage(kinds[kind], key, count), offset, shape, stride, False, hooks())

    whole = tensor("Float", "0", 24, 0, (4, 6), (6, 1))
    views = {"whole": whole, "turned": tensor("Float", "0", 24, 0, (6, 4), (1, 6)), "tied": whole,
             "part": tensor("Half", "2", 48, 7, (3, 2), (12, 5)), "one": tensor("BFloat16", "3", 48, 47, (), ()),
             "none": tensor("Bool", "4", 96, 0, (0, 3), (3, 1)), "large": tensor("Long", "1", 60, 0, (3, 4, 5), (20, 5, 1))}
    others = {"p": Call(rebuild["parameter"], whole, True, hooks()),
              "q": Call(rebuild["parameter_with_state"], whole, True, hooks(), {"tag": 1}),
              "old": Call(rebuild["tensor"], Storage(kinds["Float"], "0", 24), 0, (24,), (1,)),
              "f8": Call(rebuild["tensor_v3"], Storage(untyped, "5", 96), 32, (8, 8), (8, 1), False, hooks(), float8)}
    scalar = Call(stand_in("numpy._core.multiarray", "scalar"),
                  Call(stand_in("numpy", "dtype"), "f8", False, True, state=(3, "<", None, None, None, -1, -1, 0)),
                  Call(stand_in("_codecs_stand_in", "encode"), "x", "latin1"))
    wrapped = {"epoch": 3, "loss": 0.5, "big": 1 << 70, "history": [(1, 2.0), None, True], "best": scalar,
               "size": Call(stand_in("torch", "Size"), (1, 2)), "raw": b"x", "state_dict": views}
    for protocol in (2, 4, 5):
        write("pickle", f"views-{protocol}", pickled(views, protocol))
    write("pickle", "others", pickled(others))
    write("pickle", "wrapped", pickled(wrapped, 3).replace(b"_codecs_stand_in", b"_codecs"))
    write("pickle", "module", pickled({"state_dict": Call(hooks, state={"_metadata": hooks()})}))
    for name in ("views", "wrapped", "module-1.13.1", "types"):
        with zipfile.ZipFile(ROOT / f"tests/hostile/saved/{name}.bin") as archive:
            inner = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            write("pickle", f"torch-{name}", archive.read(inner))

    small = pickled({"w": whole})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in (("m/data.pkl", small), ("m/byteorder", b"little"), ("m/data/0", bytes(96)), ("m/version", b"3\n")):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=name == "m/data/0") as member:
                member.write(data)
    write("zip", "plain", out.getvalue())
    for name in ("module", "module-1.13.1", "protocol4", "legacy", "script"):
        write("zip", f"torch-{name}", (ROOT / f"tests/hostile/saved/{name}.bin").read_bytes())


def configs():
    write("config", "llama", json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "vocab_size": 16,
                                         "torch_dtype": "float32", "tie_word_embeddings": False, "rope_theta": 1e4,
                                         "layer_types": ["full_attention", "sliding_attention"]}))
    write("config", "nested", '{"text_config":{"num_hidden_layers":2,"dtype":"bfloat16"},"vision_config":{"depth":1},'
                              '"quantization_config":{"quant_method":"fp8"},"x":[NaN,Infinity,-Infinity,"NaN"],"y":"\\u00e4"}')


def adapters():
    def adapter(name, config, tensors):
        lines = [" ".join([key, *map(str, shape)]) for key, shape in tensors.items()]
        write("adapter", name, "\n".join([json.dumps(config), "--", *lines]) + "\n")

    def pair(path, rank=2, inputs=4, outputs=6):
        return {f"base_model.model.{path}.lora_A.weight": (rank, inputs),
                f"base_model.model.{path}.lora_B.weight": (outputs, rank)}

    lora = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    adapter("lora", {**lora, "target_modules": ["q_proj"], "bias": "all", "use_rslora": True,
                     "rank_pattern": {r"layers\.\d\.k": 3}, "alpha_pattern": {"q_proj": 1.5}},
            {**pair("layers.0.q_proj"), "base_model.model.layers.0.q_proj.base_layer.bias": (6,)})
    adapter("whole", {**lora, "modules_to_save": ["lm_head"], "trainable_token_indices": {"embed_tokens": [3, 1]}},
            {**pair("q"), "base_model.model.lm_head.modules_to_save.weight": (9, 4),
             "base_model.model.lm_head.original_module.weight": (9, 4), "base_model.model.lm_head.weight": (9, 4),
             "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": (2, 4)})
    adapter("dora", {**lora, "use_dora": True, "target_modules": r".*\.(?!k)q"},
            {**pair("m.q"), "base_model.model.m.q.lora_magnitude_vector": (6,)})
    adapter("experts", {**lora, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
                        "rank_pattern": {r".*\.gate_up_proj": 4}},
            {**pair("mlp.experts.base_layer", 12), **pair("mlp.experts", 6)})
    adapter("embedding", {**lora, "ensure_weight_tying": True, "layer_replication": [[0, 2], [1, 2]]},
            {"base_model.model.embed_tokens.lora_embedding_A": (2, 9),
             "base_model.model.embed_tokens.lora_embedding_B": (4, 2), **pair("lm_head", 2, 4, 9)})
    adapter("ia3", {"peft_type": "IA3", "target_modules": ["k"], "feedforward_modules": []},
            {"base_model.model.k.ia3_l": (4, 1)})
    adapter("adalora", {"peft_type": "ADALORA", "init_r": 3, "lora_alpha": 4, "target_modules": ["k"]},
            {"base_model.model.k.lora_A": (2, 4), "base_model.model.k.lora_B": (6, 2), "base_model.model.k.lora_E": (2, 1)})
    adapter("loha", {"peft_type": "LOHA", "r": 2, "alpha": 4, "target_modules": ["k"]},
            {f"base_model.model.k.hada_{part}": (4, 2) if part.endswith("a") else (2, 4)
             for part in ("w1_a", "w1_b", "w2_a", "w2_b")})
    adapter("lokr", {"peft_type": "LOKR", "r": 2, "alpha": 4, "target_modules": ["k"]},
            {"base_model.model.k.lokr_w1": (2, 2), "base_model.model.k.lokr_w2_a": (4, 2),
             "base_model.model.k.lokr_w2_b": (2, 4)})
    adapter("vera", {"peft_type": "VERA", "r": 2, "target_modules": ["k"]},
            {"base_model.vera_A": (2, 4), "base_model.vera_B": (6, 2), "base_model.model.k.vera_lambda_b": (6,),
             "base_model.model.k.vera_lambda_d": (2,)})


if __name__ == "__main__":
    pickles()
    configs()
    adapters()

#!/usr/bin/env python3
"""Saves small checkpoints with torch and writes down what torch itself reads back from them.

    python tests/hostile/saved/make.py            # any torch >= 1.13; needs numpy

Writes NAME.bin beside this script and its line in expected.json: for each tensor its element type,
shape and elements as hexadecimal bytes in row-major order, or the words with which the file has to be
refused. torch before 2.3 writes files with its version in their name and leaves the others alone.
"""
import collections
import json
import pathlib
import sys

import numpy
import torch

HERE = pathlib.Path(__file__).parent
NEW = hasattr(torch, "uint16")


def data(shape, dtype=torch.float32):
    count = int(numpy.prod(shape, dtype=numpy.int64))
    return torch.arange(1, 1 + count).reshape(shape).to(dtype)


def types():
    words = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64".split()
    if NEW:
        words += "float8_e4m3fn float8_e5m2 float8_e8m0fnu uint16 uint32 uint64".split()
    return {word: data((3,), getattr(torch, word)) for word in words}


def views():
    whole = data((4, 6))
    return collections.OrderedDict(
        whole=whole,
        transposed=whole.t(),
        rows=whole[1:3],
        columns=whole[:, 2:5],
        stepped=whole[::2, 1::3],
        scalar=whole[2, 3],
        empty=whole[4:, 2:],
        tied=whole,
        permuted=data((2, 3, 4, 5)).permute(0, 3, 1, 2),
        single=whole[:, :1].t(),
        parameter=torch.nn.Parameter(whole[0]),
    )


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def module():
    torch.manual_seed(1)
    return Tied().state_dict()


def wrapped():
    torch.manual_seed(2)
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"epoch": 3, "loss": 0.5, "best": numpy.float64(0.25), "step": numpy.int64(1 << 40), "seed": 1 << 90,
            "name": "net", "device": torch.device("cpu"), "size": torch.Size([2, 3]), "raw": b"\0\xff", "none": None,
            "history": [(1, 0.5), (2, -1)], "dtype": torch.float16, "state_dict": net.state_dict(),
            "optimizer": optimizer.state_dict()}


def expanded():
    return {"mask": torch.ones(1).expand(1000, 1000)}


def conjugate():
    return {"w": torch.ones(2, dtype=torch.complex64).conj()}


def record(tensor):
    dense = tensor.detach().contiguous()
    if dense.is_conj():
        dense = dense.resolve_conj()
    flat = dense.reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "hex": raw.hex()}


def save(name, value, refused=None, **options):
    path = HERE / f"{name}.bin"
    if isinstance(value, torch.jit.ScriptModule):
        value.save(str(path))
    else:
        torch.save(value, path, **options)
    if refused:
        expect(path.name, {"refused": refused})
    else:
        loaded = torch.load(path, weights_only=False) if NEW else torch.load(path)
        loaded = loaded.get("state_dict", loaded)
        expect(path.name, {"tensors": {key: record(tensor) for key, tensor in loaded.items()}})


def expect(file, entry):
    path = HERE / "expected.json"
    lines = json.loads(path.read_text()) if path.exists() else {}
    lines[file] = {"torch": torch.__version__, **entry}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(lines[name])}" for name in sorted(lines))
    path.write_text("{\n" + rows + "\n}\n")


def main():
    if not NEW:
        version = torch.__version__.split("+")[0]
        for make in (types, views, module, wrapped):
            save(f"{make.__name__}-{version}", make())
        return
    for make in (types, views, module, wrapped):
        save(make.__name__, make())
    save("protocol4", views(), pickle_protocol=4)
    save("protocol5", types(), pickle_protocol=5)
    save("expanded", expanded(), "an expanded view")
    save("conjugate", conjugate(), "metadata that changes its values")
    save("legacy", module(), "torch before 1.6", _use_new_zipfile_serialization=False)
    save("pickled", torch.nn.Linear(1, 1), "asks for 'torch.nn.modules.linear.Linear'")
    save("callable", {"w": torch.ones(1), "f": eval}, "asks for '__builtin__.eval'")
    save("set", {"state_dict": module(), "tags": {1}}, "asks for '__builtin__.set'")
    save("sparse", {"w": torch.eye(2).to_sparse()}, "asks for 'torch._utils._rebuild_sparse_tensor'")
    save("script", torch.jit.script(torch.nn.ReLU()), "as TorchScript archives are")


if __name__ == "__main__":
    sys.exit(main())

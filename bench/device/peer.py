#!/usr/bin/env python3
"""What the straightforward torch operations of a merge cost on this card; JSON on standard output.

  peer.py HIDDEN LAYERS ROUNDS

The tensors are those of measure: a base and three fine-tunes in bfloat16, in host memory. Every tensor is
brought to the card, merged with whole-tensor operations in the shape of mergekit's, and brought back.
"""

import json
import statistics
import sys
import time

import torch

hidden, layers, rounds = map(int, sys.argv[1:4])
inner = hidden * 11008 // 4096
shapes = [(hidden, hidden)] * 4 * layers + [(hidden, inner)] * 3 * layers
generator = torch.Generator().manual_seed(1)
tensors = []
for shape in shapes:
    base = torch.randn(shape, generator=generator) * 0.02
    tensors.append([base.to(torch.bfloat16)] + [
        (base + torch.randn(shape, generator=generator) * 2e-3).to(torch.bfloat16) for _ in range(3)])


def linear(group):
    stack = torch.stack([t.to("cuda") for t in group])
    weight = torch.tensor([0.3, 0.4, 0.5, 0.6], dtype=stack.dtype, device="cuda").view(-1, 1, 1)
    return ((stack * weight).sum(dim=0) / weight.sum(dim=0)).cpu()


def ties(group):
    base, *tuned = [t.to("cuda") for t in group]
    deltas = []
    for one in tuned:
        delta = one - base
        keep = int(delta.numel() * 0.5)
        order = torch.argsort(delta.abs().view(-1), descending=True)
        mask = torch.zeros(delta.numel(), dtype=delta.dtype, device="cuda")
        mask[order[:keep]] = 1
        deltas.append(delta * mask.view_as(delta))
    weight = torch.tensor([0.3, 0.4, 0.5], dtype=base.dtype, device="cuda").view(-1, 1, 1)
    weighted = torch.stack(deltas) * weight
    majority = torch.where(weighted.sum(dim=0) >= 0, 1, -1).to(base.dtype)
    agree = weighted.sign() == majority
    divisor = (weight * agree).sum(dim=0)
    divisor[divisor == 0] = 1
    return (base + (weighted * agree).sum(dim=0) / divisor).cpu()


def median(work):
    seconds = []
    for i in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if i > 0:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


result = {"torch": torch.__version__, "device": torch.cuda.get_device_name(0)}
for name, method in (("linear", linear), ("ties", ties)):
    result[name] = median(lambda: [method(group) for group in tensors])
count = min(100_000_000, torch.cuda.mem_get_info()[0] // 40)
# A layer's matrices decomposed whole, as PEFT does with formed products and mergekit with deltas.
matrices = [torch.randn(shape, device="cuda") for shape in [(hidden, hidden)] * 4 + [(hidden, inner)] * 3]
result["svd"] = median(lambda: [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices])
del matrices
numbers = torch.randn(count, device="cuda").abs()
result["selection_elements"] = count
result["sort"] = median(lambda: torch.sort(numbers))
result["topk"] = median(lambda: torch.topk(numbers, count // 2, sorted=False))
result["kthvalue"] = median(lambda: torch.kthvalue(numbers, count // 2))
print(json.dumps(result))

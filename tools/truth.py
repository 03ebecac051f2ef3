#!/usr/bin/env python3
"""An independent evaluation of every merge formula in double precision, and of the random masks.

Written from the formulas in docs/numbers.md and the papers, sharing no text with the engine: it is what the
engine and its peers are measured against. Needs NumPy and nothing else. As a program it checks
itself (`truth.py check`) or prints a random mask (`truth.py mask NAME POSITION COUNT DENSITY`).
"""

import argparse
import json
import struct
import sys
from dataclasses import dataclass, field

import numpy as np

MASK64 = (1 << 64) - 1
EPS32 = 2.0**-24  # half a unit in the last place of 1.0 in f32


# ---------------------------------------------------------------------------------------------------
# Stored numbers


def decode(raw, dtype):
    """Little-endian bytes of a safetensors dtype as float64, exactly."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
             "I8": "i1", "U8": "u1", "BOOL": "u1"}
    return np.frombuffer(raw, kinds[dtype]).astype(np.float64)


def encode(values, dtype):
    """float64 values rounded once to a safetensors dtype (to nearest, ties to even), as bytes."""
    if dtype == "BF16":
        return _bf16(values).astype("<u2").tobytes()
    return np.asarray(values, np.float64).astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def rounded(values, dtype):
    """float64 values rounded once to a dtype, returned as float64."""
    return decode(encode(values, dtype), dtype).reshape(np.shape(values))


def _bf16(values):
    # Round to odd in f32 first, so that the second rounding sees everything the double held.
    exact = np.asarray(values, np.float64)
    single = exact.astype(np.float32)
    bits = single.view(np.uint32).copy()
    low = np.abs(single.astype(np.float64)) > np.abs(exact)  # rounded away from zero: step back
    bits = np.where(low, bits - 1, bits)
    inexact = bits.astype(np.uint32).view(np.float32).astype(np.float64) != exact
    bits = np.where(inexact, bits | 1, bits).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def read_safetensors(path):
    """{name: (dtype, array in float64)} of one file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            values = decode(data[begin:end], entry["dtype"]).reshape(entry["shape"])
            found[name] = (entry["dtype"], values)
    return found


def write_safetensors(path, tensors, metadata=None):
    """Writes {name: (dtype, shape, bytes)}, sorted by name."""
    header, place = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name in sorted(tensors):
        dtype, shape, raw = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(raw)]}
        place += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(tensors[name][2])


# ---------------------------------------------------------------------------------------------------
# Randomness: Philox4x32-10 keyed by the seed, XXH64 for the stream


def xxh64(data, seed=0):
    """XXH64 of bytes, from its specification."""
    p1, p2, p3 = 11400714785074694791, 14029467366897019727, 1609587929392839161
    p4, p5 = 9650029242287828579, 2870177450012600261

    def turn(x, r):
        return ((x << r) | (x >> (64 - r))) & MASK64

    def mix(lane, word):
        return turn((lane + word * p2) & MASK64, 31) * p1 & MASK64

    at = 0
    if len(data) >= 32:
        lanes = [(seed + p1 + p2) & MASK64, (seed + p2) & MASK64, seed, (seed - p1) & MASK64]
        while at + 32 <= len(data):
            words = struct.unpack_from("<4Q", data, at)
            lanes = [mix(lane, word) for lane, word in zip(lanes, words)]
            at += 32
        h = sum(turn(lane, r) for lane, r in zip(lanes, (1, 7, 12, 18))) & MASK64
        for lane in lanes:
            h = ((h ^ mix(0, lane)) * p1 + p4) & MASK64
    else:
        h = (seed + p5) & MASK64
    h = (h + len(data)) & MASK64
    while at + 8 <= len(data):
        h = (turn(h ^ mix(0, struct.unpack_from("<Q", data, at)[0]), 27) * p1 + p4) & MASK64
        at += 8
    if at + 4 <= len(data):
        h = (turn(h ^ (struct.unpack_from("<I", data, at)[0] * p1 & MASK64), 23) * p2 + p3) & MASK64
        at += 4
    for byte in data[at:]:
        h = turn(h ^ (byte * p5 & MASK64), 11) * p1 & MASK64
    h = (h ^ (h >> 33)) * p2 & MASK64
    h = (h ^ (h >> 29)) * p3 & MASK64
    return h ^ (h >> 32)


def philox(counter, key):
    """Philox4x32-10 of arrays: counter is four uint32 arrays, key two integers; four uint32 arrays."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = ((p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low,
                          (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c.astype(np.uint32) for c in (c0, c1, c2, c3)]


def stream_of(name, position, purpose="drop"):
    """The random stream of one source of one output tensor."""
    return xxh64(b"\0".join([name.encode(), purpose.encode(), str(position).encode()]))


def keep_mask(seed, stream, count, density):
    """True where an element of a tensor of `count` elements is kept with probability `density`."""
    if density >= 1:
        return np.ones(count, bool)
    if density <= 0:
        return np.zeros(count, bool)
    threshold = int(density * 2.0**48)  # the scaling is exact, int() truncates
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)

    def words(blocks):
        blocks = np.asarray(blocks, np.uint64)
        ones = np.ones_like(blocks)
        return np.stack(philox((blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32),
                                ones * np.uint64(stream & 0xFFFFFFFF), ones * np.uint64(stream >> 32)),
                               key), axis=-1)

    first = words(np.arange((count + 7) // 8))
    draws = np.stack([first & 0xFFFF, first >> 16], axis=-1).reshape(-1)[:count]
    keep = draws < (threshold >> 32)
    (even,) = np.nonzero(draws == (threshold >> 32))
    if even.size:
        second = words((even // 4).astype(np.uint64) | np.uint64(1 << 63))
        keep[even] = second[np.arange(even.size), even % 4] < (threshold & 0xFFFFFFFF)
    return keep


# ---------------------------------------------------------------------------------------------------
# Formulas


@dataclass
class Value:
    """A merged tensor in double precision, and what is needed to judge another evaluation of it."""

    result: np.ndarray
    largest: np.ndarray  # magnitude of the largest term or sum that an element is made of
    tie: np.ndarray      # True where a decision (vote, threshold, divisor) hangs on a rounding
    counts: dict = field(default_factory=dict)


def linear(tensors, weights, normalize=True):
    """sum(w x) / sum(w), or without the division."""
    divisor = sum(weights) if normalize else 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [w * x / divisor for w, x in zip(weights, tensors)]
        result = sum(w * x for w, x in zip(weights, tensors)) / divisor
    largest = np.maximum(np.max(np.abs(terms), axis=0), np.abs(result))
    return Value(result, largest, np.zeros(result.shape, bool))


def slerp(base, other, t):
    """Spherical interpolation of the flattened tensors (Shoemake 1985), straight where they nearly align."""
    norms = [np.sqrt(np.sum(v * v)) for v in (base, other)]
    norms = [n if n > 1e-8 else 1.0 for n in norms]
    cosine = np.clip(np.sum((base / norms[0]) * (other / norms[1])), -1.0, 1.0)
    if abs(cosine) > 0.9995:
        s0, s1 = 1.0 - t, t
    else:
        angle = np.arccos(cosine)
        s0, s1 = np.sin((1.0 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    near = np.full(base.shape, abs(abs(cosine) - 0.9995) < 1e-6)
    result = s0 * base + s1 * other
    largest = np.max([np.abs(s0 * base), np.abs(s1 * other), np.abs(result)], axis=0)
    return Value(result, largest, near, {"cosine": float(cosine)})


def passthrough(tensor, scale=None):
    result = tensor if scale is None else tensor * scale
    return Value(result, np.abs(result), np.zeros(tensor.shape, bool))


def kept(density, count):
    """How many elements a selection keeps: trunc(density * count), at least one."""
    if density >= 1 or count == 0:
        return count
    return 0 if density <= 0 else max(1, int(density * count))


def select(delta, density):
    """(mask, tie) of the k largest magnitudes as f32, ties to the lowest index."""
    flat = np.abs(delta.astype(np.float32)).reshape(-1)
    k = kept(density, flat.size)
    mask, tie = np.zeros(flat.size, bool), np.zeros(flat.size, bool)
    if k == flat.size:
        return np.ones(delta.shape, bool), tie.reshape(delta.shape)
    if k > 0:
        mask[np.argsort(-flat, kind="stable")[:k]] = True
        threshold = flat[mask].min()
        at = flat == threshold
        if threshold > 0 and at.sum() > (mask & at).sum():
            tie = at
    return mask.reshape(delta.shape), tie.reshape(delta.shape)


def task_arithmetic(base, tensors, weights, densities=None, mask="none", consensus=False,
                    normalize=False, rescale=False, scale=1.0, keep=None):
    """base + scale * (combination of thinned task vectors).

    mask: "none", "select" (largest magnitudes) or "random" (`keep`: one boolean array per tensor).
    """
    tie = np.zeros(base.shape, bool)
    if not tensors:
        return Value(base.copy(), np.abs(base), tie)
    densities = densities or [1.0] * len(tensors)
    # Decisions (thresholds, votes, whether weights cancel) are made in f32, as the contract says: `voices` are
    # the weighted task vectors in that arithmetic, `terms` the same in double.
    single = np.float32
    terms, voices, threshold_ties = [], [], 0
    for i, (x, w, density) in enumerate(zip(tensors, weights, densities)):
        delta, voice, gain = x - base, x.astype(single) - base.astype(single), single(w)
        if mask != "none" and density < 1:
            if mask == "select":
                chosen, edge = select(voice, density)
                tie |= edge
                threshold_ties += int(edge.sum())
            else:
                chosen = keep[i].reshape(base.shape)
            before, after = np.abs(delta).sum(), np.abs(delta[chosen]).sum()
            factor = 1.0
            if rescale:
                factor = before / after if before >= 1e-7 and after >= 1e-7 else 1.0
                gain = np.float64(gain) * factor  # the product with it is rounded once
            delta, voice = np.where(chosen, delta * factor, 0.0), np.where(chosen, voice, 0)
        terms.append(w * delta)
        voices.append((voice.astype(np.float64) * gain).astype(single))
    biggest = np.max(np.abs(terms), axis=0)
    votes = np.zeros(base.shape, bool)
    if consensus:
        total = np.zeros(base.shape, single)
        for voice in voices:
            total = total + voice
        conflict = (np.min(terms, axis=0) < 0) & (np.max(terms, axis=0) > 0)
        votes = conflict & (np.abs(sum(terms)) <= 8 * len(terms) * EPS32 * biggest)
        agrees = [np.sign(voice) == np.where(total >= 0, 1, -1) for voice in voices]
        merged = sum(np.where(a, y, 0.0) for a, y in zip(agrees, terms))
        divisor = sum(np.where(a, w, 0.0) for a, w in zip(agrees, weights))
        shares = np.zeros(base.shape, single)
        for a, w in zip(agrees, weights):
            shares = shares + np.where(a, single(w), single(0))
        weighty = np.max([np.where(a, abs(w), 0.0) for a, w in zip(agrees, weights)], axis=0)
        if normalize:
            votes |= (weighty > 0) & (np.abs(divisor) <= 8 * len(terms) * EPS32 * weighty)
        divisor = np.where(shares == 0, 1.0, divisor)
    else:
        merged = sum(terms)
        divisor = sum(weights)
        divisor = 1.0 if abs(divisor) < 1e-8 else divisor
    merged = merged * scale / divisor if normalize else merged * scale
    factor = np.abs(scale / divisor if normalize else scale)
    result = base + merged
    largest = np.max([np.abs(base), np.abs(merged), np.abs(result), biggest * factor], axis=0)
    return Value(result, largest, tie | votes,
                 {"threshold": threshold_ties, "vote": int(votes.sum())})


METHODS = {  # mask, consensus, normalize, rescale
    "task_arithmetic": ("none", False, False, False),
    "ties": ("select", True, True, False),
    "dare_linear": ("random", False, False, True),
    "dare_ties": ("random", True, False, True),
}


def evaluate(method, name, base, tensors, parameters, seed=0):
    """One output tensor.

    `tensors` are the inputs in file order, without the base where the method has one. `parameters` holds
    lists (one value per tensor) for weight, density and scale and single values for the rest.
    """
    if method == "linear":
        return linear(tensors, parameters["weight"], parameters.get("normalize", True))
    if method == "slerp":
        return slerp(base, tensors[0], parameters["t"])
    if method == "passthrough":
        return passthrough(tensors[0], parameters.get("scale", [None])[0])
    mask, consensus, normalize, rescale = METHODS[method]
    densities = parameters.get("density") or [1.0] * len(tensors)
    keep = None
    if mask == "random":
        keep = [keep_mask(seed, stream_of(name, i), base.size, d) for i, d in enumerate(densities)]
    return task_arithmetic(base, tensors, parameters["weight"], densities, mask, consensus,
                           parameters.get("normalize", normalize), parameters.get("rescale", rescale),
                           parameters.get("lambda", 1.0), keep)


# ---------------------------------------------------------------------------------------------------
# Known answers


def check():
    """Raises AssertionError unless every known answer comes out."""
    words = philox(([0], [0], [0], [0]), (0, 0))
    assert [int(w[0]) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    words = philox(([ones], [ones], [ones], [ones]), (ones, ones))
    assert [int(w[0]) for w in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    words = philox(([0x243F6A88], [0x85A308D3], [0x13198A2E], [0x03707344]), (0xA4093822, 0x299F31D0))
    assert [int(w[0]) for w in words] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    assert xxh64(b"") == 0xEF46DB3751D8E999 and xxh64(b"a") == 0xD24EC4F1A98C6E5B
    assert xxh64(b"Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1
    mask = keep_mask(7, stream_of("a", 0), 1 << 18, 0.35)
    assert abs(mask.mean() - 0.35) < 0.004 and np.array_equal(mask[:999],
                                                              keep_mask(7, stream_of("a", 0), 999, 0.35))
    assert np.array_equal(encode(np.array([1.00390625, 1.01171875, 1.00390625 + 1e-13]), "BF16"),
                          b"\x80\x3f\x82\x3f\x81\x3f") and rounded(np.array(-0.1), "F16") == -0.0999755859375

    b = np.array([0.5, -1, 2, 0.25, 1.5, 0.75, -0.5, -2]).reshape(2, 4)
    x = np.array([0.6875, -1.125, 2, 0.9375, 1.1875, 0.8125, -0.125, -2.25]).reshape(2, 4)
    y = np.array([0.375, -1.375, 2.3125, 0.1875, 1.9375, 0.5625, -1, -1.75]).reshape(2, 4)
    z = np.array([0.875, -0.8125, 1.9375, 0.25, 1.625, 1.3125, -0.75, -2.3125]).reshape(2, 4)
    xyz, w = [x, y, z], [0.6, 0.4, 0.5]
    half = [0.5] * 3
    known = [
        (linear(xyz, w), "0.666667 -1.087500 2.062500 0.508333 1.533333 0.912500 -0.566667 -2.137500"),
        (linear(xyz, w, False), "1.000000 -1.631250 3.093750 0.762500 2.300000 1.368750 -0.850000 -3.206250"),
        (task_arithmetic(b, [x, y], w[:2]),
         "0.562500 -1.225000 2.125000 0.637500 1.487500 0.712500 -0.475000 -2.050000"),
        (task_arithmetic(b, xyz, w, normalize=True, scale=0.8),
         "0.633333 -1.070000 2.050000 0.456667 1.526667 0.880000 -0.553333 -2.110000"),
        (task_arithmetic(b, xyz, w, half, "select", True, True),
         "0.875000 -1.375000 2.312500 0.937500 1.187500 1.312500 -0.861111 -2.278409"),
        (task_arithmetic(b, xyz, w, half, "select", True, False),
         "0.687500 -1.150000 2.125000 0.662500 1.312500 1.031250 -0.825000 -2.306250"),
        (task_arithmetic(b, xyz, w, half, "select", True, True, rescale=True),
         "0.968750 -1.519231 2.432692 1.096154 2.105769 1.453125 -0.981303 -2.345389"),
        (task_arithmetic(b, xyz, w), "0.750000 -1.131250 2.093750 0.637500 1.550000 0.993750 -0.600000 -2.206250"),
        (task_arithmetic(b, xyz, w, consensus=True),
         "0.800000 -1.225000 2.125000 0.662500 1.737500 1.068750 -0.825000 -2.306250"),
        (slerp(x, y, 0.35), "0.588679 -1.236394 2.150705 0.686574 1.479450 0.738511 -0.441275 -2.114088"),
        (passthrough(x, 0.5), "0.343750 -0.562500 1.000000 0.468750 0.593750 0.406250 -0.062500 -1.125000"),
    ]
    for value, text in known:
        expected = np.array([float(word) for word in text.split()]).reshape(2, 4)
        assert np.abs(value.result - expected).max() < 6e-7, (value.result, expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="compare with the known answers")
    mask = commands.add_parser("mask", help="print the mask of one source of one output tensor as hex bytes, "
                               "lowest bit first")
    mask.add_argument("name", help="output tensor")
    mask.add_argument("position", type=int, help="of the source among those with a task vector, from 0")
    mask.add_argument("count", type=int, help="elements of the tensor")
    mask.add_argument("density", type=float)
    mask.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command == "check":
        check()
        print("truth: all known answers hold")
    else:
        kept_bits = keep_mask(options.seed, stream_of(options.name, options.position), options.count,
                              options.density)
        print(np.packbits(kept_bits, bitorder="little").tobytes().hex())
    return 0


if __name__ == "__main__":
    sys.exit(main())

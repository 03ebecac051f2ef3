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
    return drawn_below(seed, stream, np.full(count, int(density * 2.0**48)))  # exact scaling, int() truncates


def drawn_below(seed, stream, thresholds):
    """True where an element's 48-bit draw is below its threshold (integers of at most 48 bits)."""
    thresholds = np.asarray(thresholds, np.uint64)
    count, shift = thresholds.size, np.uint64(32)
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)

    def words(blocks):
        blocks = np.asarray(blocks, np.uint64)
        ones = np.ones_like(blocks)
        return np.stack(philox((blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32),
                                ones * np.uint64(stream & 0xFFFFFFFF), ones * np.uint64(stream >> 32)),
                               key), axis=-1)

    first = words(np.arange((count + 7) // 8))
    draws = np.stack([first & 0xFFFF, first >> 16], axis=-1).reshape(-1)[:count]
    keep = draws < thresholds >> shift
    (even,) = np.nonzero(draws == thresholds >> shift)
    if even.size:
        second = words((even // 4).astype(np.uint64) | np.uint64(1 << 63))
        keep[even] = second[np.arange(even.size), even % 4] < (thresholds[even] & np.uint64(0xFFFFFFFF))
    return keep


def ranks(keys):
    """Rank of each element within its line (the last axis): 1 is the smallest, and the lowest index ranks
    highest among equals, as in a stable descending order."""
    length = keys.shape[-1]
    order = np.argsort(-keys, axis=-1, kind="stable")
    found = np.empty(keys.shape, np.int64)
    np.put_along_axis(found, order, np.broadcast_to(length - np.arange(length), keys.shape), axis=-1)
    return found


def ranked_thresholds(delta, density, epsilon):
    """DELLA's thresholds: the probability to be kept rises with the rank of |delta| in its line, from
    density - epsilon for the smallest to density + epsilon for the largest."""
    lines = np.abs(delta.astype(np.float32)).reshape(-1, delta.shape[-1] if delta.ndim else 1)
    length = lines.shape[-1]
    if length == 1:
        return np.full(lines.shape, int(density * 2.0**48))
    low, step = int((density - epsilon) * 2.0**48), int(2 * epsilon / (length - 1) * 2.0**48)
    return low + (ranks(lines) - 1) * step


def ranked_mask(seed, stream, delta, density, epsilon):
    """DELLA's mask of a task vector."""
    if density >= 1 or density <= 0:
        return np.full(delta.shape, density >= 1)
    return drawn_below(seed, stream, ranked_thresholds(delta, density, epsilon).reshape(-1)).reshape(delta.shape)


# ---------------------------------------------------------------------------------------------------
# Formulas


@dataclass
class Value:
    """A merged tensor in double precision, and what is needed to judge another evaluation of it."""

    result: np.ndarray
    largest: np.ndarray  # magnitude of the largest term or sum that an element is made of
    tie: np.ndarray      # True where a decision (vote, threshold, divisor) hangs on a rounding
    counts: dict = field(default_factory=dict)
    other: np.ndarray | None = None  # the result where every tie is decided the other way, if that is as right


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


def leading(keys, k):
    """(mask, tie) of the k largest of some keys, ties to the lowest index.

    tie: equal keys of which some are taken and some are not.
    """
    flat = keys.reshape(-1)
    mask, tie = np.zeros(flat.size, bool), np.zeros(flat.size, bool)
    if k >= flat.size:
        return np.ones(keys.shape, bool), tie.reshape(keys.shape)
    if k > 0:
        mask[np.argsort(-flat, kind="stable")[:k]] = True
        threshold = flat[mask].min()
        at = flat == threshold
        if threshold > 0 and at.sum() > (mask & at).sum():
            tie = at
    return mask.reshape(keys.shape), tie.reshape(keys.shape)


def select(delta, density):
    """(mask, tie) of the largest magnitudes as f32."""
    return leading(np.abs(delta.astype(np.float32)), kept(density, delta.size))


def without_outliers(delta, density, gamma):
    """(mask, tie) of Model Breadcrumbs (Davari, Belilovsky 2023): the share gamma of the largest magnitudes
    is dropped, the share density below it is kept."""
    count = delta.size
    if density >= 1:
        return np.ones(delta.shape, bool), np.zeros(delta.shape, bool)
    target = int(max(density, 0.0) * count)
    top = min(int(gamma * count), count - target)
    keys = np.abs(delta.astype(np.float32))
    (outer, edge), (inner, rim) = leading(keys, top + target), leading(keys, top)
    return outer & ~inner, edge | rim


def task_arithmetic(base, tensors, weights, densities=None, thin=None, consensus=False,
                    normalize=False, rescale=False, scale=1.0):
    """base + scale * (combination of thinned task vectors).

    thin(i, delta, density): (mask, tie) of the i-th task vector, asked for where density < 1.
    """
    tie = np.zeros(base.shape, bool)
    densities = densities or [1.0] * len(tensors)
    # Decisions (thresholds, votes, whether weights cancel) are made in f32, as the contract says: `voices` are
    # the weighted task vectors in that arithmetic, `terms` the same in double.
    single = np.float32
    terms, voices, threshold_ties = [], [], 0
    for i, (x, w, density) in enumerate(zip(tensors, weights, densities)):
        delta, voice, gain = x - base, x.astype(single) - base.astype(single), single(w)
        if thin and density < 1:
            chosen, edge = thin(i, voice, density)
            tie |= edge
            threshold_ties += int(edge.sum())
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


def lines_of(tensor, along):
    """A tensor as rows of a matrix, and how to turn such a matrix back: along "whole", "last" or "first" axis."""
    if along == "whole" or tensor.ndim < 2:
        return tensor.reshape(1, -1), lambda rows: rows.reshape(tensor.shape)
    if along == "last":
        return tensor.reshape(-1, tensor.shape[-1]), lambda rows: rows.reshape(tensor.shape)
    turned = np.moveaxis(tensor, 0, -1)
    return turned.reshape(-1, turned.shape[-1]), lambda rows: np.moveaxis(rows.reshape(turned.shape), -1, 0)


def length(lines):
    return np.sqrt(np.sum(lines * lines, axis=-1, keepdims=True))


def cosine(a, b):
    """Of each pair of rows; 0 where one of them is 0."""
    size = length(a) * length(b)
    dots = np.sum(a * b, axis=-1, keepdims=True)
    return np.clip(np.where(size > 0, dots / np.where(size > 0, size, 1.0), 0.0), -1.0, 1.0)


def combination(base, tensors, factors):
    """base + sum(factor * tensor), each factor one number or one for each element."""
    terms = [f * x for f, x in zip(factors, tensors)]
    result = sum(terms) + (0.0 if base is None else base)
    sizes = [np.abs(term) for term in terms] + [np.abs(result)]
    if base is not None:
        sizes.append(np.abs(base))
    return Value(result, np.max(sizes, axis=0), np.zeros(result.shape, bool))


def nuslerp(tensors, weights, base=None, along="whole"):
    """Spherical interpolation of two tensors, or of their task vectors, line by line."""
    total = weights[0] + weights[1]
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    (v0, back), (v1, _) = (lines_of(x if base is None else x - base, along) for x in tensors)
    c = cosine(v0, v1)
    # Nearly opposite lines are mixed straight: on the arc 1 / sin multiplies whatever rounding left of them.
    straight = (1.0 - c * c <= 1e-16) | (c < -0.9995)
    angle = np.arccos(np.where(straight, 0.0, c))
    s0 = np.where(straight, 1.0 - t, np.sin((1.0 - t) * angle) / np.sin(angle))
    s1 = np.where(straight, t, np.sin(t * angle) / np.sin(angle))
    value = combination(base, [back(v0), back(v1)], [back(s0 + 0.0 * v0), back(s1 + 0.0 * v1)])
    value.tie = back((np.abs(c + 0.9995) < 1e-6) | (v0 != v0))
    return value


def multislerp(tensors, weights, base=None, normalize=True, eps=1e-8):
    """The weighted mean of the directions, times the weighted mean of the lengths.

    In the tangent space at the normalised mean direction the weighted mean of the tensors is zero, so the
    exponential map of the published algorithm moves nothing, but for its eps.
    """
    if len(tensors) == 1:
        return Value(tensors[0], np.abs(tensors[0]), np.zeros(tensors[0].shape, bool))
    vectors = [x if base is None else x - base for x in tensors]
    if normalize:
        weights = [w / sum(weights) for w in weights]
    norms = [float(np.sqrt(np.sum(v * v))) for v in vectors]
    shares = [w / (n + eps) for w, n in zip(weights, norms)]
    size = float(np.sqrt(np.sum(sum(s * v for s, v in zip(shares, vectors))**2)))
    if size < max(eps, 2.0**-20 * sum(abs(w) for w in weights)):
        return combination(base, vectors, weights)  # no direction in common
    scale = np.cos(eps) * sum(w * n for w, n in zip(weights, norms)) / size
    return combination(base, vectors, [scale * s for s in shares])


def karcher(tensors, most=10, tol=1e-5):
    """The Karcher mean of the directions on the sphere, times the mean of the lengths."""
    if len(tensors) == 1:
        return Value(tensors[0], np.abs(tensors[0]), np.zeros(tensors[0].shape, bool))
    flat = [x.reshape(-1) for x in tensors]
    norms = [float(np.sqrt(np.sum(x * x))) for x in flat]
    chosen = [i for i, n in enumerate(norms) if n > tol]
    if not chosen:
        return combination(None, tensors, [0.0] * len(tensors))
    units = np.array([flat[i] / norms[i] for i in chosen])
    share = 1.0 / len(chosen)
    gram = units @ units.T  # so that a mean is its coefficients
    place = np.full(len(chosen), share)
    size = np.sqrt(max(place @ gram @ place, 0.0))
    place = place / size if size >= tol else np.eye(len(chosen))[0]
    for _ in range(most):
        dots = np.clip(gram @ place, -1.0, 1.0)
        angles = np.arccos(dots)
        move = np.zeros(len(chosen))
        for i, (d, angle) in enumerate(zip(dots, angles)):
            if angle < tol or np.pi - angle < tol:  # here already, or opposite: no direction leads there
                continue
            pull = share * angle / np.sin(angle)
            move[i] += pull
            move -= pull * d * place
        size = np.sqrt(max(move @ gram @ move, 0.0))
        if size < tol:
            break
        place = np.cos(size) * place + np.sin(size) / size * move
        place = place / np.sqrt(place @ gram @ place)
    factors = np.zeros(len(tensors))
    factors[chosen] = np.mean(norms) * place / np.array(norms)[chosen]
    return combination(None, tensors, list(factors))


def model_stock(base, tensors, filter_wise=False):
    """Model Stock (Jang, Yun, Han 2024): between the base and the mean, as far as the changes agree."""
    count = len(tensors)
    split = [lines_of(x - base, "last" if filter_wise else "whole") for x in tensors]
    lines, back = [rows for rows, _ in split], split[0][1]
    pairs = [cosine(lines[i], lines[j]) for i in range(count) for j in range(i + 1, count)]
    c = np.mean(pairs, axis=0)
    q = 1.0 + (count - 1) * c
    t = np.where(np.abs(q) < 1e-6, 0.0, count * c / np.where(np.abs(q) < 1e-6, 1.0, q))
    share = back(t / count + 0.0 * lines[0])
    return combination(base, [x - base for x in tensors], [share] * count)


def variance_keys(deltas):
    """What sce ranks elements by: the variance over the models, as f32 once."""
    mean = sum(deltas) / len(deltas)
    return (sum((d - mean)**2 for d in deltas) / len(deltas)).astype(np.float32)


def sce_mask(deltas, top):
    """(mask, keys) of the elements in which the task vectors (f32 numbers) differ most."""
    keys = variance_keys([d.astype(np.float32).astype(np.float64) for d in deltas])
    if top >= 1 or top <= 0:
        return np.full(keys.shape, top >= 1), keys
    differing = int(np.count_nonzero(keys))
    if differing == 0:  # nothing to rank by: what all models share is kept
        return np.ones(keys.shape, bool), keys
    return leading(keys, int(differing * top))[0], keys


def sce(base, tensors, top=1.0):
    """Select, calculate, erase (Wan et al. 2024)."""
    deltas = [x - base for x in tensors]
    mask, _ = sce_mask(deltas, top)
    deltas = [np.where(mask, d, 0.0) for d in deltas]
    energy = [float(np.mean(d * d)) for d in deltas]
    total = sum(energy)
    weights = [e / total if total > 0 else 1.0 / len(deltas) for e in energy]
    voices = [np.where(mask, x.astype(np.float32) - base.astype(np.float32), 0) for x in tensors]
    score = np.zeros(base.shape, np.float32)
    for voice in voices:
        score = score + voice
    agrees = [np.sign(v) == np.where(score >= 0, 1, -1) for v in voices]
    divisor = sum(np.where(a, w, 0.0) for a, w in zip(agrees, weights))
    divisor = np.where(divisor > 0, divisor, 1.0)
    value = combination(base, deltas, [np.where(a, w / divisor, 0.0) for a, w in zip(agrees, weights)])
    biggest = np.max(np.abs(deltas), axis=0)
    conflict = (np.min(deltas, axis=0) < 0) & (np.max(deltas, axis=0) > 0)
    value.tie = conflict & (np.abs(sum(deltas)) <= 8 * len(deltas) * EPS32 * biggest)
    value.counts = {"vote": int(value.tie.sum())}
    return value


def ram(base, tensors, epsilon=1e-5, gains=None):
    """Reinforced Agent Merging (2601.13572): changes of one model as they are, shared ones averaged.

    gains(active, count): factors of what only one model changed, for ramplus_tl.
    """
    deltas = [x - base for x in tensors]
    voices = [x.astype(np.float32) - base.astype(np.float32) for x in tensors]
    active = [np.abs(v) > np.float32(epsilon) for v in voices]
    count = sum(a.astype(int) for a in active)
    gain = gains(active, count) if gains else [1.0] * len(tensors)
    share = 1.0 / np.maximum(count, 1)
    return combination(base, deltas, [np.where(a, np.where(count == 1, g, share), 0.0)
                                      for a, g in zip(active, gain)])


def ramplus_tl(base, tensors, r=0.1, alpha=0.2, epsilon=1e-5):
    """ram, and what one model alone changed is enlarged by how much of its change is shared."""
    def gains(active, count):
        shared = [int((a & (count > 1)).sum()) for a in active]
        unique = [int((a & (count == 1)).sum()) for a in active]
        return [1.0 + r * min(max(s / max(u, epsilon), 0.0), alpha) for s, u in zip(shared, unique)]

    return ram(base, tensors, epsilon, gains)


def nearswap(base, other, t):
    """The other model's number where it is near the base's, else a step of t towards it."""
    share = np.clip(t / np.maximum(np.abs(other - base), 1e-6), 0.0, 1.0)
    result = share * other + (1.0 - share) * base
    return Value(result, np.max(np.abs([base, other, result]), axis=0), np.zeros(base.shape, bool))


def softmax(lines):
    powers = np.exp(lines - np.max(lines, axis=-1, keepdims=True))
    return powers / np.sum(powers, axis=-1, keepdims=True)


def importance(base, other):
    """What arcee_fusion ranks elements by: |change| times the divergence of the line's softmax, as f32 once."""
    (a, back), (b, _) = lines_of(base, "last"), lines_of(other, "last")
    p, q = softmax(b) + 1e-8, softmax(a) + 1e-8
    divergence = np.maximum(np.sum(p * np.log(p / q), axis=-1, keepdims=True), 0.0)
    change = np.abs(other.astype(np.float32) - base.astype(np.float32)).astype(np.float64)
    return (change * back(divergence + 0.0 * a)).astype(np.float32)


def arcee_fusion(base, other):
    """The other model's number where the change matters most, else the base's."""
    scores = importance(base, other)
    order = np.sort(scores.reshape(-1))
    q1, middle, q3 = (float(order[int(f * (order.size - 1))]) for f in (0.25, 0.5, 0.75))
    threshold = middle + 1.5 * (q3 - q1)
    taken = scores >= threshold
    near = np.abs(scores.astype(np.float64) - threshold) <= 4 * EPS32 * threshold
    result = np.where(taken, other, base)
    return Value(result, np.max(np.abs([base, other]), axis=0), near & (base != other) & (threshold > 0),
                 {"taken": int(taken.sum())}, np.where(taken, base, other))


def consensus(base, tensors, weights=None, threshold=0.4, least=2, scale=1.0):
    """Consensus of TALL masks (Wang et al. 2024): the sum of the changes where at least `least` models are
    each not much smaller than what the others say."""
    single = np.float32
    weights = weights or [1.0] * len(tensors)
    terms = [w * (x - base) for w, x in zip(weights, tensors)]
    voices = [(x.astype(single) - base.astype(single)) * single(w) for w, x in zip(weights, tensors)]
    total = np.zeros(base.shape, single)
    for voice in voices:
        total = total + voice
    votes = sum((np.abs(v) > single(threshold) * np.abs(total - v)).astype(int) for v in voices)
    whole = sum(terms)
    merged = np.where(votes >= least, scale * whole, 0.0)
    result = base + merged
    largest = np.max(np.abs([base, result, *(scale * term for term in terms)]), axis=0)
    return Value(result, largest, np.zeros(base.shape, bool), {"kept": int((votes >= least).sum())})


def decay(schedule, x):
    return {"linear": 1.0 - x, "cosine": (1.0 + np.cos(np.pi * x)) / 2.0, "minus_sqrt": 1.0 - np.sqrt(x)}[schedule]


def schedule_weights(schedule, count, alpha=None, anchor=False):
    """Coefficients of `count` checkpoints, oldest first; their sum is 1 (docs of `average`)."""
    if count == 1:
        return [1.0]
    if schedule == "uniform":
        return [1.0 / count] * count
    if schedule == "ema":
        rest = [alpha * (1.0 - alpha)**(count - 1 - i) for i in range(1, count)]
        return [(1.0 - alpha)**(count - 1), *rest]
    if not anchor:
        return [decay(schedule, i / count) - decay(schedule, (i + 1) / count) for i in range(count)]
    left = [1.0, *(decay(schedule, (j - 0.5) / (count - 1)) for j in range(1, count)), 0.0]
    return [a - b for a, b in zip(left, left[1:])]


def average_weights(count, schedule="uniform", alpha=None, anchor=False, window=None, extrapolate=0.0):
    """Coefficients of all checkpoints as f32 numbers; what rounding took from their sum is the newest's."""
    window = window or (count if extrapolate == 0 else count - 1)
    part = np.array(schedule_weights(schedule, window, alpha, anchor))
    exact = np.zeros(count)
    exact[count - window:] += (1.0 + extrapolate) * part
    if extrapolate != 0:
        exact[count - window - 1:count - 1] -= extrapolate * part
    given = exact.astype(np.float32).astype(np.float64)
    given[-1] = np.float32(given[-1] + (1.0 - np.sum(given)))
    return list(given)


def average(tensors, **settings):
    """Checkpoints of one run, oldest first, weighed by a schedule."""
    return combination(None, tensors, average_weights(len(tensors), **settings))


# ---------------------------------------------------------------------------------------------------
# The methods by name


@dataclass
class Inputs:
    """What a method is given for one output tensor."""

    name: str
    base: np.ndarray | None
    tensors: list     # in file order, without the base where the method has one
    parameters: dict  # lists (one value per tensor) for weight, density, scale ...; single values for the rest
    seed: int

    def get(self, name, default=None):
        return self.parameters.get(name, default)

    def each(self, name, default):
        return self.parameters.get(name) or [default] * len(self.tensors)


def family(kind, consensus=False, normalize=False, rescale=False):
    """A method of weighted task vectors; kind: how they are thinned."""
    def merge(given):
        def thin(i, delta, density):
            stream, no_tie = stream_of(given.name, i), np.zeros(delta.shape, bool)
            if kind == "random":
                return keep_mask(given.seed, stream, delta.size, density).reshape(delta.shape), no_tie
            if kind == "ranked":
                epsilon = given.each("epsilon", 0.15)[i]
                return ranked_mask(given.seed, stream, delta, density, epsilon), no_tie
            if kind == "outliers":
                return without_outliers(delta, density, given.each("gamma", 0.01)[i])
            return select(delta, density)

        return task_arithmetic(given.base, given.tensors, given.each("weight", None), given.each("density", 1.0),
                               thin if kind else None, consensus, given.get("normalize", normalize),
                               given.get("rescale", rescale), given.get("lambda", 1.0))
    return merge


def spherical_lines(given):
    if given.get("nuslerp_flatten", True):
        return "whole"
    return "first" if given.get("nuslerp_row_wise", False) else "last"


METHODS = {
    "linear": lambda g: linear(g.tensors, g.get("weight"), g.get("normalize", True)),
    "slerp": lambda g: slerp(g.base, g.tensors[0], g.get("t")),
    "nuslerp": lambda g: nuslerp(g.tensors, g.get("weight"), g.base, spherical_lines(g)),
    "multislerp": lambda g: multislerp(g.tensors, g.get("weight"), g.base, g.get("normalize_weights", True),
                                       g.get("eps", 1e-8)),
    "karcher": lambda g: karcher(g.tensors, g.get("max_iter", 10), g.get("tol", 1e-5)),
    "task_arithmetic": family(None),
    "ties": family("select", consensus=True, normalize=True),
    "dare_linear": family("random", rescale=True),
    "dare_ties": family("random", consensus=True, rescale=True),
    "breadcrumbs": family("outliers"),
    "breadcrumbs_ties": family("outliers", consensus=True),
    "della": family("ranked", consensus=True, normalize=True, rescale=True),
    "della_linear": family("ranked", rescale=True),
    "model_stock": lambda g: model_stock(g.base, g.tensors, g.get("filter_wise", False)),
    "sce": lambda g: sce(g.base, g.tensors, g.get("select_topk", 1.0)),
    "ram": lambda g: ram(g.base, g.tensors, g.get("epsilon", 1e-5)),
    "ramplus_tl": lambda g: ramplus_tl(g.base, g.tensors, g.get("r", 0.1), g.get("alpha", 0.2),
                                       g.get("epsilon", 1e-5)),
    "nearswap": lambda g: nearswap(g.base, g.tensors[0], g.get("t")),
    "arcee_fusion": lambda g: arcee_fusion(g.base, g.tensors[0]),
    "consensus": lambda g: consensus(g.base, g.tensors, g.each("weight", 1.0), g.get("threshold", 0.4),
                                     g.get("least", 2), g.get("lambda", 1.0)),
    "average": lambda g: average(g.tensors, **g.parameters),
    "passthrough": lambda g: passthrough(g.tensors[0], g.get("scale", [None])[0]),
}


def evaluate(method, name, base, tensors, parameters, seed=0):
    """One output tensor: Inputs says what is given."""
    if base is not None and not tensors:
        return Value(base.copy(), np.abs(base), np.zeros(base.shape, bool))
    return METHODS[method](Inputs(name, base, tensors, parameters, seed))


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
    half = {"weight": w, "density": [0.5] * 3}
    whole = {"weight": w, "density": [1.0] * 3}
    outliers = {**half, "gamma": [0.13] * 3}

    def of(method, base, tensors, **parameters):
        return evaluate(method, "w", base, tensors, parameters)

    known = [
        (of("linear", None, xyz, weight=w),
         "0.666667 -1.087500 2.062500 0.508333 1.533333 0.912500 -0.566667 -2.137500"),
        (of("linear", None, xyz, weight=w, normalize=False),
         "1.000000 -1.631250 3.093750 0.762500 2.300000 1.368750 -0.850000 -3.206250"),
        (of("task_arithmetic", b, [x, y], weight=w[:2]),
         "0.562500 -1.225000 2.125000 0.637500 1.487500 0.712500 -0.475000 -2.050000"),
        (of("task_arithmetic", b, xyz, weight=w, normalize=True, **{"lambda": 0.8}),
         "0.633333 -1.070000 2.050000 0.456667 1.526667 0.880000 -0.553333 -2.110000"),
        (of("ties", b, xyz, **half), "0.875000 -1.375000 2.312500 0.937500 1.187500 1.312500 -0.861111 -2.278409"),
        (of("ties", b, xyz, normalize=False, **half),
         "0.687500 -1.150000 2.125000 0.662500 1.312500 1.031250 -0.825000 -2.306250"),
        (of("ties", b, xyz, rescale=True, **half),
         "0.968750 -1.519231 2.432692 1.096154 2.105769 1.453125 -0.981303 -2.345389"),
        (of("breadcrumbs", b, xyz, **outliers),
         "0.800000 -1.056250 2.125000 0.250000 1.487500 0.750000 -0.400000 -2.206250"),
        (of("breadcrumbs_ties", b, xyz, **outliers),
         "0.800000 -1.150000 2.125000 0.250000 1.312500 0.750000 -0.275000 -2.306250"),
        (of("breadcrumbs", b, xyz, **half),
         "0.687500 -1.150000 2.125000 0.662500 1.487500 1.031250 -0.600000 -2.306250"),
        (of("dare_linear", b, xyz, **whole),
         "0.750000 -1.131250 2.093750 0.637500 1.550000 0.993750 -0.600000 -2.206250"),
        (of("della_linear", b, xyz, **whole),
         "0.750000 -1.131250 2.093750 0.637500 1.550000 0.993750 -0.600000 -2.206250"),
        (of("dare_ties", b, xyz, **whole),
         "0.800000 -1.225000 2.125000 0.662500 1.737500 1.068750 -0.825000 -2.306250"),
        (of("della", b, xyz, **whole), "0.772727 -1.225000 2.312500 0.937500 1.763889 1.039773 -0.861111 -2.278409"),
        (of("slerp", x, [y], t=0.35), "0.588679 -1.236394 2.150705 0.686574 1.479450 0.738511 -0.441275 -2.114088"),
        (of("nuslerp", None, [x, y], weight=w[:2]),
         "0.573531 -1.250295 2.168713 0.649461 1.518825 0.726672 -0.485871 -2.091075"),
        (of("nuslerp", None, [x, y], weight=w[:2], nuslerp_flatten=False),
         "0.570062 -1.242339 2.154964 0.645701 1.528046 0.730842 -0.489073 -2.103161"),
        (of("nuslerp", None, [x, y], weight=w[:2], nuslerp_flatten=False, nuslerp_row_wise=True),
         "0.569817 -1.233430 2.156165 0.643399 1.508276 0.717224 -0.482749 -2.070253"),
        (of("nuslerp", b, [x, y], weight=w[:2]),
         "0.599647 -1.466052 2.272469 0.960499 1.533733 0.656063 -0.518682 -2.060204"),
        (of("multislerp", None, xyz, weight=w),
         "0.681695 -1.111897 2.105562 0.529985 1.557925 0.929895 -0.567958 -2.186662"),
        (of("multislerp", b, xyz, weight=w),
         "0.879119 -1.174075 2.130359 0.794043 1.584747 1.134174 -0.665399 -2.311411"),
        (of("multislerp", None, xyz, weight=w, normalize_weights=False),
         "1.022542 -1.667846 3.158343 0.794977 2.336887 1.394843 -0.851937 -3.279993"),
        (of("karcher", None, xyz), "0.660813 -1.129401 2.128025 0.478592 1.610296 0.913607 -0.628452 -2.153702"),
        (of("karcher", None, [*xyz, b]),
         "0.618786 -1.096951 2.098358 0.417756 1.584149 0.871430 -0.594991 -2.117232"),
        (of("model_stock", b, xyz), "0.323396 -0.873855 1.899084 -0.002291 1.399083 0.573396 -0.348625 -1.873854"),
        (of("model_stock", b, xyz, filter_wise=True),
         "0.378536 -0.913240 1.930592 0.076480 1.216365 0.253640 -0.074548 -1.645456"),
        (of("sce", b, xyz), "0.771484 -1.247596 2.312500 0.937500 1.794548 1.036458 -0.885638 -2.277995"),
        (of("sce", b, xyz, select_topk=0.5),
         "0.500000 -1.000000 2.000000 0.937500 1.796596 0.990317 -0.887277 -2.000000"),
        (of("ram", b, xyz), "0.645833 -1.104167 2.125000 0.562500 1.583333 0.895833 -0.625000 -2.104167"),
        (of("ram", b, xyz, epsilon=0.15),
         "0.781250 -1.093750 2.312500 0.937500 1.562500 0.937500 -0.625000 -2.104167"),
        (of("ramplus_tl", b, xyz, r=0.1, alpha=0.2, epsilon=0.15),
         "0.781250 -1.093750 2.318750 0.951250 1.562500 0.937500 -0.625000 -2.104167"),
        (of("nearswap", b, [x], t=0.05),
         "0.550000 -1.050000 2.000000 0.300000 1.450000 0.800000 -0.450000 -2.050000"),
        (of("arcee_fusion", b, [x]),
         "0.500000 -1.000000 2.000000 0.937500 1.500000 0.750000 -0.500000 -2.000000"),
        (of("passthrough", None, [x], scale=[0.5]),
         "0.343750 -0.562500 1.000000 0.468750 0.593750 0.406250 -0.062500 -1.125000"),
    ]
    for value, text in known:
        expected = np.array([float(word) for word in text.split()]).reshape(2, 4)
        # Six printed digits of what mergekit computed in f32.
        assert (np.abs(value.result - expected) < 5e-7 + 2.0**-21 * np.abs(expected)).all(), (value.result, expected)
    check_own(b, x, y, z)


def check_own(b, x, y, z):
    """What no other program gives: ingot's own methods, and where its contract differs from mergekit's."""
    t = [np.array(rows, float) for rows in ([[3, -1, 2, 0], [1, 4, -2, 1], [0, 2, 1, -3]],
                                            [[1, 2, 0, -1], [-2, 3, 1, 0], [2, 0, -1, 4]],
                                            [[-1, 1, 3, 2], [0, 2, -3, 1], [1, -2, 0, 2]])]
    zero = np.zeros((3, 4))
    assert np.array_equal(consensus(zero, t).result, [[3, 2, 5, 1], [-1, 9, -4, 2], [3, 0, 0, 3]])
    # An element that one model alone changed has one vote; two that share it have two.
    assert np.array_equal(consensus(zero, [t[0], zero]).result, zero)
    assert np.array_equal(consensus(zero, [t[0], zero], least=1).result, t[0])
    schedules = [
        (dict(schedule="uniform"), 5, "0.2 0.2 0.2 0.2 0.2"),
        (dict(schedule="cosine"), 5, "0.0954915028125 0.25 0.309016994375 0.25 0.0954915028125"),
        (dict(schedule="minus_sqrt"), 5, "0.4472135955 0.185241936534 0.142141137208 0.119830521758 0.105572809"),
        (dict(schedule="ema", alpha=0.3), 5, "0.2401 0.1029 0.147 0.21 0.3"),
        (dict(schedule="linear", anchor=True), 5, "0.125 0.25 0.25 0.25 0.125"),
        (dict(schedule="cosine", anchor=True), 5,
         "0.0380602337444 0.270598050073 0.382683432365 0.270598050073 0.0380602337444"),
        (dict(schedule="minus_sqrt", anchor=True), 5,
         "0.353553390593 0.258819045103 0.178196979346 0.144844931651 0.0645856733065"),
        (dict(schedule="uniform", extrapolate=0.5), 5, "-0.125 0.25 0.25 0.25 0.375"),
        (dict(schedule="uniform", window=2), 5, "0 0 0 0.5 0.5"),
    ]
    for settings, count, text in schedules:
        found = np.array(average_weights(count, **settings))
        assert np.abs(found - [float(word) for word in text.split()]).max() < 2.0**-24, (settings, found)
        assert abs(np.sum(found) - 1.0) < 2.0**-24

    # Lines of one element are drawn with the density, and without a spread DELLA's mask is DARE's.
    tall = np.arange(1.0, 4001.0).reshape(-1, 1)
    assert np.array_equal(ranked_mask(7, 11, tall, 0.3, 0.2).reshape(-1), keep_mask(7, 11, 4000, 0.3))
    wide = tall.reshape(4, 1000)
    assert np.array_equal(ranked_mask(7, 11, wide, 0.3, 0.0).reshape(-1), keep_mask(7, 11, 4000, 0.3))
    assert np.array_equal(ranks(np.array([[2.0, 0, 2, 1]])), [[4, 1, 3, 2]])
    many = np.tile(np.array([[1.0, 2, 3]]), (60000, 1))
    shares = ranked_mask(7, 11, many, 0.5, 0.4).mean(axis=0)
    assert np.abs(shares - [0.1, 0.5, 0.9]).max() < 0.01, shares
    # The k largest come off the top, equals with the lowest index first.
    assert np.array_equal(without_outliers(np.array([1.0, -3, 3, 2, 1, 0]), 0.5, 0.2)[0], [1, 0, 1, 1, 0, 0])
    # What all models share is not lost where sce has nothing to rank.
    assert np.array_equal(sce(b, [x], 0.3).result, x) and np.array_equal(sce(b, [x, x], 0.3).result, x)
    assert np.array_equal(sce(b, [x, y], 0.0).result, b)
    # Task vectors that are zero, opposite, or nearly so.
    assert np.array_equal(multislerp([b, b, b], [1.0, 1.0, 1.0], b).result, b)
    for tiny in (0.0, 1e-9):
        opposite = [b + x, b - x * (1.0 + tiny) + tiny * y]
        assert np.abs(nuslerp(opposite, [0.7, 0.3], b).result - (b + 0.4 * x)).max() < 1e-7
        assert np.abs(multislerp(opposite, [0.5, 0.5], b).result - b).max() < 1e-7
    assert np.abs(karcher([x, -x]).result - x).max() < 1e-12
    assert np.abs(model_stock(b, [b + x, b - x]).result - b).max() < 1e-12
    assert np.abs(model_stock(b, [b + 1e-8 * x, b + 2e-8 * x]).result - b - 1.5e-8 * x).max() < 1e-15
    # Lengths count as weights do.
    assert np.abs(multislerp([b, 2 * b, 4 * b], [0.5, 0.25, 0.25]).result - 2 * b).max() < 1e-7


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

#!/usr/bin/env python3
"""Writes the ends of the vocabulary of every class of transformers that ties any.

    tools/ends.py OUT

in the environment that `tools/oracle.py setup` makes. Every model class is built from its default
configuration without memory (device "meta") and asked for its input embedding, its output embedding,
what it ties, and its vectors with an element for each token. A class that cannot be built so is read
from `_tied_weights_keys`. Names are those that transformers saves.
"""

import collections
import inspect
import pathlib
import re
import sys
import warnings

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
          "n_layers", "num_encoder_layers")
# The pair of most classes; only those that tie by default are listed.
USUAL = ("model.embed_tokens.weight", "lm_head.weight")


def classes():
    for name in sorted(dir(transformers)):
        if name.endswith(("PreTrainedModel", "ForCTC")) or not re.search(r"Model|For|Decoder|Encoder", name):
            continue
        try:
            found = getattr(transformers, name)
        except Exception:  # needs a package that is not here
            continue
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) and found.config_class:
            yield name, found


def small(config, depth=2):
    for name in getattr(config, "sub_configs", {}):
        if getattr(config, name, None) is not None:
            small(getattr(config, name), depth)
    for name in COUNTS:
        if isinstance(getattr(config, name, None), int) and getattr(config, name) > depth:
            try:
                setattr(config, name, depth)
            except Exception:  # derived from another field
                pass
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    if getattr(config, "vocab_size", 0) is None:
        config.vocab_size = 64
    config.tie_word_embeddings = True
    return config


def built(cls):
    """Embedding, head, ties {copy: stored} and vectors of a class, under the names in memory."""
    with torch.device("meta"):
        model = cls(small(cls.config_class()))
    names = {id(module): name for name, module in model.named_modules()}
    tied = {copy: stored for copy, stored in model.get_expanded_tied_weights_keys(all_submodels=True).items()
            if not re.search(r"\.\d+\.", copy)}  # of layers that share weights
    table = model.get_input_embeddings()
    head = model.get_output_embeddings()
    tokens = table.weight.shape[0]
    vectors = []
    everything = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for name, value in everything.items():
        if tuple(value.shape) in ((tokens,), (1, tokens)) and not re.search(r"\.\d+\.", name):
            vectors.append(name)
    saved = {}
    for name, value in everything.items():
        if name in tied or name in tied.values() or name in vectors:
            try:
                new = list(revert_weight_conversion(model, {name: value}))
                saved[name] = new[0] if len(new) == 1 else name
            except Exception:  # converted together with others
                saved[name] = name
    def spelt(name):
        return saved.get(name, name)
    return (names[id(table)] + ".weight", names[id(head)] + ".weight" if id(head) in names else "",
            {spelt(c): spelt(s) for c, s in tied.items()}, [spelt(v) for v in vectors], spelt)


def ends(cls):
    """(embedding, head, other uses, pairs of biases, vectors, input) or None where nothing is tied.

    `input` is the class's input embedding where that is one of the other uses, else empty.
    """
    try:
        embedding, head, tied, vectors, spelt = built(cls)
        embedding, head = spelt(embedding), spelt(head)
    except Exception:
        tied = cls._tied_weights_keys
        if not isinstance(tied, dict) or any(not re.fullmatch(r"[A-Za-z0-9_.]+\.(weight|bias)", n) for p in tied.items() for n in p):
            return None
        embedding = head = ""
        vectors = []
    weights = {c: s for c, s in tied.items() if c.endswith("weight")}
    biases = tuple(sorted((c, s) for c, s in tied.items() if c in vectors or s in vectors))
    for group in set(weights.values()):
        names = {group} | {c for c, s in weights.items() if s == group}
        if embedding and embedding not in names:
            if head not in names:
                continue
            embedding = group
        looked_up = embedding
        if not embedding or weights.get(embedding):  # the name that others are copies of
            embedding = group if group != head else embedding
        if not head:
            head = next((n for n in names if re.search("head|proj|output|predictions", n)), "")
        if head not in names:
            head = ""
        uses = tuple(sorted(names - {embedding, head}))
        return embedding, head, uses, biases, tuple(sorted(vectors)), looked_up if looked_up in uses else ""
    return None


def tied(cls):
    """Whether a class ties where its configuration says so, does not say, or never says otherwise."""
    config = cls.config_class
    try:
        if config(tie_word_embeddings=False).tie_word_embeddings:
            return "always"
        if "config.tie_word_embeddings" in inspect.getsource(cls.forward):
            return "scaling"
        return "unless_denied" if getattr(config(), "tie_word_embeddings", False) else "if_said"
    except Exception:
        return "if_said"


def main():
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    rows = collections.defaultdict(list)
    for name, cls in classes():
        print(name, file=sys.stderr, flush=True)
        found = ends(cls)
        if found is None:
            continue
        default = tied(cls)
        if found[:2] == USUAL and not found[2] and not found[3] and default == "if_said":
            continue
        rows[found, default].append(name)
    lines = [f"// Written by tools/ends.py from transformers {transformers.__version__}."]
    def quoted(words, indent="     "):
        text, out = "", []
        for word in words:
            if len(text) + len(word) > 84:
                out.append(text + " ")
                text = ""
            text += (" " if text else "") + word
        out.append(text)
        return ("\n" + indent).join(f'"{line}"' for line in out)
    for ((embedding, head, uses, biases, vectors, looked_up), default), names in sorted(
            rows.items(), key=lambda row: (-len(row[1]), row[1])):
        pairs = [f"{copy}={stored}" for copy, stored in biases]
        rest = ", ".join(quoted(words) for words in (uses, pairs, vectors))
        last = f', "{looked_up}"' if looked_up else ""
        lines.append(f'    {{{quoted(names)},\n     "{embedding}", "{head}", {rest}, Tying::{default}{last}}},')
    pathlib.Path(sys.argv[1]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

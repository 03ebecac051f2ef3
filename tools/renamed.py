#!/usr/bin/env python3
"""Writes what transformers does to the names of files as it loads them, for every class that renames any.

    tools/renamed.py OUT

in the environment that `tools/oracle.py setup` makes. Every model class is built from its default
configuration without memory (device "meta"). Its tensors are traced to the names that its checkpoints
have, or may have, by each conversion in reverse, and from there back. Of the pairs that come back to where they began the
shortest changes of whole components are made that turn each name of a file into that of the loaded model
and leave every name of the loaded model as it is. Classes for which no such changes are found are listed,
with a name that comes out wrong.
"""

import collections
import copy
import difflib
import functools
import importlib.util
import pathlib
import re
import sys
import warnings

import ends
import torch
import transformers
from transformers import core_model_loading as loading
from transformers.conversion_mapping import get_model_conversion_mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPTH = 5  # layers of a model; the first three may be of another kind than the rest
# Components of context that a change may need: (before it, behind it), the fewest first.
CONTEXTS = sorted(((l, r) for l in range(5) for r in range(5)), key=lambda both: (sum(both), -both[0]))
EXPERT = re.compile(r"(.+\.|)experts\.\d+\.(?:(gate_proj|w1|up_proj|w3)|(?:down_proj|w2))\.weight")


def parts(name, numbers=True):
    """Components of a name, with numbers as '*'; all but the last one if not `numbers`."""
    out = name.split(".")
    digits = [i for i, part in enumerate(out) if part.isdigit()]
    for i in digits if numbers else digits[:-1]:
        out[i] = "*"
    return tuple(out)


def interop(name):
    """A script of tests/interop as a module."""
    where = importlib.util.spec_from_file_location("interop_" + name, ROOT / "tests" / "interop" / f"{name}.py")
    module = importlib.util.module_from_spec(where)
    where.loader.exec_module(module)
    return module


layers = interop("layers")

# ---------------------------------------------------------------------------------------------------
# What transformers does


def awake(renaming):
    """A copy of a renaming; one that waits for a name before it acts has seen it."""
    renaming = copy.deepcopy(renaming)
    if isinstance(renaming, loading.GroupWeightRename):
        renaming._active = True
    return renaming


def built(cls):
    """A model of a class without memory, from the first of its configurations that gives one."""
    kind = cls.config_class

    def backbone():
        return kind(backbone_config=transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"]),
                    use_timm_backbone=False, use_pretrained_backbone=False, backbone=None)

    for make in (lambda: ends.small(kind(), DEPTH), lambda: ends.small(kind()), lambda: layers.tiny(kind.model_type), kind, backbone,
                 lambda: kind(text_config=layers.tiny(kind().text_config.model_type)),
                 lambda: kind(vision_config=transformers.SiglipVisionConfig()),
                 lambda: kind(vocabulary_map={"<image>": 1}), lambda: kind(prediction_length=4)):
        try:
            with torch.device("meta"):
                return cls(make())
        except Exception as e:
            last = e
    raise last


class Traced:
    """The names of a class: pairs {file: loaded}, and (names, between, operations, shapes) of tensors that become
    others, `between` being what files call them after all renaming; `moved` are ends of names whose numbers change."""

    def __init__(self, cls):
        model = built(cls)
        every = get_model_conversion_mapping(model, add_legacy=False)
        self.pairs, self.made, self.moved = {}, [], set()
        self.own = list(model.state_dict())
        if not every:
            return
        state = model.state_dict()
        forth = [awake(each) for each in every if isinstance(each, loading.WeightRenaming)]
        single = [awake(each.reverse_transform()) for each in every if isinstance(each, loading.WeightRenaming)]
        last = [each for each in every[::-1] if not isinstance(each, loading.PrefixChange)]
        back = [each.reverse_transform() for each in last if isinstance(each, loading.WeightRenaming)]
        makers = [each for each in last if isinstance(each, loading.WeightConverter)]
        unmakers = [each.reverse_transform() for each in makers]
        groups = collections.defaultdict(list)

        def renamed(file):
            """The name of a tensor before any conversion."""
            name = loading.apply_renamings(file, forth)
            made = loading.apply_converters(name, makers)[0]
            loaded = loading.rename_source_key(file, forth, makers, model.base_model_prefix, state)[0]
            if loaded == f"{model.base_model_prefix}.{made}":
                return f"{model.base_model_prefix}.{name}"
            return name if loaded == made else name.removeprefix(model.base_model_prefix + ".")

        def others(name):
            """What a name may have been before one renaming."""
            return {each.rename_source_key(name)[0] for each in single}

        def inner(name):
            """What the files of a class whose outer module they lack call a tensor."""
            return loading.apply_renamings(name.removeprefix(model.base_model_prefix + "."), back)

        # Conversions of names that only begin so where the outer module is missing tell that files lack it.
        front = [each.reverse_transform() for each in every if isinstance(each, loading.WeightRenaming) and
                 each.source_patterns[0].startswith("^") and not isinstance(each, loading.PrefixChange)]
        short = {name: name.removeprefix(model.base_model_prefix + ".") for name in self.own}
        bare = any(each.rename_source_key(short[name])[0] != short[name] and
                   each.rename_source_key(name)[0] == name and renamed(inner(name)) == name
                   for name in self.own if short[name] != name for each in front)
        for name in sorted(self.own, key=loading.dot_natural_key):
            for maker, unmaker in zip(makers, unmakers):
                other, pattern = unmaker.rename_source_key(name)
                if pattern is not None:
                    groups[other, id(maker)].append((name, maker, unmaker))
                    break
            else:
                file = loading.apply_renamings(name, back)
                files = {file} | others(file) | others(name)
                files |= {each.rename_source_key(inner(name))[0] for each in single
                          if isinstance(each, loading.PrefixChange)}
                for file in files | ({inner(name)} if bare else set()):
                    if renamed(file) != name:
                        continue
                    numbers, theirs = re.findall(r"\b\d+\b", file), re.findall(r"\b\d+\b", name)
                    if len(numbers) == len(theirs) and numbers != theirs:  # counted from elsewhere
                        self.moved.add(".".join(parts(file)[-2:]))
                    else:
                        self.pairs[file] = name
        for (other, _), found in groups.items():
            maker, unmaker = found[0][1], copy.deepcopy(found[0][2])
            for name, _, _ in found:
                unmaker.add_tensor(other, name, unmaker.rename_source_key(name)[1], state[name])
            files = [loading.apply_renamings(name, back)
                     for name in unmaker.convert(other, model=model, config=model.config)]
            if bare:
                files = [file.removeprefix(model.base_model_prefix + ".") for file in files]
            between = [renamed(file) for file in files]
            order = [name for pattern in maker.target_patterns for name, _, _ in found
                     if re.search(pattern.replace(".", r"\."), name)]
            names = list(dict.fromkeys(order)) or [name for name, _, _ in found]
            self.made.append((names, between, [type(each).__name__ for each in maker.operations],
                              [tuple(state[name].shape) for name in names]))
            self.pairs.update(zip(files, between))


# ---------------------------------------------------------------------------------------------------
# The shortest changes


@functools.lru_cache(None)
def segments(file, name):
    """Where two names differ: (begin, end, begin, end), neighbours with one word between them as one."""
    out = []
    for what, i1, i2, j1, j2 in difflib.SequenceMatcher(None, file, name, autojunk=False).get_opcodes():
        if what == "equal":
            continue
        if out and i1 - out[-1][1] <= 1 and "*" not in file[out[-1][1]:i1]:
            out[-1] = (out[-1][0], i2, out[-1][2], j2)
        else:
            out.append((i1, i2, j1, j2))
    return out


def changes(file, name, levels, whole):
    """(what differs, (at the front only, from, to)) for each place; `levels` tells how much context."""
    for i1, i2, j1, j2 in segments(file, name):
        differs = (file[i1:i2], name[j1:j2], i1 == 0)
        allowed = [(l, r) for l, r in CONTEXTS if not (i1 == 0 and l) and max(0, i1 - l) < min(len(file), i2 + r) and
                   (i1 < i2 or l or r) and (j1 < j2 or l or i1 == 0)]
        l, r = allowed[min(levels[differs], len(allowed) - 1)]
        front = i1 == 0 and (whole or i1 == i2 or j1 == j2)
        a, b = max(0, i1 - l), min(len(file), i2 + r)
        a2, b2 = j1 - (i1 - a), j2 + (b - i2)
        for x1, x2, y1, y2 in segments(file, name):  # neighbours that change too
            if x1 < a < x2:
                a, a2 = x1, y1
            if x1 < b < x2:
                b, b2 = x2, y2
            if x2 <= i1 and x1 >= a:
                a2 = min(a2, y1 - (x1 - a))
            if x1 >= i2 and x2 <= b:
                b2 = max(b2, y2 + (b - x2))
        yield differs, (front, file[a:b], name[max(a2, 0):b2])


def changed(table, file):
    """A name after the changes, and which took part: from left to right, each place once, the longest first."""
    out, used, i = [], [], 0
    while i < len(file):
        rules = table.get(file[i], []) + (table.get("*", []) if file[i].isdigit() else [])
        for rule in rules:
            front, old, new = rule
            here = file[i:i + len(old)]
            if (front and i) or len(here) < len(old):
                continue
            if all(a == b or (a == "*" and b.isdigit()) for a, b in zip(old, here)):
                numbers = iter(b for a, b in zip(old, here) if a == "*")
                out += [next(numbers, each) if each == "*" else each for each in new]
                used.append(rule)
                i += len(old)
                break
        else:
            out.append(file[i])
            i += 1
    return tuple(out), used


def solve(samples, whole):
    """Changes for all samples {file: name}, and the samples that they get wrong."""
    found = search(samples, whole, True)
    return min(found, search(samples, whole, False), key=lambda both: len(both[1])) if found[1] else found


def search(samples, whole, general):
    """What solve() gives; `general`: of changes of the same words the most frequent one stays without context."""
    levels, best = collections.Counter(), None
    for turn in range(60):
        owners, counts = collections.defaultdict(set), collections.Counter()
        for file, name in samples.items():
            for differs, rule in changes(file, name, levels, whole):
                owners[rule].add(differs)
                counts[rule] += 1
        rules = sorted(owners, key=lambda rule: (-len(rule[1]), not rule[0], rule))
        table = collections.defaultdict(list)
        for rule in rules:
            table[rule[1][0]].append(rule)
        wrong, more = [], set()
        for file, name in samples.items():
            got, used = changed(table, file)
            if got == name:
                continue
            wrong.append((file, name, got))
            own = {rule for _, rule in changes(file, name, levels, whole)}
            for rule in [rule for rule in used if rule not in own] or own:
                rivals = [each for each in own if general and each[:2] == rule[:2]] + [rule]
                more |= owners[min(rivals, key=lambda each: counts[each])]
        if best is None or len(wrong) < len(best[1]):
            best, since = (rules, wrong), turn
        if not wrong or turn - since > 5:
            break
        levels.update(more)
    return best


def samples(traced):
    """{components of a file's name: of the loaded one}; numbers are spelt out where they tell names apart."""
    pairs = {**{name: name for name in traced.own}, **traced.pairs}
    for names, _, _, _ in traced.made:
        for name in names:
            pairs.setdefault(name, name)
    all = collections.defaultdict(set)
    for file, name in pairs.items():
        all[parts(file)].add(parts(name))
    out = {}
    for file, name in pairs.items():
        same = len(all[parts(file)]) == 1
        out[parts(file, same)] = parts(name, same)
    return out


# ---------------------------------------------------------------------------------------------------
# Tensors that become others


def behind(names):
    """Names from behind the last number that all have in one place."""
    names = [parts(name) for name in names]
    same = 0
    while all(len(name) > same + 1 and name[same] == names[0][same] for name in names):
        same += 1
    start = max([i + 1 for i in range(same) if names[0][i] == "*"], default=0)
    return [".".join(name[start:]) for name in names]


def made(traced):
    """Whether experts become one parameter, layers divided evenly, and names of tensors that become others in
    ways that no adapter's factors follow."""
    fuses, divided, remade = False, set(), set(traced.moved)
    for names, between, how, shapes in traced.made:
        experts = [EXPERT.fullmatch(file) for file in between]
        if all(experts) and set(how) <= {"MergeModulelist", "Concatenate"} and len(names) == 1:
            gated = len({each.group(2) for each in experts}) == 2
            ours = experts[0].group(1) + "experts." + (
                "gate_up_proj" if gated else "up_proj" if experts[0].group(2) else "down_proj")
            if ours == names[0]:
                fuses = True
                continue
        last = between[0].rpartition(".")[2]
        if len(between) == 1 and how == ["Chunk"] and last in ("weight", "bias") and len(shapes[0]) <= 2 and all(
                name.endswith("." + last) for name in names):
            short = [name.rpartition(".")[0] for name in behind(between + names)]
            divided.add(short[0] + "=" + ",".join(short[1:]))
            continue
        remade |= {behind([file, names[0]])[0] for file in between if file not in names}
        remade |= {behind([file, file])[0] for file in between if file in names}
    return fuses, tuple(sorted(divided)), tuple(sorted(remade))


def quoted(words, indent):
    lines, line = [], ""
    for word in words:
        if line and len(line) + len(word) > 84:
            lines.append(line + " ")
            line = ""
        line += (" " if line else "") + word
    return ("\n" + indent).join(f'"{each}"' for each in lines + [line])


def main():
    warnings.filterwarnings("ignore")
    layers.torch, layers.transformers = torch, transformers
    transformers.logging.set_verbosity_error()
    rows, count, unbuilt = collections.defaultdict(list), 0, []
    for title, cls in ends.classes():
        try:
            traced = Traced(cls)
        except Exception:
            unbuilt.append(title)
            continue
        if not traced.pairs and not traced.made:
            continue
        rules, wrong = solve(samples(traced), re.search("For|LMHead", title) is not None)
        for file, name, got in wrong[:1]:
            print(f"{title}: {len(wrong)} names, {'.'.join(file)} becomes {'.'.join(got)}, not {'.'.join(name)}", flush=True)
        count += bool(wrong)
        words = tuple(("^" if front else "") + ".".join(old) + ">" + ".".join(new) for front, old, new in rules)
        fuses, divided, remade = made(traced)
        if words or fuses or divided or remade:
            rows[words, divided, remade, fuses].append(title)
    print(f"{count} classes have names that come out wrong; not built: {' '.join(unbuilt)}")
    lines = [f"// Written by tools/renamed.py from transformers {transformers.__version__}."]
    for (words, divided, remade, fuses), titles in sorted(rows.items(), key=lambda row: row[1]):
        lists = ",\n     ".join(quoted(each, "     ") for each in (titles, words, divided, remade))
        lines.append(f"    {{{lists}, {'true' if fuses else 'false'}}},")
    pathlib.Path(sys.argv[1]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

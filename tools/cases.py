"""The recipes that ingot and mergekit both run: one block for each method.

A new method gets a block here and a function in truth.py; tools/oracle.py record does the rest. LAYERS stands for
the depth of the models, INNER for one less. Models are the examples' (base, python, c, prose; record cuts them
small) and the four of edges() below, for what ordinary models do not have.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    text: str
    seed: int = 0
    deep: bool = False  # golden keeps two tensors of every layer instead of several of one
    lean: bool = False  # golden keeps no embedding
    ours: str = ""      # why results differ from mergekit's by more than rounding; without a reason none may


def merge(method, models, base=None, dtype="float32", out=None, extra="", parameters=""):
    lines = ["models:"]
    for name, given in models:
        lines.append(f"  - model: ./{name}")
        if given:
            lines.append(f"    parameters: {{{given}}}")
    lines.append(f"merge_method: {method}")
    for key, value in (("base_model", base and f"./{base}"), ("dtype", dtype), ("out_dtype", out)):
        if value:
            lines.append(f"{key}: {value}")
    if parameters:
        lines.append(f"parameters: {{{parameters}}}")
    return "\n".join(lines) + "\n" + extra


PCP = ("python", "c", "prose")


def trio(*parameters):
    return list(zip(PCP, parameters or ("", "", "")))


def pair(first="", second=""):
    return [("python", first), ("c", second)]


def lean(method, models, seed=0, deep=False, ours="", **more):
    return Case(merge(method, models, **more), seed, deep, True, ours)


def sliced(method, names, base, tail, **more):
    """A recipe of slices: the whole depth of every model, with parameters below."""
    lines = ["slices:", "  - sources:"]
    lines += [f"      - {{model: ./{name}, layer_range: [0, LAYERS]}}" for name in names]
    lines += [f"merge_method: {method}"] + ([f"base_model: ./{base}"] if base else [])
    return Case("\n".join(lines) + f"\ndtype: float32\n{tail}", lean=True, **more)


def recipe(case, layers):
    return case.text.replace("LAYERS", str(layers)).replace("INNER", str(layers - 1))


LINEAR = {
    "linear": Case(merge("linear", trio("weight: 0.4", "weight: 0.3", "weight: 0.3"))),
    "linear-sum": Case(merge("linear", trio("weight: 1.2", "weight: -0.3", "weight: 0.25"),
                             extra="parameters: {normalize: false}\n")),
    "linear-filters": Case(merge("linear", [("python", ""), ("prose", "weight: 0.35")], extra="""\
parameters:
  weight:
    - {filter: mlp, value: [0.1, 0.65, 0.3]}
    - {filter: self_attn, value: [1, 0.2]}
    - value: 0.8
"""), deep=True),
    "linear-unequal": Case(merge("linear", trio("weight: 7", "weight: -1.9", "weight: 0.013"))),
    "linear-promoted": Case(merge("linear", trio("weight: 0.5", "weight: 0.2", "weight: 0.3"), dtype=None)),
    "linear-bf16": Case(merge("linear", [("python", "weight: 0.6"), ("c", "weight: 0.7")], dtype=None)),
    "linear-bf16-mixed": Case(merge("linear", trio("weight: 0.4", "weight: 0.3", "weight: 0.3"),
                                    dtype="bfloat16")),
    "linear-out-bf16": Case(merge("linear", trio("weight: 0.4", "weight: 0.3", "weight: 0.3"),
                                  out="bfloat16")),
}

SLERP = {
    "slerp": Case(merge("slerp", [("python", ""), ("prose", "")], base="python", extra="""\
parameters: {t: 0.35}
""")),
    "slerp-layers": Case("""\
slices:
  - sources:
      - {model: ./python, layer_range: [0, LAYERS]}
      - {model: ./c, layer_range: [0, LAYERS]}
merge_method: slerp
base_model: ./python
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: float32
""", deep=True),
    "slerp-tuned-base": Case(merge("slerp", [("base", ""), ("c", "")], base="c", out="float16", extra="""\
parameters: {t: [0.1, 0.9]}
"""), deep=True),
    "slerp-bf16": Case(merge("slerp", [("python", ""), ("c", "")], base="c", dtype="bfloat16", extra="""\
parameters: {t: 0.6}
""")),
}

TASK_ARITHMETIC = {
    "task-arithmetic": Case(merge("task_arithmetic", trio("weight: 1", "weight: [0.2, 0.8]", "weight: -0.3"),
                                  base="base", extra="parameters: {lambda: 0.9}\n"), deep=True),
    "task-arithmetic-mean": Case(merge("task_arithmetic", trio("weight: 0.9", "weight: 0.7", "weight: 0.4"),
                                       base="base", extra="parameters: {normalize: true}\n")),
    "task-arithmetic-away": Case(merge("task_arithmetic", [("c", "weight: -1")], base="base")),
    "task-arithmetic-bf16": Case(merge("task_arithmetic", [("python", "weight: 0.7"), ("c", "weight: 0.6")],
                                       base="base", dtype=None)),
}

TIES = {
    "ties": Case(merge("ties", trio("weight: 0.5, density: 0.35", "weight: 0.3, density: 0.35",
                                    "weight: 0.2, density: 0.35"), base="base")),
    "ties-sparse": Case(merge("ties", trio("weight: 0.5, density: 0.01", "weight: 0.4, density: 0.01",
                                           "weight: 0.6, density: 0.01"), base="base")),
    "ties-full": Case(merge("ties", trio("weight: 0.5", "weight: 0.4", "weight: 0.6"), base="base", extra="""\
parameters: {density: 1.0}
""")),
    "ties-filters": Case("""\
models:
  - model: ./base
  - model: ./python
    parameters: {density: 0.5, weight: 0.5}
  - model: ./c
    parameters: {density: 0.35, weight: [0.1, 0.7]}
  - model: ./prose
    parameters:
      density: [1, 0.7, 0.1]
      weight:
        - {filter: mlp, value: 0.5}
        - value: 0.2
merge_method: ties
base_model: ./base
parameters: {normalize: false, int8_mask: true, lambda: 1.3}
dtype: float32
""", deep=True),
    "ties-rescaled": Case(merge("ties", trio("weight: 0.5, density: 0.35", "weight: 0.3, density: 0.2",
                                             "weight: 0.4, density: 0.8"), base="base",
                                extra="parameters: {rescale: true}\n")),
    "ties-negative": Case(merge("ties", trio("weight: 0.8, density: 0.35", "weight: -0.5, density: 0.35",
                                             "weight: 0.45, density: 0.6"), base="base")),
    "ties-out-bf16": Case(merge("ties", trio("weight: 0.5, density: 0.35", "weight: 0.3, density: 0.35",
                                             "weight: 0.2, density: 0.35"), base="base", out="bfloat16")),
    "ties-f16": Case(merge("ties", trio("weight: 0.5, density: 0.5", "weight: 0.3, density: 0.5",
                                        "weight: 0.2, density: 0.5"), base="base", dtype="float16")),
}

DARE_LINEAR = {
    "dare-linear": Case(merge("dare_linear", trio("weight: 0.6, density: 0.35", "weight: 0.4, density: 0.7",
                                                  "weight: -0.2, density: 0.35"), base="base")),
    "dare-linear-plain": Case(merge("dare_linear", trio("weight: 0.6, density: 0.35",
                                                        "weight: 0.4, density: 0.01",
                                                        "weight: 0.3, density: 1"), base="base", extra="""\
parameters: {rescale: false, normalize: true}
"""), seed=20240229),
    "dare-linear-sparse": Case(merge("dare_linear", trio("weight: 0.6, density: 0.01",
                                                         "weight: 0.5, density: 0.01",
                                                         "weight: 0.4, density: 0.01"), base="base",
                                     out="bfloat16")),
}

DARE_TIES = {
    "dare-ties": Case(merge("dare_ties", [("base", ""), ("python", "density: 0.53, weight: 0.4"),
                                          ("c", "density: 0.53, weight: 0.3"),
                                          ("prose", "density: 0.53, weight: 0.3")], base="base",
                            extra="parameters: {int8_mask: true}\n")),
    "dare-ties-plain": Case(merge("dare_ties", trio("weight: 0.6, density: [0.9, 0.35]",
                                                    "weight: -0.4, density: 0.5",
                                                    "weight: 0.5, density: 0.8"), base="base", extra="""\
parameters: {rescale: false, normalize: true, lambda: 0.5}
"""), seed=(1 << 63) + 12345, deep=True),
    "dare-ties-bf16": Case(merge("dare_ties", [("python", "weight: 0.6, density: 0.35"),
                                               ("c", "weight: 0.5, density: 0.66")], base="base",
                                 dtype="bfloat16")),
}

PASSTHROUGH = {
    "passthrough-stack": Case("""\
slices:
  - sources: [{model: ./python, layer_range: [0, INNER]}]
  - sources: [{model: ./c, layer_range: [0, 1]}]
  - sources:
      - model: ./prose
        layer_range: [1, LAYERS]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: -0.75}
            - value: 1.0
merge_method: passthrough
dtype: float32
""", deep=True),
    "passthrough-f16": Case(merge("passthrough", [("python", "")], dtype="float16")),
}

# The models of edges(): `plain` is the base of `first` and `second`; `twin` is `first` again.
EDGES = ("first", "second")


def edge(method, models=None, base="plain", **more):
    """A recipe over the models of edges(): models are names, or pairs of a name and its parameters."""
    models = [m if isinstance(m, tuple) else (m, "") for m in models or EDGES]
    return lean(method, [(f"edge-{name}", given) for name, given in models], base=base and f"edge-{base}", **more)


def edges():
    """{model: {tensor: rows of numbers}}: one layer of four columns, in f32.

    Tensors nobody changed or only one model did, task vectors that are parallel, opposite, nearly opposite,
    all of one magnitude, equal or tiny, weights that are opposite or zero, tensors and lines of one element.
    """
    state = [20260301]

    def draw(rows, columns, step=2.0**-9, span=128):
        found = []
        for _ in range(rows * columns):
            state[0] = (state[0] * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            found.append(((state[0] >> 33) % (2 * span + 1) - span) * step)
        return [found[i * columns:(i + 1) * columns] for i in range(rows)]

    def plus(a, b, times=1.0):
        return [[x + times * y for x, y in zip(p, q)] for p, q in zip(a, b)]

    def change(rows, columns):
        return draw(rows, columns, 2.0**-12)

    models = {name: {} for name in ("plain", *EDGES)}

    def tensor(name, plain, first, second):
        for model, rows in zip(models.values(), (plain, first, second)):
            model[name] = rows

    inside = "model.layers.0."
    for name, rows, columns in (("model.embed_tokens.weight", 6, 4), (f"{inside}self_attn.o_proj.weight", 4, 1),
                                (f"{inside}self_attn.q_norm.weight", 1, 1)):
        base = draw(rows, columns)
        tensor(name, base, plus(base, change(rows, columns)), plus(base, change(rows, columns)))
    base, delta = draw(1, 4), change(1, 4)
    tensor(f"{inside}input_layernorm.weight", base, base, base)  # nobody changed it
    tensor(f"{inside}post_attention_layernorm.weight", base, plus(base, delta), base)
    tensor(f"{inside}self_attn.q_proj.weight", base, plus(base, delta), plus(base, delta, -2.0))
    tensor(f"{inside}self_attn.k_proj.weight", base, plus(base, delta, 3.0), plus(base, delta))
    nearly = [[-x for x in delta[0]]]
    nearly[0][1] += 2.0**-11
    tensor(f"{inside}self_attn.v_proj.weight", base, plus(base, delta), plus(base, nearly))
    single = draw(1, 1)
    tensor(f"{inside}self_attn.k_norm.weight", single, plus(single, [[0.125]]), plus(single, [[0.125]]))
    base, shared = draw(3, 4), change(3, 4)
    signs = [[[2.0**-6 * ((5 * i + 2 * j * k + j) % 3 - 1) for j in range(4)] for i in range(3)] for k in (1, 2)]
    tensor(f"{inside}mlp.gate_proj.weight", base, plus(base, signs[0]), plus(base, signs[1]))
    tensor(f"{inside}mlp.up_proj.weight", base, plus(base, shared), plus(base, shared))
    whole = draw(4, 3)
    tensor(f"{inside}mlp.down_proj.weight", draw(4, 3), whole, [[-x for x in row] for row in whole])
    base = draw(1, 4)
    tensor("model.norm.weight", base, plus(base, change(1, 4), 2.0**-9), plus(base, change(1, 4), 2.0**-9))
    tensor("lm_head.weight", draw(6, 4), [[0.0] * 4] * 6, draw(6, 4))
    models["twin"] = models["first"]
    return models


FULL = "weight: 0.6", "weight: 0.4", "weight: 0.5"
WEIGHTS = """\
parameters:
  weight:
    - {filter: mlp, value: [0.1, 0.65, 0.3]}
    - {filter: self_attn, value: [1, 0.2]}
    - value: 0.8
"""
STRAIGHT = "nearly opposite vectors are mixed straight; mergekit's arc multiplies their rounding"

NUSLERP = {
    "nuslerp": lean("nuslerp", pair("weight: 0.6", "weight: 0.4")),
    "nuslerp-base": lean("nuslerp", pair("weight: 0.7", "weight: -0.2"), base="base", out="bfloat16"),
    "nuslerp-rows": lean("nuslerp", pair("weight: [0.9, 0.3]", "weight: 0.5"), base="base", deep=True,
                         parameters="nuslerp_flatten: false"),
    "nuslerp-columns": sliced("nuslerp", ("python", "prose"), None, WEIGHTS +
                              "  nuslerp_flatten: false\n  nuslerp_row_wise: true\n", deep=True),
    "nuslerp-cancelled": lean("nuslerp", pair("weight: -0.5", "weight: 0.5")),
    "nuslerp-bf16": lean("nuslerp", pair("weight: 0.6", "weight: 0.4"), dtype="bfloat16"),
    "nuslerp-rows-bf16": lean("nuslerp", pair("weight: 0.6", "weight: 0.4"), base="base", dtype="bfloat16",
                              parameters="nuslerp_flatten: false"),
    "nuslerp-edge": edge("nuslerp", parameters="weight: 0.7", ours=STRAIGHT),
    "nuslerp-edge-rows": edge("nuslerp", [("second", "weight: 0.2"), ("first", "weight: 0.8")], ours=STRAIGHT,
                              parameters="nuslerp_flatten: false"),
    "nuslerp-edge-plain": edge("nuslerp", [("first", "weight: 0.3"), ("second", "weight: 0.7")], base=None,
                               ours=STRAIGHT),
    "nuslerp-twin": edge("nuslerp", ("first", "twin"), parameters="weight: 1"),
}

ABORTS = "mergekit stops where task vectors are all zero; the base comes out"
MULTISLERP = {
    "multislerp": lean("multislerp", trio(*FULL)),
    "multislerp-base": lean("multislerp", trio("weight: 0.8", "weight: -0.3", "weight: 0.4"), base="base"),
    "multislerp-sum": sliced("multislerp", PCP, None, WEIGHTS + "  normalize_weights: false\n", deep=True),
    "multislerp-eps": lean("multislerp", trio(*FULL), base="base", parameters="eps: 0.01"),
    "multislerp-one": lean("multislerp", [("python", "weight: 0.3")], base="base"),
    "multislerp-bf16": lean("multislerp", trio(*FULL), base="base", dtype="bfloat16"),
    "multislerp-edge": edge("multislerp", (*EDGES, "twin"), parameters="weight: 1", ours=ABORTS),
    "multislerp-edge-plain": edge("multislerp", base=None, parameters="weight: 0.5"),
}

KARCHER = {
    "karcher": lean("karcher", trio()),
    "karcher-base": lean("karcher", [("prose", ""), ("python", ""), ("base", "")], out="float16"),
    "karcher-short": lean("karcher", trio(), parameters="max_iter: 1, tol: 0.01"),
    "karcher-layers": sliced("karcher", PCP, None, "parameters: {max_iter: 3, tol: [1e-9, 1e-3]}\n", deep=True),
    "karcher-bf16": lean("karcher", trio(), dtype="bfloat16"),
    "karcher-edge": edge("karcher", base=None),
    "karcher-twin": edge("karcher", ("first", "twin", "second"), base=None,
                         ours="no direction leads to an opposite tensor; mergekit divides by the sine of pi"),
}


def thinned(method, gradient):
    """Cases of the task-vector methods with a density for each model; `gradient`: their further parameter."""
    name = method.replace("_", "-")
    each = trio("weight: 0.6, density: 0.5", "weight: 0.4, density: 0.35", "weight: 0.5, density: 0.8")
    ends = trio("weight: 0.6, density: 0", "weight: 0.4, density: 1", "weight: 0.5, density: 0.5")
    return {
        name: lean(method, each, base="base"),
        f"{name}-layers": sliced(method, ("base", *PCP), "base", f"""\
parameters:
  lambda: 1.3
  density: [0.7, 0.3]
  weight:
    - {{filter: mlp, value: [0.1, 0.65, -0.3]}}
    - value: 0.8
{gradient}""", deep=True, seed=99),
        f"{name}-ends": lean(method, ends, base="base", out="bfloat16"),
        f"{name}-negative": lean(method, trio("weight: 0.8, density: 0.6", "weight: -0.5, density: 0.6",
                                              "weight: 0.45, density: 0.6"), base="base"),
        f"{name}-bf16": lean(method, each, base="base", dtype="bfloat16"),
    }


def crumbs(method):
    name = method.replace("_", "-")
    return {
        **thinned(method, "  gamma: [0, 0.2]\n"),
        f"{name}-outliers": lean(method, trio(*FULL), base="base", parameters="density: 0.6, gamma: 0.3"),
        f"{name}-rescaled": lean(method, trio(*FULL), base="base", parameters="density: 0.3, rescale: true, "
                                 "normalize: true"),
        f"{name}-few": lean(method, trio(*FULL), base="base", parameters="density: 0.02, gamma: 0.9"),
        f"{name}-edge": edge(method, parameters="weight: 0.75, density: 0.5, gamma: 0.25"),
    }


BREADCRUMBS = crumbs("breadcrumbs")
BREADCRUMBS_TIES = crumbs("breadcrumbs_ties")


def ranked(method):
    name = method.replace("_", "-")
    return {
        **thinned(method, "  epsilon: [0.05, 0.25]\n"),
        f"{name}-plain": lean(method, trio(*FULL), base="base", seed=(1 << 63) + 5,
                              parameters="density: 0.5, rescale: false, normalize: false"),
        f"{name}-even": lean(method, trio(*FULL), base="base", parameters="density: 0.4, epsilon: 0"),
        f"{name}-few": lean(method, trio(*FULL), base="base", parameters="density: 0.02, epsilon: 0.01"),
        f"{name}-edge": edge(method, parameters="weight: 0.75, density: 0.5, epsilon: 0.4"),
    }


DELLA = ranked("della")
DELLA_LINEAR = ranked("della_linear")

SMALL = "the cosines of small changes are not shrunk"
MODEL_STOCK = {
    "model-stock": lean("model_stock", trio(), base="base"),
    "model-stock-rows": lean("model_stock", trio(), base="base", deep=True, parameters="filter_wise: true"),
    "model-stock-layers": sliced("model_stock", ("base", "c", "prose"), "base", "parameters: {filter_wise: "
                                 "[{filter: mlp, value: true}, {value: false}]}\n", deep=True),
    "model-stock-bf16": lean("model_stock", trio(), base="base", dtype="bfloat16"),
    "model-stock-edge": edge("model_stock", (*EDGES, "twin"), ours=SMALL),
    "model-stock-edge-rows": edge("model_stock", parameters="filter_wise: true", ours=SMALL),
}

SCALE = "weights and divisor have no absolute threshold"
SCE = {
    "sce": lean("sce", trio(), base="base"),
    "sce-half": lean("sce", trio(), base="base", parameters="select_topk: 0.5, int8_mask: true"),
    "sce-layers": sliced("sce", ("base", *PCP), "base", "parameters: {select_topk: [{filter: mlp, value: "
                         "[0.2, 1]}, {value: 0.7}]}\n", deep=True),
    "sce-few": lean("sce", pair(), base="base", parameters="select_topk: 0.01", out="bfloat16"),
    "sce-none": lean("sce", trio(), base="base", parameters="select_topk: 0"),
    "sce-one": lean("sce", [("python", "")], base="base", parameters="select_topk: 0.5",
                    ours="one model: nothing to rank, its change is kept"),
    "sce-bf16": lean("sce", trio(), base="base", dtype="bfloat16", parameters="select_topk: 0.5"),
    "sce-edge": edge("sce", ours=SCALE),
    "sce-twin": edge("sce", ("first", "twin"), parameters="select_topk: 0.5",
                     ours="equal models: nothing to rank, their change is kept"),
    "sce-edge-none": edge("sce", parameters="select_topk: 0"),
    "sce-edge-half": edge("sce", parameters="select_topk: 0.5", ours="a change that all models share in a "
                          "whole tensor is kept; " + SCALE),
}

RAM = {
    "ram": lean("ram", trio(), base="base", dtype=None),
    "ram-wide": lean("ram", trio(), base="base", parameters="epsilon: 0.003", out="bfloat16"),
    "ram-layers": sliced("ram", ("base", *PCP), "base", "parameters: {epsilon: [0, 0.004]}\n", deep=True),
    "ram-bf16": lean("ram", trio(), base="base", dtype="bfloat16", parameters="epsilon: 0.003"),
    "ram-edge": edge("ram"),
}

RAMPLUS_TL = {
    "ramplus-tl": lean("ramplus_tl", trio(), base="base"),
    "ramplus-tl-wide": lean("ramplus_tl", trio(), base="base", parameters="epsilon: 0.003, r: 0.4, alpha: 3"),
    "ramplus-tl-layers": sliced("ramplus_tl", ("base", *PCP), "base", "parameters: {epsilon: [0.001, 0.006], r: "
                                "[{filter: mlp, value: -0.3}, {value: 0.2}], alpha: 0.5}\n", deep=True),
    "ramplus-tl-bf16": lean("ramplus_tl", trio(), base="base", dtype="bfloat16", parameters="epsilon: 0.003"),
    "ramplus-tl-edge": edge("ramplus_tl"),
}

NEARSWAP = {
    "nearswap": lean("nearswap", [("python", "")], base="base", parameters="t: 0.003"),
    "nearswap-layers": sliced("nearswap", ("c", "prose"), "c", "parameters: {t: [{filter: mlp, value: [0, 0.01]}, "
                              "{value: 0.002}]}\n", deep=True),
    "nearswap-far": lean("nearswap", [("prose", "")], base="base", parameters="t: 10", out="bfloat16"),
    "nearswap-tiny": lean("nearswap", [("prose", "")], base="base", parameters="t: 1e-8"),
    "nearswap-away": lean("nearswap", [("prose", "")], base="base", parameters="t: -0.1"),
    "nearswap-bf16": lean("nearswap", [("c", "")], base="base", dtype="bfloat16", parameters="t: 0.003"),
    "nearswap-edge": edge("nearswap", ["second"], parameters="t: 0.01"),
}

DIVERGENCE = "mergekit's divergence of a line is a sum in f32 that may come out below zero"
ARCEE_FUSION = {
    "arcee-fusion": lean("arcee_fusion", [("base", ""), ("python", "")], base="base", ours=DIVERGENCE),
    "arcee-fusion-layers": sliced("arcee_fusion", ("prose", "c"), "c", "", deep=True),
    "arcee-fusion-bf16": lean("arcee_fusion", [("base", ""), ("python", "")], base="base", dtype="bfloat16"),
    "arcee-fusion-out": lean("arcee_fusion", [("python", ""), ("prose", "")], base="python", out="bfloat16",
                             ours=DIVERGENCE),
    "arcee-fusion-edge": edge("arcee_fusion", ["second"]),
}

# Ours alone: nothing of mergekit's is compared, its planner reads the recipes.
CONSENSUS = {
    "consensus": lean("consensus", trio(), base="base"),
    "consensus-layers": sliced("consensus", ("base", *PCP), "base", """\
parameters:
  lambda: [1, 0.3]
  threshold: [0.2, 0.6]
  weight:
    - {filter: mlp, value: [0.1, 0.65, -0.3]}
    - value: 0.8
""", deep=True),
    "consensus-one": lean("consensus", trio("weight: 0.5", "weight: -0.3", "weight: 0.4"), base="base",
                          parameters="least: 1, threshold: 2"),
    "consensus-all": lean("consensus", trio(), base="base", parameters="least: 3, threshold: 0.1, lambda: 0.5"),
    "consensus-bf16": lean("consensus", trio(), base="base", dtype="bfloat16"),
    "consensus-edge": edge("consensus"),
}

AVERAGE = {
    "average": lean("average", trio()),
    "average-ema": lean("average", trio(), parameters="schedule: ema, alpha: 0.2"),
    "average-cosine": sliced("average", (*PCP, "base"), None, "parameters: {schedule: cosine, anchor: true}\n",
                             deep=True),
    "average-sqrt": lean("average", trio(), parameters="schedule: minus_sqrt", out="bfloat16"),
    "average-linear": lean("average", trio(), parameters="schedule: linear, anchor: true", dtype=None),
    "average-window": lean("average", trio(), parameters="window: 2"),
    "average-extrapolated": lean("average", trio(), parameters="extrapolate: 0.5"),
    "average-bf16": lean("average", trio(), dtype="bfloat16"),
}

CASES = {**LINEAR, **SLERP, **NUSLERP, **MULTISLERP, **KARCHER, **TASK_ARITHMETIC, **TIES, **DARE_LINEAR,
         **DARE_TIES, **BREADCRUMBS, **BREADCRUMBS_TIES, **DELLA, **DELLA_LINEAR, **MODEL_STOCK, **SCE, **RAM,
         **RAMPLUS_TL, **NEARSWAP, **ARCEE_FUSION, **CONSENSUS, **AVERAGE, **PASSTHROUGH}

"""Frozen test vectors: inputs, options and expected results as JSON with hexadecimal floats, one file per clause.

For whoever has no Python: the format is described in ``vectors/v1/README.md``, and every bound can be computed from
what stands in the file. For whoever has: ``lowbit conform BACKEND --vectors-only`` needs neither Hypothesis nor the
specification. Files are frozen per ``SPEC_VERSION``; ``python -m lowbit.conformance.vectors FOLDER`` writes them anew
from the specification.
"""

from __future__ import annotations

import json
import math
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import compare
from .clauses import CLAUSES
from .hexfloat import decode
from .judging import Judge, part
from .report import Result
from .rules import Case, Earlier, LookupTable, Node
from .rules import case as _case
from .rules import codes as _codes
from .rules import exact as _exact
from .rules import forward as _forward
from .rules import objective as _objective

__all__ = ["SCHEMA", "WITHOUT", "check", "folder", "load", "write"]

SCHEMA = "lowbit.vectors/1"

WITHOUT = {
    "B-3a": "compares the results of several calls with each other, as errors that may not rise",
    "M-3c": "compares summed errors of two methods, which need not agree in any row",
    "U-5": "stationarity of whatever fit a backend returns; U-5b has a vector",
    "K-5b": "what no cheaper allocation may beat is what was bought; K-5a has a vector",
    "N-7b": "errors are those of a backend's own iterates",
    "N-7c": "relates two results whose factors have no sign of their own",
    "L-3": "judges the squared error of lines, which need not be unique",
    "X-10": "judged along a backend's own path; X-10a has a vector",
    "X-11": "judged along a backend's own path; X-11a has a vector",
    "O-9b": "takes functions",
    "E-5b": "needs a problem of megabytes",
    "C-2b": "is a refusal",
    "H-1a": "is a refusal",
    "D-7a": "is a refusal",
    "A-1": "is about every operation",
    "A-1a": "is about every operation",
    "A-2": "is about every operation",
    "A-2a": "is about every operation",
    "A-2b": "is about every operation",
    "A-3": "is a refusal",
    "A-4": "is a refusal",
}
"""Clauses that no frozen vector can show, and why."""

_SUM_ROUNDINGS = 4  # of a grid: clip, clip, difference, division


# -- reading -----------------------------------------------------------------------------------------------------------


def folder() -> Any:
    """Where the frozen files lie, also inside an installed wheel."""
    return resources.files("lowbit.conformance").joinpath("vectors", "v1")


def load(clauses: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """Records of some clauses (all of them when none is named), in reading order; some clauses have a second file."""
    wanted = list(clauses) or list(CLAUSES)
    for identifier in CLAUSES:
        for name in (identifier, f"{identifier}.2"):
            file = folder().joinpath(f"{name}.json")
            if identifier in wanted and file.is_file():
                yield {**json.loads(file.read_text(encoding="utf-8")), "file": name}


def argument(value: Any) -> Any:
    """Encoded argument → NumPy, a list of them, a moment node, a look-up table or another record of arrays; or None."""
    if value is None:
        return None
    if isinstance(value, list):
        return [argument(v) for v in value]
    if "result" in value:
        return Earlier(**value["result"])
    if "record" in value:
        fields = {k: argument(v) for k, v in value["record"].items()}
        return namedtuple("Record", fields)(**fields)
    if "table" in value:
        found: dict[str, Any] = {k: v if isinstance(v, int) else decode(v) for k, v in value["table"].items()}
        return LookupTable(**found)
    if "node" in value:
        parts: list[Any] = [v if isinstance(v, int) else decode(v) for v in (value["node"][f] for f in Node._fields)]
        return Node(*parts)
    return decode(value)


def _own(backend: Any, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return backend.asarray(value)
    if isinstance(value, Node):
        return Node(*(_own(backend, v) for v in value))
    if isinstance(value, LookupTable):
        return LookupTable(*(_own(backend, v) for v in value))
    if isinstance(value, tuple):
        return type(value)(*(_own(backend, v) for v in value))
    return [_own(backend, v) for v in value] if isinstance(value, list) else value


def judge(
    backend: Any, case: dict[str, Any], inputs: list[Any], result: Any, earlier: Sequence[Any] = ()
) -> Iterator[compare.Comparison]:
    """Compare a result with every expectation of a case."""
    judged = Judge(backend, inputs, result, earlier)
    for rule in case["expect"]:
        yield from judged(rule)


def check(backend: Any, clauses: Iterable[str] = ()) -> list[Result]:
    """Run the frozen vectors of some clauses (all of them when none is named) against a backend."""
    results = []
    for record in load(clauses):
        identifier = record["clause"]
        name = f"vectors/{record['file']}"
        operations = dict.fromkeys(case.get("op", record["op"]) for case in record["cases"])
        absent = [operation for operation in operations if not callable(getattr(backend, operation, None))]
        if absent:
            results.append(Result(identifier, name, "not implemented", None, f"no {', '.join(absent)}"))
            continue
        results.append(_run(backend, record, name))
    return results


def _run(backend: Any, record: dict[str, Any], name: str) -> Result:
    identifier = record["clause"]
    margin, refused = 0.0, list[str]()
    earlier: list[Any] = []
    for number, case in enumerate(record["cases"]):
        operation = case.get("op", record["op"])
        inputs = [argument(a) for a in case["arrays"]]
        where = f"{operation}, case {number} of {record['file']}.json ({case['about']})"
        earlier.append(None)
        try:
            if any(earlier[a.case] is None for a in inputs if isinstance(a, Earlier)):
                raise NotImplementedError("a case before it is not supported")
            inputs = [part(backend, earlier[a.case], a.field) if isinstance(a, Earlier) else a for a in inputs]
            result = getattr(backend, operation)(*(_own(backend, a) for a in inputs), **case["options"])
            for comparison in judge(backend, case, inputs, result, earlier):
                margin = max(margin, comparison.margin)
                if not comparison.ok:
                    return Result(identifier, name, "fail", comparison.margin, f"{where}: {comparison.detail}")
            earlier[-1] = result
        except NotImplementedError as refusal:  # Unsupported of the contract is one
            refused.append(f"{where}: {refusal}")
        except Exception as error:
            return Result(identifier, name, "fail", math.inf, f"{where}: {type(error).__name__}: {error}")
    if len(refused) == len(record["cases"]):
        return Result(identifier, name, "unsupported", None, refused[0])
    return Result(identifier, name, "pass", margin, "; ".join(refused))


# -- writing (needs the specification) ---------------------------------------------------------------------------------


def build() -> dict[str, tuple[str, list[Case]]]:
    """File → (operation, cases), computed by the specification on fixed draws."""
    from lowbit import reference

    from . import laws

    spec: Any = reference

    random = np.random.default_rng(20240229)

    def floats(*shape: int) -> npt.NDArray[np.float32]:
        return random.standard_normal(shape).astype(np.float32)

    ties = (np.arange(-36, 37) / 8).astype(np.float32)
    levels = np.array([-1.0, -0.5, 0.25, 0.75, 2.0], np.float32)
    middles = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2]).astype(np.float32)
    table: dict[str, tuple[str, list[Case]]] = {
        "R-1": ("round_half_even", [_case("multiples of 1/8", [ties], {}, [_exact("", spec.round_half_even(ties))])]),
        "R-2": (
            "round_clip",
            [
                _case(
                    "ties and infinities", [x], {"low": -3, "high": 2}, [_exact("", spec.round_clip(x, low=-3, high=2))]
                )
                for x in [np.concatenate([ties, [np.inf, -np.inf]]).astype(np.float32)]
            ],
        ),
        "R-3a": (
            "nearest_level",
            [_case("levels and midpoints", [middles, levels], {}, [_exact("", spec.nearest_level(middles, levels))])],
        ),
    }

    x = floats(3, 8)
    x[2] = 0

    def grid_case(about: str, **options: Any) -> Case:
        found = spec.fit_grid(x, **options)
        size = options.get("group_size") or x.shape[1]
        groups = x.reshape(3, -1, size).astype(np.float64)
        lo, hi = np.minimum(groups.min(axis=-1), 0), np.maximum(groups.max(axis=-1), 0)
        zero = (lo == 0) & (hi == 0)
        expect = [_forward("scale", found.scale, found.scale, _SUM_ROUNDINGS)]
        if options.get("scheme", "asymmetric") == "asymmetric":
            ratio = np.where(zero, 0.0, -lo * options.get("clip_ratio", 1.0) / found.scale)
            expect.append(_codes("zero_point", found.zero_point, ratio, _SUM_ROUNDINGS + 2))
        else:
            expect.append(_exact("zero_point", found.zero_point))
        return _case(about, [x], options, expect)

    table["Q-2"] = (
        "fit_grid",
        [
            grid_case("rows, the last all zero", bits=3),
            grid_case("groups of 4", bits=4, granularity="group", group_size=4),
            grid_case("clipped", bits=8, clip_ratio=0.75),
        ],
    )
    table["Q-2a"] = (
        "fit_grid",
        [grid_case(s, bits=b, scheme=s) for s in ("symmetric", "symmetric-full", "symmetric-gptq") for b in (2, 4)],
    )
    affine: list[Case] = []
    scale = (np.array([[3.0, 5.0], [7.0, 11.0]]) / 16).astype(np.float32)
    halves = np.arange(-12, 12).reshape(2, 12) / 2
    tied = (halves * np.repeat(scale, 6, axis=1)).astype(np.float32)
    zero = np.array([[2, 9], [0, 15]], np.int32)
    for scheme in ("asymmetric", "symmetric"):
        z = zero if scheme == "asymmetric" else zero * 0
        codes = spec.quantize(tied, scale, z, bits=4, scheme=scheme)
        about = f"x / s is a multiple of 1/2, {scheme}"
        affine.append(_case(about, [tied, scale, z], {"bits": 4, "scheme": scheme}, [_exact("", codes)]))
    hard, ratios = _hard_scales(), np.arange(-31, 32, 2)[None] / 2
    x, z = (hard * ratios).astype(np.float32), np.zeros(hard.shape, np.int32)
    codes = spec.quantize(x, hard, z, bits=5, scheme="symmetric")
    about = "ties whose product with a reciprocal is off"
    affine.append(_case(about, [x, hard, z], {"bits": 5, "scheme": "symmetric"}, [_exact("", codes)]))
    table["Q-3a"] = ("quantize", affine)
    general, steps = 3 * floats(4, 8), (0.1 + np.abs(floats(4, 2))).astype(np.float32)
    points = random.integers(0, 15, (4, 2)).astype(np.int32)
    codes = spec.quantize(general, steps, points, bits=4)
    ratio = general.astype(np.float64) / np.repeat(steps.astype(np.float64), 4, axis=1)
    arrays = [general, steps, points]
    table["Q-3"] = ("quantize", [_case("general", arrays, {"bits": 4}, [_codes("", codes, ratio, 1)])])
    values = spec.dequantize(codes, steps, points)
    restored = [_forward("", values, np.abs(values), 1)]
    table["Q-4"] = ("dequantize", [_case("general", [codes, steps, points], {}, restored)])
    zeros = np.zeros((2, 8), np.float32)
    unmoved = spec.clip_search(zeros, bits=4)
    table["Q-5a"] = ("clip_search", [_case("all zero", [zeros], {"bits": 4}, [_exact("step", unmoved.step)])])
    for identifier, layout in (("Q-6", "dense"), ("Q-7", "padded")):
        cases = []
        for bits in range(1, 9):
            unsigned = random.integers(0, 2**bits, (2, 35)).astype(np.int32)
            words = spec.pack(unsigned, bits=bits, layout=layout)
            cases.append(_case(f"{bits} bits", [unsigned], {"bits": bits, "layout": layout}, [_exact("", words)]))
        table[identifier] = ("pack", cases)
    table["Q-8"] = (
        "fit_grid",
        [
            _case(
                f"all zero, {scheme}, {bits} bits",
                [zeros],
                {"bits": bits, "scheme": scheme},
                [_forward("scale", found.scale, found.scale, 1), _exact("zero_point", found.zero_point)],
            )
            for scheme in ("asymmetric", "symmetric", "symmetric-full")
            for bits in (2, 3, 4, 8)
            for found in [spec.fit_grid(zeros, bits=bits, scheme=scheme)]
        ],
    )

    tokens = random.integers(-3, 4, (24, 8)).astype(np.float64)
    h = (tokens.T @ tokens + 40 * np.eye(8)).astype(np.float32)
    damped = laws.damped(h, 0.01)
    swell = math.ceil(4 * 8 * damped.kappa)  # inverse_sensitivity as a number of roundings
    factor = spec.inverse_cholesky(h)
    whole = np.linalg.norm(factor.factor)
    expect = [_forward("factor", factor.factor, whole, swell * 4), _exact("dead", factor.dead)]
    table["G-1"] = ("inverse_cholesky", [_case("well-conditioned", [h], {}, expect)])
    w = _clear_weight(spec, h, floats)

    def gptq_case(about: str, **options: Any) -> Case:
        found = spec.gptq(w, h, **options)
        return _case(
            about,
            [w, h],
            options,
            [
                _exact("codes", found.codes),
                _exact("group_index", found.group_index),
                _exact("zero_point", found.zero_point),
                _forward("scale", found.scale, found.scale, swell),
                _forward("loss", found.loss, found.loss, swell * 8),
            ],
        )

    table["G-2"] = ("gptq", [gptq_case("rows", bits=3), gptq_case("rows, symmetric", bits=4, scheme="symmetric-full")])
    table["G-3b"] = ("gptq", [gptq_case("act-order, groups", bits=4, group_size=4, act_order=True)])
    table["G-3a"] = (
        "gptq",
        [gptq_case("act-order, static groups", bits=4, group_size=4, act_order=True, static_groups=True)],
    )
    table["G-4"] = (
        "gptq",
        [gptq_case(f"groups, {s}", bits=3, group_size=4, group_scales=s, block_size=8) for s in ("current", "block")],
    )
    sparse = spec.sparsegpt(w, h)
    kept = [
        _exact("mask", sparse.mask),
        _forward("weight", sparse.weight, np.abs(w).max() + np.abs(sparse.weight), swell),
    ]
    table["G-5"] = ("sparsegpt", [_case("2:4", [w, h], {}, kept)])
    white = np.sign(w).astype(np.float32)
    identity = np.eye(8, dtype=np.float32)
    mask = _exact("mask", spec.sparsegpt(white, identity).mask)
    table["G-5a"] = ("sparsegpt", [_case("equal saliencies", [white, identity], {}, [mask])])
    moments = random.integers(1, 9, 8).astype(np.float32)
    pruned = spec.wanda(w, moments)
    weight = [_exact("mask", pruned.mask), _exact("weight", pruned.weight)]
    table["G-6"] = ("wanda", [_case("2:4", [w, moments], {}, weight)])
    squares = np.array([1, 4, 1, 4, 1, 1, 4, 4], np.float32)
    mask = _exact("mask", spec.wanda(white, squares).mask)
    table["G-6a"] = ("wanda", [_case("tied scores", [white, squares], {}, [mask])])

    leaf_cases, nodes = [], []
    for index in (0, 1, 2, 5):
        leaf = floats(6, 4)
        (node,) = spec.moment_leaf(leaf, index=index)
        nodes.append(node)
        size = np.abs(leaf).astype(np.float64)
        leaf_cases.append(
            _case(
                f"leaf {index}",
                [leaf],
                {"index": index},
                [
                    _forward("0.sum", node.sum, size.T @ size, 2 * len(leaf)),
                    _forward("0.magnitude", node.magnitude, node.magnitude, 2 * len(leaf)),
                    _exact("0.index", index),
                    _exact("0.tokens", len(leaf)),
                ],
            )
        )
    table["C-1"] = ("moment_leaf", leaf_cases)
    merged = spec.moment_merge(nodes[2:], nodes[:2])
    expect = [_exact(f"{i}.{f}", getattr(n, f)) for i, n in enumerate(merged) for f in Node._fields]
    table["C-2"] = ("moment_merge", [_case("leaves 2, 5 and 0, 1", [nodes[2:], nodes[:2]], {}, expect)])
    total = spec.moment_total(merged)
    bulk = np.full((4, 4), np.abs(total.matrix).max())
    expect = [_forward("matrix", total.matrix, bulk, 4), _exact("tokens", total.tokens)]
    table["C-2a"] = ("moment_total", [_case("three nodes", [list(merged)], {}, expect)])
    batches = [floats(1, 3, 4), floats(2, 3, 4)]
    found = spec.recency_moment(batches, total=4)
    rows = np.abs(np.concatenate([b.reshape(-1, 4) for b in batches])).astype(np.float64)
    expect = [_forward("", found, rows.T @ rows / 4, 32)]
    table["C-3"] = ("recency_moment", [_case("two batches of four sequences", [batches], {"total": 4}, expect)])

    d = floats(6, 8)
    wide = d.astype(np.float64)
    unitary = np.eye(8)
    tail = float(np.sum(np.linalg.svd(wide, compute_uv=False)[2:] ** 2))
    norm = float(np.sum(wide**2))
    plain = [_objective(d, unitary, tail, norm)]
    table["C-4"] = ("svd_patch", [_case(s, [d], {"rank": 2, "split": s}, plain) for s in ("balanced", "left")])
    channel = np.ldexp(1.0, random.integers(-3, 4, 8)).astype(np.float32)
    squared = np.diag(channel.astype(np.float64) ** 2)
    best = laws.optimum(d, squared, 2)
    scaled = [_objective(d, squared, best, norm * float(np.max(squared)), 4)]
    table["C-5"] = ("scaled_svd_patch", [_case("scaled channels", [d, channel], {"rank": 2}, scaled)])
    told = spec.objective(d, h)
    reach = float(np.sum((np.abs(wide) @ np.abs(h.astype(np.float64))) * np.abs(wide)))
    table["E-1"] = ("objective", [_case("general", [d, h], {}, [_forward("", told, reach, 6 * 8 + 8 + 2)])])
    few = tokens[:3].T @ tokens[:3]
    moments_by_name = {"full rank": h, "rank 3": few.astype(np.float32), "diagonal": np.diag(squares)}
    patches: dict[str, list[Case]] = {"eora": [], "eora_published": [], "eora_certified": []}
    spectra, optima = [], []
    for about, c in moments_by_name.items():
        norm = float(np.sum(wide**2) * np.linalg.norm(np.abs(c.astype(np.float64)), 2))
        best = laws.optimum(d, c, 2)
        for operation, cases in patches.items():
            if operation != "eora_published" or about == "full rank":
                steps_more = 8 if operation == "eora_published" else 1
                cases.append(_case(about, [d, c], {"rank": 2}, [_objective(d, c, best, norm, steps_more)]))
        if about == "full rank":  # small singular values of a singular moment have no relative bound
            spectrum = spec.error_spectrum(d, c)
            expect = [_forward("", spectrum, norm / spectrum, 4 * 8)]
            spectra.append(_case(about, [d, c], {}, expect))
        optima.append(_case(about, [d, c], {"rank": 2}, [_forward("", best, norm, 16 * 8)]))
    _codebooks(spec, table)
    table["E-2"] = ("eora", patches["eora"])
    table["E-3"] = ("error_spectrum", spectra)
    table["E-3a"] = ("optimum", optima)
    table["E-4"] = ("eora_published", patches["eora_published"])
    table["E-5a"] = ("eora_certified", patches["eora_certified"])

    low, high = 2**31 - 1, 2**32 - 1
    addresses = np.array([[0, 0, 0, 0], [high] * 4, [1, 2, 3, 7], [low, low + 1, 0, high]], np.int64)
    for identifier, op, more in (
        ("P-1", "philox_words", {}),
        ("P-2", "philox_uniform", {}),
        ("P-3", "philox_integers", {"bound": 1000}),
        ("P-4", "philox_normal", {}),
    ):
        cases = []
        for seed in (0, 1, 2**32, 2**64 - 1):
            found = getattr(spec, op)(addresses, seed=seed, **more)
            largest = np.full(found.shape, 6.8)  # sqrt(-2 log 2^-33): a bound on every normal
            rule = _forward("", found, largest, 4 * 3 + 3 * 7) if op == "philox_normal" else _exact("", found)
            cases.append(_case(f"seed {seed}", [addresses], {"seed": seed, **more}, [rule]))
        table[identifier] = (op, cases)

    table["H-1"] = (
        "hadamard_matrix",
        [
            _case(f"order {n}", [], {"order": n}, [_exact("", spec.hadamard_matrix(order=n))])
            for n in (1, 2, 8, 12, 20, 28, 36, 52, 92)
        ],
    )
    shaped = np.random.default_rng(20240301)  # draws of its own, so that the vectors above stay what they are
    transforms = []
    for n, options in ((16, {}), (12, {}), (12, {"transpose": True}), (40, {}), (36, {"block_size": 12})):
        x = shaped.standard_normal((3, n)).astype(np.float32)
        found = spec.hadamard_transform(x, **options)
        total = np.abs(x.astype(np.float64)).sum(axis=1, keepdims=True)
        transforms.append(_case(f"{n} features", [x], options, [_forward("", found, total, n + 4)]))
    table["H-2"] = ("hadamard_transform", transforms)
    table["H-3"] = (
        "random_hadamard",
        [
            _case(f"order {n}", [], {"order": n, "seed": 7, "index": i},
                  [_exact("", spec.random_hadamard(order=n, seed=7, index=i))])
            for n, i in ((4, 0), (12, 0), (12, 1))
        ],
    )  # fmt: skip
    x = shaped.standard_normal((3, 8)).astype(np.float32)
    x[2] = 0
    found = spec.quantize_activations(x, bits=4)
    expect = [
        _forward("scale", found.scale, found.scale, _SUM_ROUNDINGS),
        _exact("zero_point", found.zero_point),
        _codes("codes", found.codes, x.astype(np.float64) / found.scale, _SUM_ROUNDINGS + 2),
    ]
    table["H-9"] = ("quantize_activations", [_case("symmetric, the last token all zero", [x], {"bits": 4}, expect)])
    table |= _scales(spec, np.random.default_rng(20240230)) | _allocations(spec)
    table |= _oscillations(spec)
    table |= _coresets(spec, np.random.default_rng(20230612))
    table.update(_rank_budgets(spec))
    table.update(_binary_codes(spec))
    table.update(_directions(spec))
    table.update(_ternary(spec))
    table.update(_lookup_tables(spec))

    from . import frozen  # the clauses whose bounds are recorded from their tests

    return table | frozen.build() | {f"{clause}.2": more for clause, more in frozen.additions.build().items()}


def _directions(spec: Any) -> dict[str, tuple[str, list[Case]]]:
    """Chapter D: a layer in the middle of training, with a row of zeros, stored in three ways."""
    random = np.random.default_rng(20240231)
    m, k, r, scaling = 5, 12, 2, 2.0
    w, b, a, x, grad = (
        random.standard_normal(shape).astype(np.float32) for shape in ((m, k), (m, r), (r, k), (3, k), (m, k))
    )
    w[1], b[1] = 0, 0
    magnitude, bias = ((0.5 + random.random(m)).astype(np.float32) for _ in range(2))
    stored = {
        "linear": (w, b, a),
        "transposed": (np.ascontiguousarray(w.T), b, a),
        "conv": (w.reshape(m, 2, 3, 2), b.reshape(m, r, 1, 1), a.reshape(r, 2, 3, 2)),
    }
    bulk = np.abs(w).astype(np.float64) + scaling * np.abs(b).astype(np.float64) @ np.abs(a)
    size = np.linalg.norm(bulk, axis=1)
    norm = spec.dora_norm(w, b, a, scaling=scaling)
    live = np.where(norm > 0, norm, 1.0)
    # every quotient by the norm is off by what the norm is off by, relative
    swell, factor = 1 + 2 * size / live, np.where(norm > 0, magnitude / live, 1.0)
    reach = np.abs(factor)[:, None] * bulk * swell[:, None]
    n = 2 * k + 2 * r + 12
    table: dict[str, tuple[str, list[Case]]] = {}
    for identifier, op, extra, wanted, rounding in (
        ("D-1", "dora_magnitude", (), np.linalg.norm(w.astype(np.float64), axis=1), k + 4),
        ("D-2", "dora_norm", (), size, n),
        ("D-4", "dora_weight", (magnitude,), reach, n),
    ):
        cases = []
        for layout, parts in stored.items():
            given = [parts[0]] if op == "dora_magnitude" else [*parts, *extra]
            options: dict[str, Any] = (
                {"layout": layout} if op == "dora_magnitude" else {"scaling": scaling, "layout": layout}
            )
            magnitudes = wanted
            if op == "dora_weight":
                magnitudes = wanted.T if layout == "transposed" else wanted.reshape(parts[0].shape)
            value = getattr(spec, op)(*given, **options)
            cases.append(
                _case(f"{layout}, a row of zeros", given, options, [_forward("", value, magnitudes, rounding)])
            )
        table[identifier] = (op, cases)
    dropped = (2 * x * (np.arange(k) % 2)).astype(np.float32)
    arrays = [x, dropped, w, bias, b, a, magnitude]
    total = (np.abs(x) + np.abs(dropped)).astype(np.float64) @ np.abs(w).T + bias
    total = total + np.abs(dropped).astype(np.float64) @ (np.abs(factor)[:, None] * bulk * swell[:, None]).T * 2
    value = spec.dora_forward(*arrays, scaling=scaling)
    about = "every second input dropped, a row of zeros"
    table["D-5"] = ("dora_forward", [_case(about, arrays, {"scaling": scaling}, [_forward("", value, total, n)])])
    for identifier, detach in (("D-6", True), ("D-6a", False)):
        inner = (np.abs(grad) * bulk).sum(axis=1) / live
        through = np.abs(grad) if detach else np.abs(grad) + inner[:, None] * bulk / live[:, None]
        spread = np.abs(factor)[:, None] * through * (swell**2)[:, None] * 4
        found = spec.dora_gradient(grad, w, b, a, magnitude, scaling=scaling, detach=detach)
        expect = [
            _forward("B", found.B, scaling * spread @ np.abs(a).T, n + m),
            _forward("A", found.A, scaling * np.abs(b).T @ spread, n + m),
            _forward("magnitude", found.magnitude, inner * swell * 2, n + m),
        ]
        rule = {"scaling": scaling, "detach": detach}
        table[identifier] = ("dora_gradient", [_case("a row of zeros", [grad, w, b, a, magnitude], rule, expect)])
    return table


def _binary_codes(spec: Any) -> dict[str, tuple[str, list[Case]]]:
    """Chapter B: decisions on dyadic numbers, which are exact in any precision, and products within their rounding."""
    random = np.random.default_rng(20240302)
    table: dict[str, tuple[str, list[Case]]] = {}
    w = np.array([[0, 4, -4, 0], [0, 0, 0, 0], [3, -3, 3, 3], [0, 0, -8, 0]], np.float32)
    cases = []
    for group in (None, 2):
        options = {"bits": 2, "method": "greedy", "group_size": group}
        found = spec.bcq(w, **options)
        expect = [_exact("codes", found.codes), _exact("scale", found.scale)]
        cases.append(_case("zeros", [w], options, expect))
    table["B-1a"] = ("bcq", cases)
    scale = random.integers(-9, 10, (3, 2, 3)).astype(np.float32) / 4
    scale[0, 0] = scale[0, 0, 0]  # equal levels
    offset = random.integers(-9, 10, (3, 2)).astype(np.float32) / 4
    halves = random.integers(-64, 65, (3, 24)).astype(np.float32) / 8
    codes = spec.bcq_assign(halves, scale, offset)
    arrays: list[Any] = [halves, scale, offset]
    table["B-5a"] = ("bcq_assign", [_case("midpoints and equal levels", arrays, {}, [_exact("", codes)])])
    reach = np.repeat(np.abs(scale).sum(axis=-1) + np.abs(offset), 12, axis=1)
    odd_scale, odd_offset = (scale / 3).astype(np.float32), (offset / 3).astype(np.float32)
    values = spec.bcq_weight(codes, odd_scale, odd_offset)
    table["B-6"] = (
        "bcq_weight",
        [_case("two groups", [codes, odd_scale, odd_offset], {}, [_forward("", values, reach, 5)])],
    )
    grids = []
    steps, zero = np.array([[0.25, 2.0], [1.0, 0.5]], np.float32), np.array([[3, 0], [7, -2]], np.int32)
    for scheme, first in (("asymmetric", 0), ("symmetric", -4)):
        held = random.integers(first, first + 8, (2, 6)).astype(np.int32)
        options = {"bits": 3, "scheme": scheme}
        found = spec.bcq_from_grid(held, steps, zero, **options)
        expect = [_exact(name, getattr(found, name)) for name in ("codes", "scale", "offset")]
        grids.append(_case(scheme, [held, steps, zero], options, expect))
    table["B-7"] = ("bcq_from_grid", grids)
    packs, products = [], []
    for m, groups, size, bits in ((3, 1, 5, 1), (2, 2, 16, 2), (5, 2, 35, 3), (17, 1, 64, 2)):
        k = groups * size
        held = random.integers(0, 2**bits, (m, k)).astype(np.int32)
        alpha = random.standard_normal((m, groups, bits)).astype(np.float32)
        shift = random.standard_normal((m, groups)).astype(np.float32)
        packed = spec.bcq_pack(held, alpha, shift)
        about = f"{m} rows of {groups} x {size} columns, {bits} planes"
        expect = [_exact(name, getattr(packed, name)) for name in ("planes", "scale", "offset")]
        packs.append(_case(about, [held, alpha, shift], {}, expect))
        x = random.standard_normal((2, k)).astype(np.float32)
        arrays = [x, packed.planes, packed.scale.astype(np.float32), packed.offset.astype(np.float32)]
        size_of = np.repeat(np.abs(alpha).sum(axis=-1) + np.abs(shift), size, axis=1).astype(np.float64)
        magnitude = np.abs(x).astype(np.float64) @ size_of.T
        roundings = k + (groups + 1) * (bits + 1) + 34
        for method in ("lookup", "dequantize"):
            expect = [_forward("", spec.bcq_product(*arrays), magnitude, roundings)]
            products.append(_case(f"{about}, {method}", arrays, {"method": method}, expect))
    table["B-8"], table["B-10"] = ("bcq_pack", packs), ("bcq_product", products)
    x = random.standard_normal((2, 7)).astype(np.float32)
    padded = np.zeros((2, 8))
    padded[:, :7] = np.abs(x)
    cases = []
    for half in (False, True):
        found = spec.lookup_tables(x, width=4, half=half)
        magnitude = padded.reshape(2, 2, 4).sum(axis=-1, keepdims=True)
        options = {"width": 4, "half": half}
        cases.append(_case("the last of eight inputs is none", [x], options, [_forward("", found, magnitude, 9)]))
    table["B-9"] = ("lookup_tables", cases)
    return table


def _rank_budgets(spec: Any) -> dict[str, tuple[str, list[Case]]]:
    """Chapter K, on small integers: every decision is exact, in any precision."""
    spectra = np.array([[5, 4, 2, 1], [5, 4, 2, 1], [3, 3, 3, 3], [0, 0, 0, 0], [5, 0, 0, 0]], np.float32)
    importance, sensitivity = np.array([1, 1, 2, 1, 0.5], np.float32), np.array([3, 3, 1, 0, 1.5], np.float32)
    cost, low, high = (np.array(x, np.int32) for x in ([2, 2, 3, 1, 4], [0, 0, 1, 0, 0], [4, 4, 4, 4, 3]))
    shapes = np.array([[4096, 4096], [11008, 4096], [3, 5]], np.int32)
    shares, left = spec.explained_error(spectra), spec.allocation_objective(spectra, importance, low)
    bound = spec.allocation_bound(spectra, importance, cost, low, high, budget=12)
    total = spec.allocation_objective(spectra, importance, 0 * low)
    table: dict[str, tuple[str, list[Case]]] = {
        "K-1": ("explained_error", [_case("one without error", [spectra], {}, [_forward("", shares, shares, 11)])]),
        "K-4": (
            "rank_cost",
            [
                _case(f"{bits} bits" if bits else "parameters", [shapes], {"bits": bits}, [_exact("", price)])
                for bits in (None, 16, 3)
                for price in [spec.rank_cost(shapes, bits=bits)]
            ],
        ),
        "K-8": (
            "allocation_objective",
            [_case("lower bounds", [spectra, importance, low], {}, [_forward("", left, left, 23)])],
        ),
        "K-8a": (
            "allocation_bound",
            [_case("cut", [spectra, importance, cost, low, high], {"budget": 12}, [_forward("", bound, total, 60)])],
        ),
    }
    goods = {
        "K-5a": ("allocate_greedy", [spectra, importance, cost, low, high]),
        "K-6b": ("allocate_threshold", [spectra, cost, low, high]),
        "K-7a": ("allocate_proportional", [sensitivity, cost, low, high]),
    }
    for identifier, (operation, arrays) in goods.items():
        cases = []
        for budget in (3, 8, 9, 12, 17, 22, 99):
            for multiple, leftover in ((1, "stop"), (1, "fill"), (2, "stop")):
                options = {"budget": budget + 3 * multiple, "multiple": multiple, "leftover": leftover}
                found = getattr(spec, operation)(*arrays, **options)
                about = f"budget {options['budget']}, multiples of {multiple}, {leftover}"
                cases.append(_case(about, arrays, options, [_exact("", found)]))
        table[identifier] = (operation, cases)
    rest, now = np.array([[4, 1], [1, 0], [3, 2], [0, 0], [4, 4]], np.float32), np.array([2, 2, 2, 0, 1], np.int32)
    moved = []
    for step, hysteresis in ((0, 0.0), (1, 0.0), (1, 1.0), (4, 0.0)):
        arrays = [spectra, rest, importance, cost, low, high, now]
        options = {"budget": 18, "step": step, "hysteresis": hysteresis}
        found = spec.reallocate_ranks(*arrays, **options)
        moved.append(_case(f"step {step}, hysteresis {hysteresis}", arrays, options, [_exact("", found)]))
    table["K-10"] = ("reallocate_ranks", moved)
    return table


def _codebooks(spec: Any, table: dict[str, tuple[str, list[Case]]]) -> None:
    """Cases of chapter N, from a generator of their own."""
    random = np.random.default_rng(20240301)
    names = {bits: spec.normal_float(bits=bits) for bits in (2, 3, 4, 8)}
    slack = 32  # roundings of a quantile and its probability, in units of the largest level
    levels = [_case(f"{b} bits", [], {"bits": b}, [_forward("", l, np.ones(l.shape), slack)]) for b, l in names.items()]
    table["N-1"] = ("normal_float", levels)
    dynamic = {bits: spec.dynamic_float(bits=bits) for bits in (3, 8)}
    table["N-1a"] = (
        "dynamic_float",
        [_case(f"{b} bits", [], {"bits": b}, [_forward("", l, np.abs(l), 6)]) for b, l in dynamic.items()],
    )
    x = random.standard_normal((3, 10)).astype(np.float32)
    x.ravel()[8:16] = 0
    size = {"block_size": 8}
    scale = spec.block_scale(x, **size).astype(np.float32)
    table["N-2"] = ("block_scale", [_case("blocks cross rows, one is zero", [x], size, [_exact("", scale)])])
    grid = (np.array([-4, -3, -1, 0, 1, 2, 4]) / 4).astype(np.float32)
    points = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2, grid + 0.125]).astype(np.float32)[:20]
    odd = _hard_scales().ravel()[:5]
    tied = (points * np.repeat(odd, 4)).reshape(2, 10).astype(np.float32)
    codes = spec.quantize_blocks(tied, odd, grid, block_size=4)
    about = "levels, midpoints and their neighbours, times scales whose reciprocals are not exact"
    table["N-3a"] = ("quantize_blocks", [_case(about, [tied, odd, grid], {"block_size": 4}, [_exact("", codes)])])
    codes = random.integers(0, 16, (3, 10)).astype(np.int32)
    arrays = [codes, scale, names[4]]
    values = spec.dequantize_blocks(*arrays, **size)
    table["N-4"] = ("dequantize_blocks", [_case("NF4", arrays, size, [_forward("", values, np.abs(values), 2)])])
    offset, few = np.array(1.25, np.float32), random.integers(0, 256, 20).astype(np.int32)
    second = (0.5 + random.random(3)).astype(np.float32)
    restored = spec.dequantize_scale(few, second, offset, dynamic[8], **size)
    arrays = [few, second, offset, dynamic[8]]
    case = _case("around 1.25", arrays, size, [_forward("", restored, np.abs(restored - 1.25) + 1.25, 3)])
    table["N-5a"] = ("dequantize_scale", [case])
    products = []
    for bits, k, block, about in ((4, 128, 64, "blocks in rows"), (2, 24, 16, "blocks across rows"), (3, 20, 7, "odd")):
        codes = random.integers(0, 2**bits, (3, k)).astype(np.int32)
        scales = (0.5 + random.random(-(-3 * k // block))).astype(np.float32)
        inputs = random.standard_normal((2, k)).astype(np.float32)
        options = {"bits": bits, "block_size": block}
        arrays = [inputs, spec.pack(codes, bits=bits), scales, names[bits]]
        weight = spec.dequantize_blocks(codes, scales, names[bits], block_size=block)
        reach = np.abs(inputs.astype(np.float64)) @ np.abs(weight).T
        product = spec.codebook_matmul(*arrays, **options)
        products.append(_case(f"{bits} bits, {about}", arrays, options, [_forward("", product, reach, k + 4)]))
    table["N-6"] = ("codebook_matmul", products)


def _scales(spec: Any, random: np.random.Generator) -> dict[str, tuple[str, list[Case]]]:
    """Clauses of chapter U: masks, gradients and a step of training."""
    scale = (random.integers(-9, 10, (2, 3, 3)) / 8).astype(np.float32)
    scale[0, 0] = [0.5, -0.5, 0.25]
    masks = [
        _case(f"train={train}", [scale], {"train": train}, [_exact("", spec.trainable_scales(scale, train=train))])
        for train in ("first", "largest", "all")
    ]
    codes = random.integers(0, 8, (2, 12)).astype(np.int32)
    grad, x, delta = (random.standard_normal(s).astype(np.float32) for s in ((2, 12), (5, 12), (5, 2)))
    sums: dict[str, list[Case]] = {"sum": [], "mean": []}
    tokens = []
    for norm, size in (("sum", None), ("sum", 4), ("mean", None), ("mean", 4)):
        options = {"bits": 3, "group_size": size, "norm": norm}
        whole = np.full_like(codes, 7)
        count = size or 12
        expect = _forward(
            "", spec.scale_grad(grad, codes, **options), spec.scale_grad(np.abs(grad), whole, **options), count + 1
        )
        sums[norm].append(_case(f"{norm}, group_size={size}", [grad, codes], options, [expect]))
        reach = spec.scale_grad_tokens(np.abs(x), np.abs(delta), whole, **options)
        expect = _forward("", spec.scale_grad_tokens(x, delta, codes, **options), reach, 5 + count + 2)
        tokens.append(_case(f"{norm}, group_size={size}", [x, delta, codes], options, [expect]))
    state = [(random.integers(1, 30, scale.shape) / 8).astype(np.float32) for _ in range(4)]
    trainable = spec.trainable_scales(scale)
    step: dict[str, Any] = {"step": 2, "lr": 0.125, "epsilon": 0.125, "decay": 0.25}
    found = spec.tune_step(scale, *state, trainable, **step)
    nothing = np.zeros(scale.shape, np.bool_)
    still = spec.tune_step(scale, *state, nothing, **step)
    return {
        "U-1": ("trainable_scales", masks),
        "U-2": ("scale_grad", sums["sum"]),
        "U-2a": ("scale_grad", sums["mean"]),
        "U-3": ("scale_grad_tokens", tokens),
        "U-4": (
            "tune_step",
            [
                _case(
                    "plane 0 trains",
                    [scale, *state, trainable],
                    step,
                    [_forward(f, getattr(found, f), np.abs(getattr(found, f)) + 8, 16) for f in found._fields],
                )
            ],
        ),
        "U-4a": (
            "tune_step",
            [
                _case(
                    "nothing trains",
                    [scale, *state, nothing],
                    step,
                    [_exact(f, getattr(still, f)) for f in still._fields],
                )
            ],
        ),
    }


def _ternary(spec: Any) -> dict[str, tuple[str, list[Case]]]:
    """Clauses of chapter T on eighths: rows of eight with a clear threshold, a tie with it, zeros, equal magnitudes."""
    x = np.array(
        [[1, -3, 4, 0, 2, 2, 2, 2], [9, 1, -1, 8, -30, 2, 0, 3], [0] * 8, [-5, 5, 5, -5, 5, 5, -5, 5]], np.float32
    )
    x /= 8
    half = {"granularity": "row", "threshold": 0.5}
    by_row = {"granularity": "row"}
    code = spec.twn_code(x, **half)
    cut = {"granularity": "tensor", "clip": 2.5}
    values, cut_values = spec.twn(x, **by_row), spec.twn(x, **cut)
    halves = np.arange(-254, 255, 3)[None] / np.float32(2)
    halves = np.concatenate([halves, [[127]]], axis=1).astype(np.float32)
    grad, edge = np.arange(1, 7, dtype=np.float32), np.array([-2.5, -2.25, 0, 2.25, 2.5, 9], np.float32)
    return {
        "T-1a": ("twn_code", [_case("half the mean of the first row is an entry of it", [x], half, [
            _exact("codes", code.codes), _forward("scale", code.scale, code.scale, 8 + 4)])]),
        "T-2": ("twn", [
            _case("by rows", [x], by_row, [_forward("", values, np.abs(values), 8 + 4)]),
            _case("clip of 2.5", [x], cut, [_forward("", cut_values, np.abs(cut_values), x.size + 4)])]),
        "T-4a": ("min_max", [_case("halves up to 127", [halves], {}, [
            _forward("", spec.min_max(halves), np.abs(spec.min_max(halves)), 2)])]),
        **_learned_steps(spec),
        "T-5": ("straight_through", [_case("values at the clip", [grad, edge], {"clip": 2.5}, [
            _exact("", spec.straight_through(grad, edge, clip=2.5))])]),
    }  # fmt: skip


def _learned_steps(spec: Any) -> dict[str, tuple[str, list[Case]]]:
    """Clauses of chapter S: quotients that are multiples of 1/2, ends of the range and beyond."""
    x = np.arange(-12, 12, dtype=np.float32).reshape(2, 12) / 2
    grad = (np.arange(24, dtype=np.float32).reshape(2, 12) - 9) / 4
    step, offset = np.array([1, 0.5], np.float32), np.array([0, 0.25], np.float32)
    plain: dict[str, Any] = {"bits": 3, "axis": 0}
    first = spec.lsq_init(x + 7, bits=3, axis=1)
    found = spec.lsq_gradient(grad, x, step, offset, count="unscaled", **plain)
    return {
        "S-1": ("lsq_init", [_case("a step for every column", [x + 7], {"bits": 3, "axis": 1}, [
            _forward("step", first.step, first.step, 8)])]),
        "S-2a": ("lsq_code", [_case("every quotient a multiple of 1/2", [x, step, offset], plain, [
            _exact("", spec.lsq_code(x, step, offset, **plain))])]),
        "S-4a": ("lsq_gradient", [_case("ends and beyond", [grad, x, step, offset], {**plain, "count": "unscaled"}, [
            _exact("x", found.x), _exact("step", found.step), _exact("offset", found.offset)])]),
    }  # fmt: skip


def _oscillations(spec: Any) -> dict[str, tuple[str, list[Case]]]:
    """Clauses of chapter O on eighths and rows whose scales are powers of two: nothing rounds."""
    rows = np.array([[1, -1, 2.25, 3.75], [0, 4, 2, -2], [8, -8, 0, 0], [0.5, -0.5, 7.5, -7.5]], np.float32)
    ties = [
        _case(f"{b} bits", [rows], {"bits": b}, [_exact("codes", found.codes), _exact("scale", found.scale)])
        for b in (1, 2, 3, 4)
        for found in [spec.statsq(rows, bits=b)]
    ]
    spread = np.array([[8, -8, 0.5, -0.5, 1, -1, 0, 2]], np.float32)
    ends = [
        _case(f"{b} bits", [spread], {"bits": b}, [_exact("codes", spec.statsq(spread, bits=b).codes)])
        for b in (1, 2, 8)
    ]
    zeros = np.array([[0, 0], [1, -1]], np.float32)
    found = spec.statsq(zeros, bits=2)
    none = [_case("the first row", [zeros], {"bits": 2}, [_exact(f, getattr(found, f)) for f in found._fields])]
    slope = [_case("2 bits", [rows, rows / 2 + 1], {"bits": 2}, [_exact("", rows / 2 + 1)])]
    state, history = (
        spec.start_oscillation([0, 1, 2, -1]),
        np.array([[1, 1, 0, 0], [0, 2, 2, 0], [1, 1, 1, -1]], np.int32),
    )
    steps: dict[str, list[Case]] = {"O-4": [], "O-4a": []}
    for clause, options in (
        ("O-4", {"momentum": 0.5}),
        ("O-4a", {"momentum": 0.5, "threshold": 0.5}),
        ("O-4a", {"momentum": 0.5, "threshold": 0.5, "freeze_to": "current", "targets": "rewritten"}),
    ):
        now = state
        for t, codes in enumerate(history):
            given = [np.asarray(a, np.float32) if a.dtype == np.float64 else a for a in now]
            now = spec.track_oscillation(codes, *now, **options)
            expect = [_exact(f, getattr(now, f)) for f in now._fields]
            steps[clause].append(_case(f"{options}, step {t + 1}", [codes, *given], options, expect))
    masks = [
        _case(f"{o}", [rows], o, [_exact("", spec.cga_mask(rows, **o))])
        for t in ("all", "occupied")
        for r in (0.0, 0.125, 0.5)
        for o in [{"bits": 2, "boundary_range": r, "thresholds": t}]
    ]
    nothing, options = np.zeros(rows.shape, np.bool_), {"step": 3, "lr": 0.5, "decay": 0.25}
    frozen = [_case("nothing is active", [rows, rows, rows, rows**2, nothing], options, [_exact("weight", rows)])]
    q, k = rows[:2] / 2, rows[2:] / 4
    product = [_case("two heads", [q, k], {"heads": 2}, [_exact("", spec.qkr_weight(q, k, heads=2))])]
    g = np.tile(rows, (2, 1))
    gradients = [
        _case(f"freeze={f}", [q, k, g, g > 0], {"heads": 2, "freeze": f}, [_exact("q", r.q), _exact("k", r.k)])
        for f in ("product", "none")
        for r in [spec.qkr_grad(q, k, g, g > 0, heads=2, freeze=f)]
    ]
    return {
        "O-1c": ("statsq", ties),
        "O-2": ("statsq", ends),
        "O-2a": ("statsq", none),
        "O-3": ("statsq_grad", slope),
        "O-4": ("track_oscillation", steps["O-4"]),
        "O-4a": ("track_oscillation", steps["O-4a"]),
        "O-6a": ("cga_mask", masks),
        "O-7": ("cga_step", frozen),
        "O-8": ("qkr_weight", product),
        "O-8b": ("qkr_grad", gradients),
    }


def _integer_table(
    breakpoints: Iterable[int], slopes: Iterable[int], intercepts: Iterable[int], scale_bits: int
) -> LookupTable:
    """An integer table of six fraction bits."""
    p, k, b = (np.array([*x], np.int32) for x in (breakpoints, slopes, intercepts))
    return LookupTable(p, k, b, scale_bits, 6)


def _lookup_tables(spec: Any) -> dict[str, tuple[str, list[Case]]]:
    """Clauses of chapter L in numbers that are exact everywhere: ties, dead pieces, every INT8 code."""
    knots = np.array([-4, -2, -1, -1, 0, 0.5, 2.5, 4.5])
    values = np.array([0, -0.5, -0.25, 0.75, 0, 0.328125, 2.453125, 4.515625])
    chords = spec.fit_chords(knots, values)
    rounded = spec.round_table(chords)
    narrow = {"fraction_bits": 3, "bits": 4}
    clipped = spec.round_table(chords, **narrow)
    lines, exact_lines = (LookupTable(*t[:3]) for t in (rounded, chords))
    whole = LookupTable(*spec.integer_table(rounded, scale_bits=4))
    codes = np.arange(-128, 128, dtype=np.int32)
    ties: list[dict[str, Any]] = [{"tie": "left"}, {"tie": "right"}]
    parts = ("breakpoints", "slopes", "intercepts")
    exp = _integer_table(
        (-42, -28, -19, -16, -10, -5, -2), (0, 1, 4, 7, 12, 24, 43, 57), (2, 26, 112, 170, 244, 376, 482, 512), 3
    )
    div = _integer_table(
        (20, 25, 31, 38, 44, 58, 76),
        (-205, -131, -84, -56, -39, -25, -15, -7),
        (7373, 5888, 4710, 3830, 3200, 2560, 1984, 1280),
        5,
    )
    root = _integer_table(
        (11, 16, 21, 28, 38, 53, 92),
        (-198, -115, -72, -47, -31, -19, -11, -5),
        (5680, 4760, 4090, 3560, 3110, 2640, 2190, 1640),
        5,
    )
    logits = np.array([[0, 8, 16, 24], [-128, 127, 126, -128], [5, 5, 5, 5], [-9999, 0, -200, -1]], np.int32)
    sums = np.array([6, -6, 2, -2, 10, -10, 1, -1, 2**31 - 1, 1 - 2**31], np.int32)
    report = spec.verify_table(whole, codes / 16)
    return {
        "L-1": ("fit_chords", [_case("two knots at -1 with different values", [knots, values], {}, [
            _exact(f, getattr(chords, f)) for f in parts])]),
        "L-4": ("round_table", [_case("ties at six fraction bits", [exact_lines], {}, [
            _exact(f, getattr(rounded, f)) for f in parts])]),
        "L-5": ("round_table", [_case("three fraction bits of four", [exact_lines], narrow, [
            *(_exact(f, getattr(clipped, f)) for f in parts), _exact("saturated", np.array(clipped.saturated))])]),
        "L-6": ("integer_table", [_case("a table for sixteenths", [lines], {"scale_bits": 4}, [
            _exact(f, getattr(whole, f)) for f in parts])]),
        "L-9": ("evaluate_codes", [_case(f"all codes, tie {tie['tie']}", [codes, whole], tie, [
            _exact("", spec.evaluate_codes(codes, whole, **tie))]) for tie in ties]),
        "L-10": ("evaluate_table", [_case(f"all codes as floats, tie {tie['tie']}", [
            (codes / 16).astype(np.float32), lines], tie, [
            _exact("", spec.evaluate_table(codes / 16, lines, **tie).astype(np.float32))]) for tie in ties]),
        "L-12": ("requantize_codes", [_case(f"shift {n}", [sums], {"shift": n}, [
            _exact("", spec.requantize_codes(sums, shift=n))]) for n in (0, 1, 2, 25)]),
        "L-16": ("table_softmax", [_case("near, far and equal logits", [logits, exp, div], {"out_bits": o}, [
            _exact("", spec.table_softmax(logits, exp, div, out_bits=o))]) for o in (7, 8)]),
        "L-17": ("table_layer_norm", [_case("a constant row, a large one", [logits, root], {}, [
            _exact("", spec.table_layer_norm(logits, root))])]),
        "L-19": ("verify_table", [_case("all codes against the identity", [whole, codes / 16], {}, [
            _exact(f, np.array(getattr(report, f))) for f in ("turns", "signs", "worst")])]),
    }  # fmt: skip


def _allocations(spec: Any) -> dict[str, tuple[str, list[Case]]]:
    """Clauses of chapter M on integers: nothing rounds."""
    counts = np.array([5, 900, 5, 40, 5, 7, 40, 0, 1, 5], np.int32)
    words = [
        _case(f"{b} clusters, ratio {r}", [counts], {"clusters": b, "ratio": r}, [_exact("", found)])
        for b, r in ((1, 1), (3, 1), (3, 2), (4, 4))
        for found in [spec.row_bits(counts, clusters=b, ratio=r)]
    ]
    table = [[40, 12, 5, 1], [9, 8, 2, 2], [30, 30, 0, -1], [7, 5, 3, 1]]
    errors, sizes = np.array(table, np.float32), np.array([[3, 6, 9, 12], [1, 2, 3, 4], [2, 4, 6, 8], [2, 3, 4, 5]])
    blocks = []
    for budget in range(8, 30, 3):
        found = spec.allocate_bits(errors, sizes, budget=budget)
        expect = [_exact("bits", found.bits), _exact("size", found.size), _exact("error", found.error)]
        size = np.abs(errors).sum()
        expect.append(_forward("lower_bound", found.lower_bound, size, errors.size))
        blocks.append(_case(f"budget {budget}", [errors, sizes.astype(np.int32)], {"budget": budget}, expect))
    w = np.array([[1, -3, 2, -2], [1, -3, 2, -2], [0, 4, 0, -4], [5, 5, 5, 5]], np.float32)
    bits = np.array([1, 2, 3, 2], np.int32)
    rows = [_case("integers, zeros among them", [w, bits], {}, [_exact("", spec.project_rows(w, bits))])]
    return {"M-1a": ("row_bits", words), "M-2": ("allocate_bits", blocks), "M-3": ("project_rows", rows)}


def _coresets(spec: Any, random: np.random.Generator) -> dict[str, tuple[str, list[Case]]]:
    """Clauses of chapter X: scores of eight samples with five classes, and selection where nothing rounds."""
    x, t = (random.integers(-24, 25, (8, 5)).astype(np.float32) / 8 for _ in range(2))
    y = random.integers(0, 5, 8).astype(np.int32)
    roundings = 2 * (3 * 6 + 4) + 5 + 2  # of probabilities whose logits lie within 6 of the largest
    own, gap = spec.error_vector_score(x, y), spec.disagreement_score(x, t)
    twos = np.full(8, 2.0)  # at least the sum of the norms of both distributions
    mixes = []
    for schedule in ("paper", "cosine", "linear"):
        options: dict[str, Any] = {"epoch": 10, "epochs": 40, "schedule": schedule}
        mixed = spec.acs_score(x, t, y, **options)
        mixes.append(_case(schedule, [x, t, y], options, [_forward("", mixed, own + twos + gap, 2 * roundings + 24)]))
    scores = random.integers(-2, 3, 24).astype(np.float32)
    labels = random.integers(0, 4, 24).astype(np.int32)
    balanced = []
    for fraction in (0.0, 0.25, 0.5, 1.0):
        options = {"fraction": fraction}
        found = spec.select_coreset(scores, labels, **options)
        balanced.append(_case(f"fraction {fraction}", [scores, labels], options, [_exact("", found)]))
    correct = random.random((7, 9)) < 0.5
    correct[:, 4] = False
    events = [
        _case(rule, [correct], {"never_learnt": rule}, [_exact("", spec.forgetting_score(correct, never_learnt=rule))])
        for rule in ("most", "zero")
    ]
    points = random.integers(-2, 3, (16, 2)).astype(np.float32)
    first = np.array([5], np.int32)
    centres = _case("a lattice", [points, first], {"count": 9}, [_exact("", spec.k_center(points, first, count=9))])
    herd = _case("a lattice", [points], {"count": 9}, [_exact("", spec.herding(points, count=9))])
    chance = []
    for seed in (0, 2**64 - 1):
        options = {"size": 5, "seed": seed, "index": 3}
        chance.append(_case(f"seed {seed}", [], options, [_exact("", spec.random_score(**options))]))
    return {
        "X-1": ("error_vector_score", [_case("eighths", [x, y], {}, [_forward("", own, own, 2 * roundings + 18)])]),
        "X-2": ("disagreement_score", [_case("eighths", [x, t], {}, [_forward("", gap, twos, roundings + 13)])]),
        "X-3": ("acs_score", mixes),
        "X-4a": ("select_coreset", balanced),
        "X-7": ("forgetting_score", events),
        "X-10a": ("k_center", [centres]),
        "X-11a": ("herding", [herd]),
        "X-12": ("random_score", chance),
    }


def _hard_scales() -> npt.NDArray[np.float32]:
    """Odd multiples of 1/64 (6, 1) for which x · fl(1/s) misses the most ties, in float32 and in float64."""
    halves = np.arange(-31, 32, 2) / 2
    misses = {}
    for odd in range(3, 201, 2):
        narrow = (halves * odd).astype(np.float32) * (np.float32(1) / np.float32(odd))
        wide = (halves * odd) * (1 / odd)
        misses[odd] = min(np.sum(np.rint(narrow) != np.rint(halves)), np.sum(np.rint(wide) != np.rint(halves)))
    worst = sorted(misses, key=lambda odd: -misses[odd])[:6]
    return (np.array(worst)[:, None] / 64).astype(np.float32)


def _clear_weight(spec: Any, h: Any, floats: Callable[..., npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """A weight for which float32 and float64 take every rounding decision alike: perturbing it changes no code."""
    while True:
        w = floats(3, 8)
        options: list[dict[str, Any]] = [
            {"bits": 3},
            {"bits": 4, "scheme": "symmetric-full"},
            {"bits": 4, "group_size": 4, "act_order": True},
            {"bits": 4, "group_size": 4, "act_order": True, "static_groups": True},
            {"bits": 3, "group_size": 4, "group_scales": "block", "block_size": 8},
            {"bits": 3, "group_size": 4},
        ]
        nearby = [w * (1 + side * 2.0**-12) + shift * 2.0**-12 for side in (-1, 1) for shift in (-1, 0, 1)]
        steady = True
        for option in options:
            want = spec.gptq(w, h, **option)
            for v in nearby:
                got = spec.gptq(v, h, **option)
                steady = steady and bool((got.codes == want.codes).all() and (got.zero_point == want.zero_point).all())
        mask = spec.sparsegpt(w, h).mask
        if steady and all((spec.sparsegpt(v, h).mask == mask).all() for v in nearby):
            return w


def write(target: Path) -> list[Path]:
    """Write the files of this specification version; returns their paths."""
    from lowbit import SPEC_VERSION

    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (operation, cases) in build().items():
        identifier = name.removesuffix(".2")
        entry = CLAUSES[identifier]
        short = (",", ":") if all("op" in case for case in cases) else (", ", ": ")  # the first files have blanks
        cases = [{k: v for k, v in case.items() if (k, v) != ("op", operation)} for case in cases]
        head = {"schema": SCHEMA, "spec": SPEC_VERSION, "clause": identifier, "title": entry.title, "op": operation}
        lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=short) for case in cases)
        text = json.dumps(head, ensure_ascii=False)[:-1] + ', "cases": [\n' + lines + "\n]}\n"
        path = target / f"{name}.json"
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    import sys

    for path in write(Path(sys.argv[1])):
        print(path)

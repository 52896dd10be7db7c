"""Chapter L against the authors' code and against I-BERT's integer functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.reference import lut
from lowbit.reference.types import Table

from .bounds import Array
from .golden import load

TRAINER = {"gelu_8": "gelu", "exp_16": "exp", "reci_8_norm": "reciprocal", "sqrt_reci_8_norm": "rsqrt"}
OPERATOR = {"gelu_7": "gelu", "exp_15": "exp"}
PRETRAINED = {"gelu_pwl_7": "gelu", "exp_pwl_15": "exp", "hswish_pwl_7": "hswish"}
MEASURED = {  # mean squared error of the shipped tables over all codes inside the domain, b = 0 … 6, as measured
    "gelu_pwl_7": (3.11e-03, 8.91e-05, 1.00e-04, 7.28e-05, 7.26e-05, 7.22e-05, 1.11e-04),
    "hswish_pwl_7": (5.73e-04, 5.91e-04, 4.52e-04, 3.37e-04, 3.32e-04, 3.33e-04, 4.45e-04),
    "exp_pwl_15": (1.48e-03, 7.57e-05, 2.41e-05, 2.00e-05, 2.15e-05, 1.59e-05, 1.31e-05),
}

RSQRT = lut.chord_table("rsqrt", [0.34375, 0.5, 0.65625, 0.875, 1.1875, 1.65625, 2.875])


@pytest.mark.parametrize("file", TRAINER)
def test_l1_l4_slopes_intercepts_and_fitness_of_the_search(shared: Path, file: str) -> None:
    """Bit for bit, for unsorted genomes, equal breakpoints and one beyond a sentinel."""
    v, name = load(shared, f"gqalut_trainer_{file}"), TRAINER[file]
    f = lut.FUNCTIONS[name]
    x = np.arange(*f.domain, 0.01)
    for i, genome in enumerate(v["genomes"]):
        table = lut.chord_table(name, genome)
        assert np.array_equal(table.breakpoints, v["sorted"][i])
        assert np.array_equal(table.slopes, v["K"][i])
        assert np.array_equal(table.intercepts, v["B"][i])
        assert np.mean((f.value(x) - ref.evaluate_table(x, table, tie="right")) ** 2) == v["fitness"][i]
        for j, bits in enumerate(f.scale_bits):
            deployed = ref.integer_table(table, scale_bits=bits)
            assert np.array_equal(deployed.breakpoints * 2.0**-bits, v["rounded_breakpoints"][i, j])


@pytest.mark.parametrize("file", OPERATOR)
def test_l7_l9_l13_the_deployed_operator(shared: Path, file: str) -> None:
    """Values and gradients at every scale, those that are no powers of two included; codes of exp end at 0."""
    v, name = load(shared, f"gqalut_op_{file}"), OPERATOR[file]
    q = v["q"].astype(int)
    inside = q <= 0 if name == "exp" else q < 128
    assert np.isfinite(v["y"][:, inside]).all()
    largest: dict[str, float] = {}
    for i, given in enumerate(v["scales"]):
        scale = float(given)
        bits = lut.published_scale_bits(scale)
        assert bits == v["table_key"][i]
        p, k, b = v[f"breakpoints_{bits}"], v["slopes"], v["intercepts"]
        near = (p.astype(np.float32) / given).astype(float)  # in float32, as there: at 0.3 it decides who is on a tie
        y = scale * ref.evaluate_table(q, Table(near, k, b / scale), tie="left")
        g = v["grad_out"][i].astype(float)
        grad = ref.table_gradient(g[inside], q[inside], scale=scale, function=name)  # type: ignore[arg-type]
        for quantity, found, expected in (
            ("y, power-of-two scales", y[inside], v["y"][i][inside]),
            ("grad_q", g[inside] * 0 + grad.codes, v["grad_q"][i][inside]),
        ):
            size = max(np.abs(expected).max(), largest.get(quantity, 0.0))
            assert np.abs(found - expected).max() <= v.tolerances[quantity] * max(size, 1), (quantity, scale)
        exact = scale == 2.0**-bits
        if exact:
            whole = ref.integer_table(Table(p, k, b), scale_bits=bits)
            assert np.array_equal(ref.evaluate_codes(q, whole) * 2.0 ** -(6 + bits), y)
            segment = np.searchsorted(whole.breakpoints, q, side="left")
            assert np.array_equal(segment[inside], v["segment"][i][inside])
            assert np.array_equal(np.isin(q, whole.breakpoints), v["tie"][i])


@pytest.mark.parametrize("file", PRETRAINED)
def test_l18_the_shipped_tables(shared: Path, file: str) -> None:
    """The published JSON: keys, one set of coefficients, breakpoints on their grids, and its measured errors."""
    stored: dict[str, Any] = json.loads((shared / "golden" / f"{file}.json").read_text(encoding="utf-8"))
    name = PRETRAINED[file]
    assert list(stored) == [name]
    for key, entry in stored[name].items():
        p, k, b = (np.array(entry[part]) for part in ("breakpoints", "slopes", "intercepts"))
        table: Table[Array] = Table(p, k, b)
        assert np.array_equal(table.slopes, np.array(stored[name]["0"]["slopes"]))
        whole = ref.integer_table(table, scale_bits=int(key))
        assert np.array_equal(whole.breakpoints * 2.0 ** -int(key), table.breakpoints)
        found = lut.table_report(name, table)[int(key)]  # type: ignore[arg-type]
        assert found.mse == pytest.approx(MEASURED[file][int(key)], rel=5e-3)


def test_the_integer_functions_of_i_bert(shared: Path) -> None:
    """Recomputed from the manifest's formulas, as the peer that the docs compare tables with."""
    v = load(shared, "ibert")
    for i, scale in enumerate(v["scales"]):
        b, c = np.floor(-1.769 * 1.4142 / scale), np.floor(1 / (-0.2888) / (scale / 1.4142) ** 2)
        step = -0.2888 * (scale / 1.4142) ** 2
        t = np.sign(v["q"]) * ((np.minimum(np.abs(v["q"]), -b) + b) ** 2 + c)
        t = np.floor(t / 2.0**14)
        step *= 2.0**14
        shift = np.floor(1 / step)
        found = v["q"] * (t + shift) * scale * step / 2
        v.close(found, v["gelu"][i], "gelu")
        x0 = np.floor(-0.6931 / scale)
        x = np.maximum(v["exp_in"], 30 * x0)
        z = np.floor(x / x0)
        r = x - x0 * z
        b, c = np.floor(0.96963238 / 0.35815147 / scale), np.floor(1 / 0.35815147 / scale**2)
        v.close(np.maximum(np.floor((r * (r + b) + c) * 2 ** (30 - z)), 0), v["exp_int"][i], "exp_int")
    x = v["ln_x_int"]
    d = x - np.rint(x.mean(axis=-1, keepdims=True))
    factor = np.floor(2.0**31 / np.floor(np.sqrt((d * d).sum(axis=-1, keepdims=True))))
    step = float(np.sqrt(np.float32(x.shape[-1]))) / 2**30
    shift = np.floor(v["ln_bias"] / v["ln_weight"] / step)
    v.close((np.floor(d * factor / 2) + shift) * step * v["ln_weight"], v["ln_y"], "layernorm")
    mine = ref.table_layer_norm(x.astype(int), ref.integer_table(RSQRT, scale_bits=5)) / 32
    theirs = (v["ln_y"] - v["ln_bias"]) / v["ln_weight"]
    assert np.abs(mine - theirs).max() < 0.07  # the same function, by a table instead of Newton's iteration

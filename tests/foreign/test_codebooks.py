"""What the kit says of bitsandbytes' NF4 and of PEFT's LoftQ, check by check.

The verdicts belong to one release; docs/results/other-implementations.md publishes them with their reasons. What an
implementation does not offer is not listed.
"""

from __future__ import annotations

import importlib
import warnings
from importlib import metadata
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'lowbit[foreign]'")

from lowbit.conformance.runner import run

from .published import agree

RELEASES = {"bitsandbytes": "0.50.", "peft": "0.21."}

PLAIN = {
    "test_normal_float": "pass",
    "test_dynamic_float": "pass",
    "test_block_of_64_by_default": "pass",
    "test_nf4_blocks_of_64_across_rows": "fail",  # dequantization loses the block at the end of a row
    "test_many_normal_values": "pass",
    "test_blocks_of_zeros": "fail",  # the scale of a short block of zeros is 1e-38; its values are zeros all the same
    "test_values_of_normal_float_codes": "fail",  # the table is the printed one, seven digits
    "test_double_quantization_of_qlora": "fail",  # one scale alone, and midpoints of the smallest levels
    "test_restored_scales_of_qlora": "pass",
    "test_packed_product_of_4_bits": "pass",
    "test_non_finite_values_are_refused": "fail",
}
LINEAR = {"test_packed_product_of_4_bits": "fail"}  # inputs, scales and results are rounded to bfloat16
LOFTQ = {
    "test_loftq_of_a_larger_weight": "fail",  # rows of 80: bitsandbytes restores them wrongly
    "test_loftq_patches_a_larger_weight": "pass",
    "test_loftq_tells_the_errors_of_a_larger_weight": "pass",
}


def judge(backend: Any, clauses: list[str], expected: dict[str, str], heading: str | None = None) -> None:
    """The checks that always have something to judge say what is expected, no other one fails, the page knows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = list(run(backend, clauses))
    found = {o.check.name: o.status for o in outcomes}
    if heading is not None:
        agree(heading, outcomes)
    assert {name: found[name] for name in expected} == expected
    assert {name for name, status in found.items() if status == "fail"} <= set(expected)


def adapter(name: str, *packages: str) -> Any:
    """A module of this folder, when the releases are the ones that were judged."""
    for package in packages:
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed: pip install 'lowbit[foreign]'")
        if not found.startswith(RELEASES[package]):
            pytest.skip(f"the verdicts are of {package} {RELEASES[package]}x, this is {found}")
    return importlib.import_module(f"{__package__}.{name}")


def test_bitsandbytes_nf4() -> None:
    judge(adapter("bitsandbytes_nf4", "bitsandbytes"), ["N", "A-4"], PLAIN, "bitsandbytes")


def test_bitsandbytes_linear4bit_rounds_to_bfloat16() -> None:
    module = adapter("bitsandbytes_nf4", "bitsandbytes")
    if not module.functional.has_avx512bf16():
        pytest.skip("Linear4bit has another product on a processor without AVX-512 BF16")
    judge(module.configure(kernel="linear"), ["N-6"], LINEAR)


def test_peft_loftq() -> None:
    judge(adapter("peft_loftq", "bitsandbytes", "peft"), ["N-7"], LOFTQ, "PEFT 0.21.2, LoftQ")

"""Triton kernels without a GPU, run on CPU tensors by Triton's interpreter.

In processes of their own, because triton decides when a kernel is defined whether to interpret it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

from lowbit.accel.torch_cuda.triton import KERNELS, supports

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

INTERPRET = """
import itertools
import torch
import lowbit

plain, kernels = lowbit.load("torch", kernels="torch"), lowbit.load("torch", kernels="triton")
assert repr(kernels) == "TorchBackend(device='cpu', kernels='triton')"
assert kernels.supports("quantize", dtype=torch.float16) is True
assert kernels.supports("quantize", dtype=torch.int32) == "no Triton kernel for values of torch.int32"
assert kernels.supports("gptq") == "gptq has no Triton kernel: torch serves it"
generator = torch.Generator().manual_seed(0)
ties = torch.arange(-40, 40).reshape(2, 40) / 4
cases = [(torch.randn(3, 40, generator=generator), s, b) for s in ("asymmetric", "symmetric") for b in (2, 3, 8)]
cases += [(ties, "symmetric", 8), (torch.randn(3, 40, generator=generator) + 1000, "asymmetric", 1)]
cases += [(torch.randn(2, 3, 40, generator=generator), "asymmetric", 4), (torch.zeros(0, 40), "asymmetric", 4)]
cases += [(torch.randn(1, 1040, generator=generator) * 1e37, "asymmetric", 4)]
cases += [(ties, "symmetric", 8), (ties.half(), "symmetric", 4)]
dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float32)
for (x, scheme, bits), dtype in zip(cases, itertools.cycle(dtypes)):
    x = x.to(dtype)
    for granularity, size in (("tensor", None), ("token", None), ("group", 8)):
        grid = plain.fit_grid(x, bits=bits, scheme=scheme, granularity=granularity, group_size=size)
        if x is ties:
            grid = grid._replace(scale=torch.ones_like(grid.scale))
        codes = kernels.quantize(x, *grid, bits=bits, scheme=scheme)
        assert torch.equal(codes, plain.quantize(x, *grid, bits=bits, scheme=scheme)), (scheme, bits, dtype)
        values = kernels.dequantize(codes, *grid)
        assert torch.equal(values, plain.dequantize(codes, *grid)) and values.dtype == grid.scale.dtype
        if x.ndim == 2 and x.shape[0]:
            offset = 0 if scheme == "asymmetric" else 2 ** (bits - 1)
            for layout in ("dense", "padded"):
                words = kernels.pack(codes + offset, bits=bits, layout=layout)
                facts = dict(bits=bits, length=x.shape[1], layout=layout, offset=offset)
                assert torch.equal(kernels.dequantize_packed(words, *grid, **facts), values)
far = torch.tensor([[1000.0, 1000.0 + 2.0**-10]])
grid = plain.fit_grid(far, bits=4, include_zero=False)
assert torch.equal(kernels.quantize(far, *grid, bits=4), plain.quantize(far, *grid, bits=4))
scalar = plain.fit_grid(torch.tensor(3.0), bits=2, granularity="tensor")
assert kernels.quantize(torch.tensor(3.0), *scalar, bits=2).item() == 3
for bits, length, layout in itertools.product(range(1, 9), (0, 1, 31, 32, 33, 70), ("dense", "padded")):
    codes = torch.randint(0, 2**bits, (2, length), dtype=torch.int32, generator=generator)
    words = kernels.pack(codes, bits=bits, layout=layout)
    assert torch.equal(words, plain.pack(codes, bits=bits, layout=layout)), (bits, length, layout)
    assert torch.equal(kernels.unpack(words, bits=bits, length=length, layout=layout), codes), (bits, length, layout)
for m, groups, size, bits, tokens in ((5, 1, 40, 1, 1), (70, 2, 32, 3, 2), (3, 4, 10, 2, 3), (0, 1, 8, 2, 1)):
    k = groups * size
    codes = torch.randint(0, 2**bits, (m, k), dtype=torch.int32, generator=generator)
    scale, shift = (torch.randn(*s, generator=generator) for s in ((m, groups, bits), (m, groups)))
    x = torch.randn(tokens, k, generator=generator)
    for offset, dtype in ((None, torch.float32), (shift, torch.float32), (shift, torch.float64)):
        packed = plain.bcq_pack(codes, scale.to(dtype), None if offset is None else offset.to(dtype))
        found = kernels.bcq_product(x.to(dtype), *packed)
        assert found.dtype == dtype
        torch.testing.assert_close(found, plain.bcq_product(x.to(dtype), *packed, method="dequantize"))
        if k % 32 and m:
            spare = packed.planes.clone()
            spare[-1] |= ~((1 << k % 32) - 1)
            assert torch.equal(kernels.bcq_product(x.to(dtype), spare, *packed[1:]), found)
for order, dtype in itertools.product((1, 2, 12, 20, 28, 64, 96, 144), (torch.float32, torch.bfloat16)):
    assert kernels.supports("hadamard_transform", order=order) is True
    x = torch.randn(2, 3, order, generator=generator).to(dtype)
    for transpose in (False, True):
        found = kernels.hadamard_transform(x, transpose=transpose)
        wanted = plain.hadamard_transform(x.double(), transpose=transpose)
        assert found.dtype == torch.float32 and found.shape == x.shape
        assert (found - wanted).abs().max() <= order * 2.0**-24 * x.double().abs().sum(-1).max(), (order, dtype)
assert kernels.supports("hadamard_transform", dtype=torch.float64).startswith("Hadamard transforms of float64")
assert kernels.supports("hadamard_transform", order=172).startswith("a row of 172 = 172 x 1")
x = torch.randn(4, 36, generator=generator)
blocks = kernels.hadamard_transform(x, block_size=12)
assert torch.equal(blocks.reshape(-1, 12), kernels.hadamard_transform(x.reshape(-1, 12)))
assert kernels.hadamard_transform(torch.zeros(0, 12)).shape == (0, 12)
try:
    kernels.hadamard_transform(torch.tensor([[1.0, torch.nan]]))
except ValueError as error:
    assert "A-4" in str(error)
else:
    raise AssertionError("NaN was transformed")
table = plain.normal_float(bits=4)
for tokens, m, k, size in ((1, 20, 256, 64), (3, 5, 40, 16), (20, 70, 72, 48), (40, 3, 128, 64), (0, 3, 8, 4)):
    codes = torch.randint(0, 16, (m, k), dtype=torch.int32, generator=generator)
    scale = torch.rand(-(-m * k // size), generator=generator) + 0.5
    words = plain.pack(codes, bits=4)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.randn(tokens, k, generator=generator).to(dtype)
        y = kernels.codebook_matmul(x, words, scale.to(dtype), table, bits=4, block_size=size)
        expected = plain.codebook_matmul(x, words, scale.to(dtype), table, bits=4, block_size=size)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
print("interpreted")
"""


def run(script: str, interpret: str) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_triton
def test_kernels_compute_what_torch_computes() -> None:
    assert run(INTERPRET, "1") == "interpreted"


@needs_triton
def test_on_a_cpu_the_interpreter_must_be_asked_for() -> None:
    script = (
        "import lowbit\ntry: lowbit.load('torch', kernels='triton')\nexcept lowbit.BackendError as error: print(error)"
    )
    assert run(script, "0") == (
        "backend 'torch' refuses its options: kernels='triton' cannot be used on 'cpu': Triton kernels run on cpu only "
        "in its interpreter: set TRITON_INTERPRET=1 before triton is imported"
    )


def test_importing_the_backend_does_not_import_triton() -> None:
    script = (
        "import sys, lowbit.accel.torch_cuda.backend; print([m for m in sys.modules if m.split('.')[0] == 'triton'])"
    )
    assert run(script, "0") == "[]"


def test_supports_names_the_reason() -> None:
    assert supports("eora") == "eora has no Triton kernel: torch serves it"
    if importlib.util.find_spec("triton") is None:
        assert all(supports(op) == "triton is not installed: torch serves every operation" for op in KERNELS)
    else:
        assert all(supports(op, device="cuda") is True for op in KERNELS)
        assert supports("pack", device="mps") == "Triton kernels run on cuda, not on mps"

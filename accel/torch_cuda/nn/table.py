"""A non-linear function by its integer table, as a module: what an INT8 device computes, in a training graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowbit.accel.common.lut import check_tie
from lowbit.accel.common.refusals import check_choice
from lowbit.reference.errors import SpecError
from lowbit.reference.types import TABLE_FUNCTIONS, IntegerTable, TableFunction, TableTie

from .. import operations as ops
from ..arrays import refuse_nan
from .autograd import applied, unless_overflown

__all__ = ["TableActivation"]


class _Deployed(torch.autograd.Function):
    """Value of the table forward, derivative of the function backward; nothing for inputs that the codes clip.  [L-13]

    The value is answered as it is: f + (t − f) would lose it where f is large.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: TableActivation) -> Tensor:
        codes, inside = layer.codes(x)
        ctx.layer = layer
        ctx.save_for_backward(codes, inside)
        return layer.values(codes).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        codes, inside = ctx.saved_tensors
        (grad,) = upstream
        layer: TableActivation = ctx.layer
        passed = torch.where(inside, grad, torch.zeros_like(grad))
        safe = codes.clamp(min=1) if layer.function in ("reciprocal", "rsqrt") else codes
        options: Any = {"scale": layer.scale, "function": layer.function}
        return *unless_overflown(lambda: (ops.table_gradient(passed, safe, **options).codes / layer.scale,), grad), None


class TableActivation(nn.Module):
    """``x → t(x)``: INT8 codes of scale 2⁻ᵇ, the table on integers, and its values back.  [L-9, L-13]

    A state dict brings its scale along, and is refused where it is of another function.

    Attributes:
        breakpoints, slopes, intercepts: int32, the integer table; buffers, in the state dict and not trained.
        scale: 2⁻ᵇ, of the codes.

    Args:
        function: whose derivative the backward pass takes.
        table: an integer table of it.
        tie: to which piece a code on a breakpoint belongs.
    """

    breakpoints: Tensor
    slopes: Tensor
    intercepts: Tensor

    def __init__(self, function: TableFunction, table: IntegerTable[Tensor], tie: TableTie = "left") -> None:
        super().__init__()
        check_choice("L-13", "function", function, TABLE_FUNCTIONS)
        check_tie(tie)
        self.function: TableFunction = function
        self.tie: TableTie = tie
        self.scale_bits, self.fraction_bits = table.scale_bits, table.fraction_bits
        for name in ("breakpoints", "slopes", "intercepts"):
            self.register_buffer(name, getattr(table, name).to(torch.int32).clone())
        if not self.slopes.is_meta:
            self.values(torch.zeros(0, dtype=torch.int32, device=self.slopes.device))  # refuses what is no table

    def get_extra_state(self) -> Tensor:
        """Scale bits, fraction bits and the number of the function: what the integers of the table mean."""
        return torch.tensor([self.scale_bits, self.fraction_bits, TABLE_FUNCTIONS.index(self.function)], device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Take the scale of a table, and refuse one of another function.

        Raises:
            SpecError: L-13.
        """
        scale_bits, fraction_bits, function = state.tolist()
        if TABLE_FUNCTIONS[function] != self.function:
            raise SpecError("L-13", f"a table of {TABLE_FUNCTIONS[function]}, for an activation of {self.function}")
        self.scale_bits, self.fraction_bits = scale_bits, fraction_bits

    @property
    def table(self) -> IntegerTable[Tensor]:
        """The table as the operations take it."""
        return IntegerTable(self.breakpoints, self.slopes, self.intercepts, self.scale_bits, self.fraction_bits)

    @property
    def scale(self) -> float:
        """2⁻ᵇ."""
        return 2.0**-self.scale_bits

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """INT8 codes, half to even and clipped, and where nothing was clipped.

        Raises:
            SpecError: A-4 for NaN and infinities.
        """
        refuse_nan("L-9", "x", x.detach())
        ratio = (x.detach().float() if x.dtype != torch.float64 else x.detach()) / self.scale
        rounded = ratio.round()
        return rounded.clamp(-128, 127).to(torch.int8), (rounded >= -128) & (rounded <= 127)

    def values(self, codes: Tensor) -> Tensor:
        """Values of the table at INT8 codes, float32."""
        found = ops.evaluate_codes(codes, self.table, tie=self.tie)
        return found.to(torch.float32) * 2.0 ** -(self.fraction_bits + self.scale_bits)

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of ``x``."""
        return applied(_Deployed, x, self)

    def extra_repr(self) -> str:
        """Function, entries, scale and tie rule."""
        return f"{self.function}, entries={len(self.slopes)}, scale=2**-{self.scale_bits}, tie={self.tie}"

"""Confidence-guided annealing of torch parameters: an optimizer, and a tracker behind any other.

Both take parameter groups, and their state dicts, schedulers, copies and pickles are those of torch's optimizers. Rows
are worked on a few at a time, while they lie in the cache: a step finds bit for bit what the operations find and makes
no array of a weight's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowbit.accel.common.oscillation import check_range
from lowbit.accel.common.refusals import check_number, check_whole
from lowbit.accel.common.scale_tuning import check_tuning
from lowbit.reference.errors import SpecError

from ..arrays import as_weights, refuse_nan, row_chunks, working_dtype
from ..statsq import in_steps

__all__ = ["AnnealedAdamW", "OscillationTracker"]

State = dict[str, Any]


def _parts(w: Tensor) -> Iterable[Any]:
    """Rows of a matrix that are worked on together; what is no matrix is worked on at once."""
    return row_chunks(w.shape[0], w.shape[1], w.device) if w.ndim == 2 else (...,)


def _scale(rows: Tensor) -> Tensor:
    """α of (O.1) for rows in working precision."""
    return rows.abs().sum(-1).div_(max(rows.shape[1], 1)).mul_(2)


def _near(rows: Tensor, alpha: Tensor, n: int, width: float) -> Tensor:
    """The mask of (O.11)."""
    v = in_steps(rows, alpha, n)
    return v.sub_(v.round().clamp_(1 - n, n - 1)).abs_() <= width


def _codes(rows: Tensor, alpha: Tensor, n: int) -> Tensor:
    """Codes of (O.2), as floats."""
    return in_steps(rows, alpha, n).sub_(0.5).round_().clamp_(-n, n - 1)


def _follow(state: State, part: Any, k: Tensor, momentum: float) -> None:
    """One step of the tracker, (O.7) and (O.8), with the codes ``k`` of some rows."""
    before, went, often = state["codes"][part], state["direction"][part], state["frequency"][part]
    d = (before.to(k.dtype) - k).sign_().to(torch.int8)
    often.mul_(1 - momentum).add_((d * went == -1).to(often.dtype) * momentum)
    before.copy_(k)
    went.copy_(torch.where(d != 0, d, went))


class _Tracked(Optimizer):
    """Groups of latent weights with the state of their trackers."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse what cannot be tracked."""
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except SpecError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        """Everything a tracker refuses."""
        check_whole("O-4", "bits", group["bits"], 1, 16)
        if not check_number("O-4", "momentum", group["momentum"], 0.0, 1.0) > 0:
            raise SpecError("O-4", f"momentum must be above 0, got {group['momentum']!r}")
        if group["boundary_range"] is not None:
            check_range("O-6", group["boundary_range"])
        for p in group["params"]:
            if as_weights("O-4", "weight", p).ndim != 2:
                raise SpecError("O-4", f"weight must be a matrix, got shape {tuple(p.shape)}")
            refuse_nan("O-4", "weight", p)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but codes stay integers and means keep their precision, whatever the dtype of the parameter."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(g["params"] for g in state_dict["param_groups"])
        own = chain.from_iterable(g["params"] for g in self.param_groups)
        for number, p in zip(saved, own, strict=True):
            for name, x in state_dict["state"].get(number, {}).items():
                self.state[p][name] = x.to(p.device, copy=True) if isinstance(x, Tensor) else x

    @staticmethod
    def _tracker(p: Tensor, bits: int) -> State:
        """State of a tracker before its first step."""
        w, state = p.detach(), {}
        state["codes"] = torch.empty_like(w, dtype=torch.int8 if bits <= 8 else torch.int16)
        state["direction"] = torch.zeros_like(w, dtype=torch.int8)
        state["frequency"] = torch.zeros_like(w, dtype=working_dtype(w))
        for part in _parts(w):
            rows = w[part].to(working_dtype(w))
            state["codes"][part] = _codes(rows, _scale(rows), 1 << (bits - 1))
        return state


class OscillationTracker(_Tracked):
    """Tracks weights that any optimizer trains, and holds what annealing has frozen.  [O-4, O-6]

    Call :meth:`step` after each step of the optimizer. With a boundary range, weights that are not ``active`` are then
    brought back to the last bit, whatever momentum and weight decay made of them, before codes are computed and the
    next mask is found. It does not touch gradients: an optimizer with moments goes on gathering them for frozen weights
    unless ``grad`` is multiplied by ``active`` before its step.

    ``state[p]`` of a parameter holds ``codes`` of StatsQ, int8, or int16 from 9 bits on; ``direction``, int8, and
    ``frequency``, float32 or wider, as in track_oscillation; and with a boundary range ``active``, bool, what the next
    step may move, and ``held``, the weight that others go back to.

    Args:
        params: matrices (m, k), or groups of them.
        bits: 1 to 16.
        boundary_range: of the mask, 0 to ½ in steps of the grid; None for no annealing.
        momentum: of the frequency, above 0, at most 1.

    Raises:
        SpecError: O-4 and O-6 for parameters, A-4 for a weight with NaN or infinities; nothing has changed then.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        bits: int,
        boundary_range: float | None = None,
        momentum: float = 0.01,
    ) -> None:
        super().__init__(params, {"bits": bits, "boundary_range": boundary_range, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Track more weights, from what they are now."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            state = self.state[p] = self._tracker(p, group["bits"])
            if group["boundary_range"] is not None:
                w, n = p.detach(), 1 << (group["bits"] - 1)
                state["held"], state["active"] = w.clone(), torch.ones_like(w, dtype=torch.bool)
                for part in _parts(w):
                    rows = w[part].to(working_dtype(w))
                    state["active"][part] = _near(rows, _scale(rows), n, group["boundary_range"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Brings frozen weights back and follows the others; ``closure`` is called first, where there is one."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        tracked = [(group, p, self.state[p]) for group in self.param_groups for p in group["params"]]
        for _, p, state in tracked:
            if "held" in state and not bool(torch.isfinite(p.sum(dtype=working_dtype(p)))):
                p = torch.where(state["active"], p, state["held"])  # what is brought back may be anything
            refuse_nan("O-4", "weight", p)
        for group, p, state in tracked:
            n = 1 << (group["bits"] - 1)
            for part in _parts(p):
                w = p[part]
                if "held" in state:
                    w.copy_(torch.where(state["active"][part], w, state["held"][part]))
                    state["held"][part] = w
                rows = w.to(working_dtype(w))
                alpha = _scale(rows)
                _follow(state, part, _codes(rows, alpha, n), group["momentum"])
                if "held" in state:
                    state["active"][part] = _near(rows, alpha, n, group["boundary_range"])
        return loss


class AnnealedAdamW(_Tracked):
    """AdamW under the mask of annealing, with the tracker, in one pass.  [O-4, O-6, O-7]

    Each step is ``cga_mask``, ``cga_step`` under it, then ``statsq`` and ``track_oscillation``. Parameters of a group
    with ``bits=None``, such as biases, are trained by the same AdamW without mask and tracker.

    ``state[p]`` of a parameter holds ``step``, how many were taken; ``first`` and ``second``, moments, float32 or
    wider; and ``codes``, ``direction`` and ``frequency`` as in :class:`OscillationTracker`.

    Args:
        params: matrices (m, k), or groups of them; any shape where ``bits`` is None.
        bits: of StatsQ, 1 to 16; None for plain AdamW.
        lr, betas, eps, weight_decay: of AdamW; the arithmetic is float64.
        boundary_range: of the mask, 0 to ½ in steps of the grid; None for no annealing, until it is set in the group.
        momentum: of the frequency, above 0, at most 1.

    Raises:
        SpecError: O-4, O-6 and O-7 for parameters, A-4 for a weight or gradient with NaN or infinities; nothing has
            changed then, of any parameter.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        bits: int | None,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        boundary_range: float | None = 0.005,
        momentum: float = 0.01,
    ) -> None:
        rates = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**rates, "bits": bits, "boundary_range": boundary_range, "momentum": momentum})

    def _check_group(self, group: dict[str, Any]) -> None:
        self._check(group, 1)
        if group["bits"] is not None:
            super()._check_group(group)

    @staticmethod
    def _check(group: dict[str, Any], step: int) -> None:
        """Refuse options with which no step can be taken; they may have been set since the last."""
        (beta1, beta2), rates = group["betas"], {"lr": float(group["lr"]), "epsilon": group["eps"]}
        check_tuning("O-7", step=step, beta1=beta1, beta2=beta2, decay=group["weight_decay"], **rates)
        if group["boundary_range"] is not None:
            check_range("O-6", group["boundary_range"])

    def _due(self) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        """Group, parameter and gradient of whatever has one, all of them checked before the first is given out."""
        due = [(g, p, p.grad) for g in self.param_groups for p in g["params"] if p.grad is not None]
        for group, p, grad in due:
            self._check(group, self.state[p].get("step", 0) + 1)
            refuse_nan("O-7", "grad", as_weights("O-7", "grad", grad, like=p))
            refuse_nan("O-7", "w", p)
        return iter(due)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step down the gradients, after ``closure`` where there is one."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group, p, grad in self._due():
            state, bits = self.state[p], group["bits"]
            if not state:
                state["step"] = 0
                for name in ("first", "second"):
                    state[name] = torch.zeros_like(p, dtype=working_dtype(p))
                if bits is not None:
                    state.update(self._tracker(p, bits))
            state["step"] += 1
            for part in _parts(p):
                self._advance(group, state, p[part], grad[part], part)
        return loss

    @staticmethod
    def _advance(group: dict[str, Any], state: State, w: Tensor, grad: Tensor, part: Any) -> None:
        """(O.14) to (O.16) for some rows in place, then the tracker."""
        (beta1, beta2), lr, t = group["betas"], float(group["lr"]), state["step"]
        n = None if group["bits"] is None else 1 << (group["bits"] - 1)
        first, second = state["first"][part], state["second"][part]
        old, g, m, v = (x.to(torch.float64) for x in (w, grad, first, second))
        on = None
        if n is not None and group["boundary_range"] is not None:
            rows = w.to(first.dtype)
            on = _near(rows, _scale(rows), n, group["boundary_range"])
            g = torch.where(on, g, 0.0)
        mean, square = m.mul(beta1).add_(g, alpha=1 - beta1), v.mul(beta2).addcmul_(g, g, value=1 - beta2)
        below = (square / (1 - beta2**t)).sqrt_().add_(group["eps"])
        move = torch.where(below > 0, mean / (1 - beta1**t) / torch.where(below > 0, below, 1.0), 0.0)
        moved = old - lr * (move + group["weight_decay"] * old)
        w.copy_(moved if on is None else torch.where(on, moved, old))
        first.copy_(mean)
        second.copy_(square)
        if n is not None:
            rows = w.to(first.dtype)
            _follow(state, part, _codes(rows, _scale(rows), n), group["momentum"])

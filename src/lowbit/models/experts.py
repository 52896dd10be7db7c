"""Where the tokens of a mixture of experts go, and what reaches the two layers of each expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

__all__ = ["Routed"]


class Routed:
    """The tokens that entered one experts module, sample by sample, and the experts that each of them went to.

    Hidden states are kept in place of the inputs of every expert: they are as large as the states between two blocks,
    and the rest follows from them while the weights of the block are in memory.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def calls(self) -> int:
        """Number of calls so far."""
        return len(self._calls)

    def add(self, hidden: torch.Tensor, experts: torch.Tensor) -> None:
        """One call: hidden states (tokens, hidden) and the experts chosen for each (tokens, n)."""
        self._calls.append((hidden.reshape(-1, hidden.shape[-1]), experts.reshape(-1, experts.shape[-1])))

    def inputs(self, expert: int, *, down: bool, call: int | None = None) -> Iterator[torch.Tensor]:
        """Inputs (tokens, in) of a layer of one expert, of every call or of one: the first layer, or ``down`` the last.

        The last one needs the weights of the block.
        """
        for hidden, experts in self._calls if call is None else [self._calls[call]]:
            x = hidden[(experts == expert).any(-1)]
            yield self._inner(expert, x) if down else x

    def all_inputs(self, call: int, *, down: bool) -> torch.Tensor:
        """Inputs (rows, in) of one call to the layers of all experts: of the first ones every token once, as each goes
        to the same number of experts; of the last ones, ``down``, every token once an expert.
        """
        if not down:
            return self._calls[call][0]
        experts = range(self._module.down_proj.shape[0])
        return torch.cat([x for expert in experts for x in self.inputs(expert, down=True, call=call)])

    def _inner(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """What an expert's last layer gets for the tokens ``x``."""
        module = self._module
        name = "gate_up_proj" if module.has_gate else "up_proj"
        weight = getattr(module, name)[expert]
        bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
        x = functional.linear(x, weight.T if module.is_transposed else weight, bias)
        return module._apply_gate(x) if module.has_gate else module.act_fn(x)  # type: ignore[no-any-return]

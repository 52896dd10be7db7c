"""The inputs of the linear layers of a block, taken from its own forward pass.

Those of a stack are the inputs of all its experts; which expert got which is kept beside them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lowbit.runs.errors import RecipeError

from .decoder import Decoder, Sample, Stop
from .experts import Routed

__all__ = ["collect_inputs", "group_by_input"]


class _Inputs:
    """Inputs of the layers of a block during one sample; ends the pass at call number ``calls``."""

    def __init__(self, calls: int | None) -> None:
        self.tensors: dict[str, list[torch.Tensor]] = {}
        self._left = calls

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """Pre-forward hook of layer ``name``."""

        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.tensors.setdefault(name, []).append(args[0])
            self._count()

        return see

    def experts_hook(self, routed: Routed) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """Pre-forward hook of an experts module."""

        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = dict(zip(("hidden_states", "top_k_index"), args, strict=False)) | kwargs
            routed.add(given["hidden_states"], given["top_k_index"])
            self._count()

        return see

    def _count(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise Stop


@torch.no_grad()
def collect_inputs(
    decoder: Decoder,
    index: int,
    samples: Sequence[Sample],
    take: Callable[[str, int, torch.Tensor], None],
) -> tuple[dict[str, str], dict[str, Routed]]:
    """Run block ``index``, whose weights are in memory, over every sample up to the input of its last linear layer.

    ``take(leader, sample, x)`` receives the inputs ``x`` (tokens, in) of every group of linear layers that see the
    same tensor (q, k, v; gate, up), once per sample, under the name of the first of the group.

    Returns:
        Linear layer → leader of its group, where a layer that is never called is missing; and stack → where the
        tokens of its experts went.

    Raises:
        RecipeError: layers that share their input in one sample but not in another.
    """
    block = decoder.inventory.blocks[index]
    linears = decoder.inventory.linears[index]
    names = [linear.name for linear in linears if not linear.experts]
    stacks = [linear for linear in linears if linear.experts]
    modules = {linear.name: linear.name.rpartition(".")[0] for linear in stacks}
    routed = {path: Routed(block.get_submodule(path)) for path in modules.values()}
    leader: dict[str, str] = {}
    calls: int | None = None  # of a sample, when every layer is called once: a pass may end at the last one
    for sample, at in enumerate(samples):
        seen = _Inputs(calls)
        before = {path: routes.calls for path, routes in routed.items()}
        hooks = [block.get_submodule(name).register_forward_pre_hook(seen.hook(name)) for name in names]
        for path, routes in routed.items():
            hook = seen.experts_hook(routes)
            hooks.append(block.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
        try:
            with contextlib.suppress(Stop):
                decoder.run(index, at)
        finally:
            for handle in hooks:
                handle.remove()
        once = all(len(seen.tensors.get(name, ())) == 1 for name in names)
        if sample == 0 and once and all(routes.calls == 1 for routes in routed.values()):
            calls = len(names) + len(routed)
        group_by_input(f"{decoder.inventory.block_prefix}.{index}", sample, seen.tensors, leader)
        for name, tensors in seen.tensors.items():
            if leader[name] == name:
                rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
                take(name, sample, rows[0] if len(rows) == 1 else torch.cat(rows))
        for linear in stacks:
            routes = routed[modules[linear.name]]
            new = range(before[modules[linear.name]], routes.calls)
            if new:
                leader[linear.name] = linear.name
                take(linear.name, sample, torch.cat([routes.all_inputs(call, down=linear.down) for call in new]))
    return leader, {name: routed[path] for name, path in modules.items()}


def group_by_input(path: str, sample: int, inputs: Mapping[str, list[torch.Tensor]], leader: dict[str, str]) -> None:
    """Group the layers of one sample by the identity of their inputs, and check that groups never change."""

    def together(name: str, other: str) -> bool:
        ours, theirs = inputs[name], inputs.get(other, [])
        return len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))

    for name in inputs:
        if name not in leader:
            leaders = (other for other in inputs if leader.get(other) == other)
            leader[name] = next((other for other in leaders if together(name, other)), name)
        elif not together(name, leader[name]):
            raise RecipeError(
                f"{path}.{name} shares its input with {path}.{leader[name]} in one sample, "
                f"but not in sample {sample}; such architectures are not supported"
            )

"""What decides the bytes of a result: the same plan continues a run, another is refused with the fields that differ."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from lowbit._version import SPEC_VERSION, __version__

__all__ = ["differences", "plan_differences", "versions"]

_PACKAGES = ("numpy", "scipy", "torch", "transformers")


def versions() -> dict[str, Any]:
    """Of everything whose arithmetic a result depends on."""
    ours = {"lowbit": __version__, "spec": SPEC_VERSION, "python": platform.python_version()}
    return ours | {package: metadata.version(package) for package in _PACKAGES}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines ``field: old -> new`` for every field that differs."""
    missing = object()
    lines = []
    for field in sorted(before.keys() | now.keys()):
        old, new = before.get(field, missing), now.get(field, missing)
        if old != new:
            show = ["absent" if value is missing else json.dumps(value, sort_keys=True) for value in (old, new)]
            lines.append(f"{field}: {show[0]} -> {show[1]}")
    return lines


def plan_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differing fields of two plans, named by their part unless they are options."""
    lines: list[str] = []
    for part in sorted(before.keys() | now.keys()):
        old, new = before.get(part), now.get(part)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            label = "" if part == "options" else f"{part}."
            lines += [label + line for line in differences(old, new)]
        elif old != new:
            lines += differences({part: old}, {part: new})
    return lines

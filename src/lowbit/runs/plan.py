"""What decides the bytes of a result: the same plan continues a run, another is refused with the fields that differ."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from lowbit._version import SPEC_VERSION, __version__

__all__ = ["advice", "differences", "plan_differences", "versions"]

_PACKAGES = ("numpy", "scipy", "torch", "transformers")


def versions() -> dict[str, Any]:
    """Of everything whose arithmetic a result depends on."""
    ours = {"lowbit": __version__, "spec": SPEC_VERSION, "python": platform.python_version()}
    return ours | {package: metadata.version(package) for package in _PACKAGES}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines ``field: old -> new`` for every field that differs; of contents known by a hash, that they differ."""
    missing = object()
    lines = []
    for field in sorted(before.keys() | now.keys()):
        old, new = before.get(field, missing), now.get(field, missing)
        if old == new:
            continue
        shown = [
            "absent" if value is missing else "present" if _is_hash(value) else json.dumps(value, sort_keys=True)
            for value in (old, new)
        ]
        if _is_hash(old) and _is_hash(new):
            lines.append(f"{field.removesuffix('.sha256')}: other content")
        else:
            lines.append(f"{field}: {shown[0]} -> {shown[1]}")
    return lines


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _fields(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of all parts, named by their part unless they are options."""
    fields: dict[str, Any] = {}
    for part, value in plan.items():
        label = "" if part == "options" else f"{part}."
        fields |= {f"{label}{name}": v for name, v in value.items()} if isinstance(value, Mapping) else {part: value}
    return fields


def plan_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differing fields of two plans."""
    return differences(_fields(before), _fields(now))


_PROCESSOR = {"machine.vector_units", "machine.blas", "machine.gpu"}


def advice(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What to do where an unfinished run has the plan ``before`` and a command the plan ``now``."""
    old, new = _fields(before), _fields(now)
    changed = {field for field in old.keys() | new.keys() if old.get(field) != new.get(field)}
    ways = {
        f"with --threads {old.get('machine.threads')}": {"machine.threads"},
        "on a processor of the same kind": _PROCESSOR,
        "with the same versions": {field for field in changed if field.startswith("versions.")},
    }
    if not changed <= set().union(*ways.values()):
        return "repeat the old command to continue it, or choose another output directory"
    how = " and ".join(way for way, fields in ways.items() if fields & changed)
    return f"the last digits of its numbers depend on these: continue it {how}, or choose another output directory"

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


def plan_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differing fields of two plans, named by their part unless they are options."""
    labelled: list[dict[str, Any]] = [{}, {}]
    for plan, fields in zip((before, now), labelled, strict=True):
        for part, value in plan.items():
            label = "" if part == "options" else f"{part}."
            fields |= (
                {f"{label}{name}": v for name, v in value.items()} if isinstance(value, Mapping) else {part: value}
            )
    return differences(*labelled)


def advice(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What to do where an unfinished run has the plan ``before`` and a command the plan ``now``."""
    parts = {part for part in before.keys() | now.keys() if before.get(part) != now.get(part)}
    if parts <= {"machine", "versions"}:
        threads = [plan.get("machine", {}).get("threads") for plan in (before, now)]
        same = [f"with --threads {threads[0]}"] if threads[0] != threads[1] else []
        if any(before.get("machine", {}).get(name) != now.get("machine", {}).get(name) for name in _PROCESSOR):
            same.append("on a processor of the same kind")
        if "versions" in parts:
            same.append("with the same versions")
        ways = " and ".join(same) or "as it was begun"
        return f"the last digits of its numbers depend on these: continue it {ways}, or choose another output directory"
    return "repeat the old command to continue it, or choose another output directory"


_PROCESSOR = ("vector_units", "blas", "gpu")

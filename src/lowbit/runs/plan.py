"""What decides the bytes of a result, and in what two such plans differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["differences"]


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

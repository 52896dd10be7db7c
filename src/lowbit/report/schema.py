"""The schemas of ``lowbit.json`` and ``plan.json``, and a check against them that needs no package.

Only the part of JSON Schema that the file uses is understood; a keyword outside it is an error, not a pass. Any full
validator reads the same file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

from lowbit.runs.errors import RecipeError

__all__ = ["first_problem", "load_schema", "problems", "require_record"]

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
_LARGEST: dict[type, float] = {int: 1 << 63, float: math.inf}
_SILENT = {
    *("$schema", "$id", "$defs", "title", "description"),
    *("properties", "additionalProperties", "items", "prefixItems"),
}


def load_schema(name: str = "lowbit-compress-1") -> dict[str, Any]:
    """A schema shipped with the package: ``lowbit-compress-1`` or ``lowbit-plan-1``."""
    text = resources.files("lowbit.report").joinpath("data", f"{name}.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def require_record(record: Any, where: str) -> None:
    """Refuse what is no complete record of a compression.

    Raises:
        RecipeError: naming the first place that is wrong.
    """
    if (wrong := first_problem(record, load_schema())) is not None:
        raise RecipeError(f"{where}: no record of a finished run ({wrong}); choose another output directory")


def first_problem(record: Any, schema: dict[str, Any]) -> str | None:
    """The first place of a record that is wrong, as much of it as a message needs."""
    level = [record] if isinstance(record, (dict, list)) else []
    for _ in range(50):  # whoever walks it, walks by recursion
        level = [
            v for one in level for v in (one.values() if isinstance(one, dict) else one) if isinstance(v, (dict, list))
        ]
    wrong = "nested too deeply" if level else next(problems(record, schema), None)
    return None if wrong is None else wrong[:200]


def _is(value: Any, kind: str) -> bool:
    """Also no whole number beyond 64 bits, which other readers do not hold, and nothing that is no number in JSON."""
    if kind in ("integer", "number") and isinstance(value, (int, float)):
        return not isinstance(value, bool) and isinstance(value, _TYPES[kind]) and abs(value) < _LARGEST[type(value)]
    return isinstance(value, _TYPES[kind])


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, place: str = "$") -> Iterator[str]:
    """Every violation of ``schema`` by a JSON value, as ``place: what``.

    Raises:
        ValueError: the schema uses a keyword that is not understood.
    """
    top = root or schema
    for keyword, rule in schema.items():
        if keyword == "$ref":
            yield from problems(value, top["$defs"][rule.rpartition("/")[2]], top, place)
        elif keyword == "type":
            if not any(_is(value, kind) for kind in ([rule] if isinstance(rule, str) else rule)):
                yield f"{place}: {value!r} is not {rule}"
        elif keyword == "const":
            if value != rule:
                yield f"{place}: {value!r} is not {rule!r}"
        elif keyword == "enum":
            if value not in rule:
                yield f"{place}: {value!r} is none of {rule}"
        elif keyword == "anyOf":
            if all(list(problems(value, option, top, place)) for option in rule):
                yield f"{place}: fits none of the alternatives"
        elif keyword == "required":
            yield from (f"{place}: lacks {name}" for name in rule if isinstance(value, dict) and name not in value)
        elif keyword == "propertyNames":
            for name in value if isinstance(value, dict) else ():
                yield from problems(name, rule, top, f"{place}, the name {name!r}")
        elif keyword == "pattern":
            if isinstance(value, str) and not re.search(rule, value):
                yield f"{place}: {value!r} does not match {rule}"
        elif keyword in ("minimum", "exclusiveMinimum"):
            if _is(value, "number") and (value < rule or (keyword == "exclusiveMinimum" and value == rule)):
                yield f"{place}: {value} is below {rule}"
        elif keyword == "minItems":
            if isinstance(value, list) and len(value) < rule:
                yield f"{place}: fewer than {rule} items"
        elif keyword == "maxItems":
            if isinstance(value, list) and len(value) > rule:
                yield f"{place}: more than {rule} items"
        elif keyword not in _SILENT:
            raise ValueError(f"keyword {keyword} is not understood")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for name, item in value.items():
            rule = known.get(name, schema.get("additionalProperties"))
            if isinstance(rule, dict):
                yield from problems(item, rule, top, f"{place}.{name}")
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        for number, item in enumerate(value):
            rule = first[number] if number < len(first) else schema.get("items")
            if rule is not None:
                yield from problems(item, rule, top, f"{place}[{number}]")

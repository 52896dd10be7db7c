"""Options by themselves: what is converted, what is refused, and that a class and a call say the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lowbit.recipes.options import CompareOptions, CompressOptions, EvalOptions, option_table, parse_options
from lowbit.runs.errors import RecipeError


def test_values_are_given_the_type_of_their_field() -> None:
    options = parse_options(CompressOptions, model="m", out="o", samples="5", rank=7.0, damping=1, quantizer="gptq")
    assert (options.out, options.samples, options.rank) == (Path("o"), 5, 7)
    assert type(options.rank) is int
    assert type(options.damping) is float
    assert CompressOptions(model="m", out=Path("o"), group_size=0).group_size is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "option model: input should not be empty, got ''"),
        ({"model": 3}, "option model: input should be a valid string, got 3"),
        ({"out": " "}, "option out: name a directory, got ' '"),
        ({"out": 3}, "option out: input should be a path, got 3"),
        ({"rank": 2.5}, "option rank: input should be a valid integer, got 2.5"),
        ({"rank": True}, "option rank: input should be a valid integer, got True"),
        ({"rank": float("inf")}, "option rank: input should be a valid integer, got inf"),
        ({"rank": None}, "option rank: input should be a valid integer, got None"),
        ({"rounds": 101}, "option rounds: input should be less than or equal to 100, got 101"),
        ({"damping": float("nan")}, "option damping: input should be greater than or equal to 0, got nan"),
        (
            {"damping": "much"},
            "option damping: input should be a valid number, unable to parse string as a number, got 'much'",
        ),
        ({"symmetric": 1}, "option symmetric: input should be a valid boolean, got 1"),
        ({"bits": "3"}, "option bits: input should be 2, 3, 4, 5, 6, 8 or 16, got '3'"),
        ({"bits": 3.0}, "option bits: input should be 2, 3, 4, 5, 6, 8 or 16, got 3.0"),
    ],
)
def test_refusals_of_the_class_and_of_the_call_are_the_same(fields: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": "m", "out": "o"} | fields
    for make in (CompressOptions, lambda **fields: parse_options(CompressOptions, **fields)):
        with pytest.raises(RecipeError) as caught:
            make(**given)
        assert str(caught.value) == message


@pytest.mark.parametrize("kind", [CompressOptions, EvalOptions, CompareOptions])
def test_every_field_is_explained_and_every_default_is_allowed(kind: Any) -> None:
    for option in option_table(kind).values():
        assert option.told.help.endswith(".")
        if option.default is not dataclasses.MISSING:
            assert option.convert(option.default) == option.default
        assert option.told.unset is None or option.default is None

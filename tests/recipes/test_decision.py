"""A decision out of the table of a plan: least loss within the bytes, pins obeyed, and refusals that help."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lowbit.compression.decision import KEPT, Table, as_row, fits, offered, parse_size
from lowbit.compression.setting import Setting
from lowbit.runs.errors import RecipeError

SETTINGS = [Setting(2, 64, 0, 16), Setting(3, 64, 0, 16), Setting(3, 64, 8, 8), KEPT]


def record(modules: int = 4, seed: int = 0) -> dict[str, Any]:
    """A plan of small modules with losses that fall with the bytes."""
    draws = np.random.default_rng(seed)
    found = []
    for index in range(modules):
        size = int(draws.integers(100, 900))
        kl = np.sort(draws.random(3))[::-1] * float(draws.random())
        found.append(
            {
                "name": f"model.layers.{index // 2}.{'q_proj' if index % 2 else 'o_proj'}",
                "block": index // 2,
                "shape": [8, size],
                "bytes": [2 * size, 3 * size, 3 * size + 70, 16 * size],
                "kl": [*map(float, kl), 0.0],
            }
        )
    return {
        "settings": [as_row(s) for s in SETTINGS],
        "modules": found,
        "fixed_bytes": 1000,
        "bytes_16": 123456,
        "bytes_given": 10**6,
    }


@pytest.mark.parametrize("seed", range(5))
def test_no_other_settings_of_these_bytes_lose_less(seed: int) -> None:
    plan = record(seed=seed)
    table = Table(plan)
    for size in np.linspace(table.least, 1000 + sum(m["bytes"][-1] for m in plan["modules"]), 7).astype(int):
        decision = table.within(int(size))
        sums = []
        for combination in itertools.product(range(len(SETTINGS)), repeat=4):
            chosen = [(m["bytes"][o], m["kl"][o]) for m, o in zip(plan["modules"], combination, strict=True)]
            if 1000 + sum(b for b, _ in chosen) <= size:
                sums.append(sum(kl for _, kl in chosen))
        assert decision.bytes <= size
        assert decision.kl == pytest.approx(min(sums), rel=1e-5, abs=1e-12)
        assert decision.lower_bound <= min(sums) + 1e-12
        at = {m["name"]: m for m in plan["modules"]}
        places = {name: SETTINGS.index(setting) for name, setting in decision.settings.items()}
        assert decision.bytes == 1000 + sum(at[name]["bytes"][o] for name, o in places.items())
        assert decision.kl == pytest.approx(sum(at[name]["kl"][o] for name, o in places.items()))


def test_the_smallest_files_below_a_loss() -> None:
    table = Table(record())
    for kl in (1.0, 0.3, 0.05, 0.0):
        decision = table.below(kl)
        assert decision.kl <= kl
        if decision.bytes > table.least:
            smaller = decision.bytes - max(2, decision.bytes // 500)
            assert smaller < table.least or table.within(smaller).kl > kl


def test_what_is_pinned_is_obeyed_and_costs() -> None:
    free, pinned = Table(record()), Table(record(), keep=["0.o_proj"], bits_of=[("q_proj", 2)])
    decision = pinned.within(100_000)
    assert decision.settings["model.layers.0.o_proj"] == KEPT
    assert {s.bits for name, s in decision.settings.items() if name.endswith("q_proj")} == {2}
    assert pinned.within(20_000).kl >= free.within(20_000).kl
    later = Table(record(), bits_of=[("*", 3), ("model.layers.1.q_proj", 2)]).within(100_000)
    assert [later.settings[f"model.layers.{i}.q_proj"].bits for i in range(2)] == [3, 2]


def test_an_option_that_does_not_exist_is_not_taken() -> None:
    plan = record()
    for module in plan["modules"]:
        module["bytes"][0] = module["kl"][0] = None
    assert min(s.bits for s in Table(plan).within(Table(plan).least).settings.values()) == 3


def test_refusals_say_what_to_do() -> None:
    table = Table(record())
    with pytest.raises(RecipeError, match=rf"smallest that this model can be made here is {table.least:,} bytes"):
        table.within(table.least - 1)
    with pytest.raises(RecipeError, match="1,000,001 bytes are more than the model takes as it is, 1,000,000"):
        table.within(1_000_001)
    with pytest.raises(RecipeError, match=r"'v_proj' fits no module; the names are such as model\.layers\.0\.o_proj"):
        Table(record(), keep=["v_proj"])
    with pytest.raises(RecipeError, match="'q_proj': 7 bits are not in the plan, which has 2, 3, 16"):
        Table(record(), bits_of=[("q_proj", 7)])
    with pytest.raises(RecipeError, match="give nats per token, 0 or more"):
        table.below(float("nan"))
    plan = record()
    plan["modules"][1]["kl"] = [0.5, None, None, 0.0]
    with pytest.raises(RecipeError, match=r"model.layers.0.q_proj: its shape fits none of the settings that are left"):
        Table(plan, bits_of=[("*", 3)])


@pytest.mark.parametrize(
    "text, size",
    [("70MB", 70_000_000), ("1.5GiB", 1_610_612_736), ("12345", 12345), (" 2 kb ", 2000), ("0.5MiB", 524_288)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["9" * 400, "", "70 parsecs", "-1MB", "MB", "1e6"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is no size: give bytes, or a number with KB, MB, GB"):
        parse_size(text)


def test_patterns_mean_names_and_their_ends() -> None:
    assert fits("model.layers.3.mlp.up_proj", "model.layers.3.mlp.up_proj")
    for pattern in ("up_proj", "layers.3.*", "*.mlp.*"):
        assert fits(pattern, "model.layers.3.mlp.up_proj")
    for pattern in ("proj", "layers.1.*", "mlp"):
        assert not fits(pattern, "model.layers.3.mlp.up_proj")


def test_what_is_offered_has_no_setting_twice() -> None:
    settings = offered((64, 32), adapters=True)
    assert len(set(settings)) == len(settings)
    assert settings[-1] == KEPT
    assert {s.rank for s in offered((64,), adapters=False)} == {0}
    widths = [(s.bits, s.group_size) for s in settings]
    assert [w for w, _ in itertools.groupby(widths)] == list(dict.fromkeys(widths))  # equal widths stand together


def test_a_loss_that_pins_forbid_is_refused_with_the_best_there_is() -> None:
    pinned = Table(record(), bits_of=[("*", 3)])
    best = pinned.frontier()[-1][1]
    assert pinned.below(best).kl <= best
    with pytest.raises(RecipeError, match=rf"the best that the settings left allow is {best:.3g}"):
        pinned.below(best * 0.99)


def test_a_search_may_pass_sizes_above_the_given_one() -> None:
    """Where the answer lies below it: only that is held to the size of the given files."""
    found = record()
    table = Table(found)
    answer = table.below(table.frontier()[len(table.frontier()) // 2][1])
    found["bytes_given"] = answer.bytes
    assert Table(found).below(answer.kl).bytes <= answer.bytes
    with pytest.raises(RecipeError, match="more than the model takes as it is"):
        Table(found).below(0.0)

"""The page of a plan and what a decision adds to the report: right about their numbers, and good for any record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lowbit.report import render
from lowbit.report.plan import frontier_points, render_plan, require_plan
from lowbit.report.schema import load_schema, problems
from lowbit.report.svg import fitted_axis
from lowbit.runs.errors import RecipeError

from .records import SETTINGS, decide, make_plan, make_record
from .test_report import Page, drawings

DENSE = [16, None, 0, 16]


def cost(plan: dict[str, Any], setting: list[Any], outer: list[Any]) -> tuple[int, float]:
    """Bytes and nats with one setting in the blocks and another outside."""
    places = [SETTINGS.index(outer if m["block"] is None else setting) for m in plan["modules"]]
    pairs = list(zip(plan["modules"], places, strict=True))
    return plan["fixed_bytes"] + sum(m["bytes"][p] for m, p in pairs), sum(m["kl"][p] for m, p in pairs)


def test_uniform_points_are_sums_of_the_table() -> None:
    plan = make_plan(blocks=2)
    uniform = [p for p in frontier_points(plan) if "setting" in p]
    assert len(uniform) == 2 * (len(SETTINGS) - 1) + 1  # embedding in 16 bits or like the rest; once where that is one
    for point in uniform:
        size, kl = cost(plan, point["setting"], point["outer"])
        assert point["bytes"] == size
        assert point["kl"] == pytest.approx(kl, rel=1e-12)
        assert point["outer"] in (DENSE, [*point["setting"][:2], 0, 16])


def test_no_uniform_setting_lies_below_the_curve() -> None:
    points = frontier_points(make_plan(blocks=3))
    curve = [p for p in points if "setting" not in p]
    sizes, losses = [p["bytes"] for p in curve], [p["kl"] for p in curve]
    assert sizes == sorted(set(sizes))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0
    for point in points[len(curve) :]:
        assert point["kl"] >= np.interp(point["bytes"], sizes, losses) * (1 - 1e-9)
        assert point["bytes"] >= sizes[0]


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    plan = make_plan(blocks=30)
    curve = [p for p in frontier_points(plan) if "setting" not in p]
    assert 100 < len(curve) <= 200
    least = plan["fixed_bytes"] + sum(min(b for b in m["bytes"] if b is not None) for m in plan["modules"])
    most = plan["fixed_bytes"] + sum(m["bytes"][-1] for m in plan["modules"])
    assert (curve[0]["bytes"], curve[-1]["bytes"]) == (least, most)


def test_the_page_of_a_plan_needs_nothing_else_and_says_its_numbers() -> None:
    plan = make_plan()
    require_plan(plan, "plan.json")
    page = render_plan(plan)
    parsed = Page(page)
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object", "embed"}
    assert not re.search(r"https?:|url\(|@import|javascript:|\son\w+=", page)
    assert "98 MB" in page  # what was given
    assert "269 MB in 16 bits" in page
    rows = re.findall(r"<tr><td>([\d.]+ MB)</td><td>([\d.]+)</td><td>([^<]+)</td>", page)
    assert 10 <= len(rows) <= 14
    curve = [p for p in frontier_points(plan) if "setting" not in p]
    for size, width, kl in rows[1:]:
        bytes_ = float(size.removesuffix(" MB")) * 1e6
        assert float(width) == pytest.approx(16 * bytes_ / plan["bytes_16"], abs=0.006)
        assert kl == f"{[p['kl'] for p in curve if p['bytes'] <= bytes_][-1]:.3g}"
    assert render_plan(json.loads(json.dumps(plan))) == page
    assert "Bits and ranks" not in page


def test_drawings_of_a_plan_are_described_and_narrow() -> None:
    (drawing,) = drawings(render_plan(make_plan(blocks=2)))
    assert drawing.get("role") == "img"
    assert [child.get("id") for child in drawing[:2]] == (drawing.get("aria-labelledby") or "").split()
    assert "nats per token" in str(drawing[1].text)
    assert float(drawing.get("viewBox", "").split()[2]) <= 520


def test_a_chosen_size_is_marked_with_its_map() -> None:
    plan = make_plan(blocks=2)
    decision = decide(plan, make_record(blocks=2), frontier=None)["decision"]
    page = render_plan(plan, decision)
    Page(page)
    assert f"no choice of this size is below {decision['lower_bound']:.3g}" in page
    assert ">chosen</text>" in page
    assert re.search(r'<th scope="row">model.embed_tokens</th><td class="b8" colspan="7"><b>8</b></td>', page)


def test_a_report_shows_bits_and_ranks_by_block() -> None:
    plan, record = make_plan(blocks=3), make_record(blocks=3)
    assert 'class="map"' not in render(record)  # all alike
    record = decide(plan, record, frontier=frontier_points(plan))
    assert list(problems(record, load_schema())) == []
    page = render(record)
    Page(page)
    table = page.partition('<table class="map">')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="col">([^<]+)</th>', table) == [
        *("block", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ]
    cells = re.findall(r'<td class="b(\d+)"><b>(\d+)</b>(?: <small>(\d+)</small>)?</td>', table)
    assert [(int(a), int(b), int(rank or 0)) for a, b, rank in cells] == [
        (m["bits"], m["bits"], m["rank"]) for m in record["modules"]
    ]


def test_a_report_compares_the_choice_with_uniform_settings_of_its_size() -> None:
    plan = make_plan(blocks=3)
    record = decide(plan, make_record(blocks=3), frontier=frontier_points(plan))
    page = render(record)
    decision = record["decision"]
    assert f"same; {decision['kl_predicted']:.3g} predicted" in page
    rivals = page.partition("Uniform settings of nearly the same bytes")[2].partition("</table>")[0]
    sizes = [int(text.replace(",", "")) for text in re.findall(r"<td>([\d,]{9,})</td>", rivals)]
    assert len(sizes) == 6
    others = [p["bytes"] for p in decision["frontier"] if "setting" in p]
    nearest = sorted(abs(np.log(size / decision["bytes"])) for size in others)[:6]
    assert sorted(abs(np.log(size / decision["bytes"])) for size in sizes) == pytest.approx(nearest)
    del record["perplexity"]["against_base"]
    assert f"predicted; no choice of this size is below {decision['lower_bound']:.3g}" in render(record)
    del decision["frontier"]
    assert "Divergence against size" not in render(record)


def test_layers_of_one_name_have_columns_of_their_own() -> None:
    record = make_record(blocks=1)
    for module, name in zip(record["modules"], ("attn.c_proj", "mlp.c_proj"), strict=False):
        module["name"] = f"transformer.h.0.{name}"
    record["modules"][0]["bits"] = 5
    table = render(record).partition('<table class="map">')[2]
    assert re.findall(r'<th scope="col">([^<]+)</th>', table)[:3] == ["block", "attn.c_proj", "mlp.c_proj"]


def broken(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    plan = make_plan(blocks=1)
    change(plan)
    return plan


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    r"modules\[1\]: 24 bytes and 25 kl for 25 settings": lambda p: p["modules"][1]["bytes"].pop(),
    r"modules\[1\]: bytes and kl are not known of the same": lambda p: p["modules"][1]["kl"].__setitem__(0, None),
    r"modules\[0\]: no setting fits it": lambda p: p["modules"][0].update(bytes=[None] * 25, kl=[None] * 25),
    r"'model.embed_tokens' is there twice": lambda p: p["modules"].append(p["modules"][-1]),
    r"settings: one is there twice": lambda p: p["settings"].__setitem__(1, p["settings"][0]),
    r"settings\[0\]\[0\]: 7 is none of": lambda p: p["settings"].__setitem__(0, [7, 64, 0, 16]),
    r"settings\[0\]: more than 4 items": lambda p: p["settings"].__setitem__(0, [3, 64, 0, 16, 1]),
    r"settings\[0\]: fewer than 4 items": lambda p: p["settings"].__setitem__(0, [3, 64, 0]),
    r"18446744073709551616 is not integer": lambda p: p.update(fixed_bytes=2**64),
    r"9223372\d+ bytes and": lambda p: p.update(fixed_bytes=2**63 - 10**9),
    r"and inf nats": lambda p: [m["kl"].__setitem__(0, 1e308) for m in p["modules"]],
    r"lacks bytes_16": lambda p: p.pop("bytes_16"),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_no_plan_is_refused_by_its_place(words: str) -> None:
    with pytest.raises(RecipeError, match=words) as refusal:
        require_plan(broken(WRONG[words]), "p/plan.json")
    assert str(refusal.value).startswith("p/plan.json: no record of a finished plan (")


@pytest.mark.parametrize("value", [None, 1, "x", [], {}])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(RecipeError, match="no record of a finished plan"):
        require_plan(value, "plan.json")


def test_another_schema_has_no_plan_page() -> None:
    with pytest.raises(ValueError, match=r"needs a record of schema lowbit\.plan/1, got 'lowbit\.compress/1'"):
        render_plan(make_record(blocks=1))


def test_plans_without_embedding_loss_or_choice_have_a_page() -> None:
    plan = make_plan(blocks=1)
    plan["modules"] = plan["modules"][:1]
    assert all(point["outer"] is None for point in frontier_points(plan) if "setting" in point)
    Page(render_plan(plan))
    plan["modules"][0]["kl"] = [None if kl is None else 0.0 for kl in plan["modules"][0]["kl"]]
    assert drawings(render_plan(plan)) == []
    plan["settings"], plan["modules"][0]["bytes"], plan["modules"][0]["kl"] = [SETTINGS[0]], [1], [0.5]
    Page(render_plan(plan))


def test_an_axis_fits_its_data_with_round_ticks() -> None:
    axis = fitted_axis(34.5, 269, lambda v: f"{v:g}")
    assert [text for _, text in axis.ticks] == ["40", "50", "60", "80", "100", "150", "200"]
    assert axis(34.5) == 0
    assert axis(269) == 1
    assert [text for _, text in fitted_axis(3e-4, 4, lambda v: f"{v:g}").ticks] == ["0.001", "0.01", "0.1", "1"]
    for low, high in ((70.0, 70.0), (70.0, 70.1), (1e-9, 5.0)):
        assert all(0 <= axis(tick) <= 1 for axis in [fitted_axis(low, high, str)] for tick, _ in axis.ticks)

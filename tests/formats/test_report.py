"""The report: self-contained, readable without eyes, the same bytes every time, and right about its numbers."""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from lowbit.compression.readme import readme
from lowbit.report import render
from lowbit.report.schema import load_schema, problems
from lowbit.report.svg import Series, line_chart, linear_axis, log_axis

from .records import make_record

SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Tags in order, attributes, and whether every element is closed."""

    VOID = frozenset({"meta", "br", "img", "hr", "input", "link", "line", "rect", "circle", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def drawings(page: str) -> list[ET.Element]:
    return [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]


def test_the_page_needs_nothing_else() -> None:
    page = render(make_record())
    parsed = Page(page)
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object", "embed"}
    assert not re.search(r"https?:|url\(|@import|javascript:|\son\w+=", page)
    assert "prefers-color-scheme: dark" in page
    assert ("html", {"lang": "en"}) in parsed.tags


def test_every_drawing_says_what_it_shows_and_has_a_table() -> None:
    page = render(make_record())
    found = drawings(page)
    assert len(found) == 7 + 2  # errors by kind, spectrum twice
    for drawing in found:
        assert drawing.get("role") == "img"
        named = (drawing.get("aria-labelledby") or "").split()
        assert [child.get("id") for child in drawing[:2]] == named
        assert all((child.text or "").strip() for child in drawing[:2])
    bars = [attributes for tag, attributes in Page(page).tags if attributes.get("class") == "bars"]
    assert [attributes.get("role") for attributes in bars] == ["img", "img"]  # perplexity, bytes
    assert "base 25.44" in str(bars[0]["aria-label"])
    assert "packed weights" in str(bars[1]["aria-label"])
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert page.count("<table>") >= 5


def test_equal_records_give_equal_pages() -> None:
    record = make_record()
    assert render(record) == render(json.loads(json.dumps(copy.deepcopy(record))))


def test_numbers_on_the_page_are_those_of_the_record() -> None:
    record = make_record()
    page = render(record)
    assert "25.44" in page
    assert "78.69" in page
    assert "33.80" in page
    totals = record["totals"]
    assert f"{totals['bytes_given'] / totals['bytes_shipped']:.2f}× smaller" in page
    totals["bytes_given"] = totals["bytes_shipped"] // 2
    assert "2.00× larger" in render(record)
    assert f"{record['totals']['bytes_shipped']:,}" in page
    for module in record["modules"]:
        assert f"<code>{module['name']}</code>" in page
    for value in (*record["inputs"].values(), record["calibration"]["sha256"]):
        assert value in page


def test_distances_from_the_base_are_shown_and_a_record_without_them_is_read() -> None:
    record = make_record()
    cells = ["0.3312 ± 0.012", "71.3 ± 0.3 %", "1.231 ± 0.041", "52.0 ± 0.4 %"]
    page, text = render(record), readme(record)
    assert all(f"<td>{cell}</td>" in page for cell in cells)
    assert "<dt>KL from the original</dt>" in page
    assert "| compensated | 33.80 | 0.3312 | 71.3 % |" in text
    assert "| base | 25.44 |  |  |" in text
    record["perplexity"]["against_base"]["compressed"]["kl_error"] = None  # of a single window
    record["perplexity"]["against_base"]["compressed"]["agreement_error"] = None
    assert list(problems(record, load_schema())) == []
    assert "<td>1.231</td><td>52.0 %</td>" in render(record)
    del record["perplexity"]["against_base"]["compressed"]["kl"]
    assert len(list(problems(record, load_schema()))) == 1
    del record["perplexity"]["against_base"]
    assert list(problems(record, load_schema())) == []
    assert "KL from" not in render(record) + readme(record)
    assert "| base | 25.44 |\n" in readme(record)


def test_bars_are_as_long_as_their_values() -> None:
    widths = [float(w) for w in re.findall(r'<i class="\w+" style="width:([\d.]+)%"></i>', render(make_record()))][:3]
    assert [round(width / widths[1], 3) for width in widths] == [round(v / 78.69, 3) for v in (25.44, 78.69, 33.8)]


def test_nothing_on_a_narrow_screen_is_shrunk_with_its_text() -> None:
    page = render(make_record())
    widths = [float(drawing.get("viewBox", "").split()[2]) for drawing in drawings(page)]
    assert max(widths) <= 520  # of a screen of 360: letters keep about two thirds of their size
    narrow = page.partition("@media (max-width: 560px)")[2].partition("@media print")[0]
    assert ".two, .many { grid-template-columns: 1fr; }" in narrow
    assert "min-width" not in narrow


@pytest.mark.parametrize("compensate", ["eora", "none"])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_records_with_parts_missing_still_give_a_page(compensate: str, blocks: int) -> None:
    record = make_record(blocks=blocks, compensate=compensate)
    record["perplexity"] = None
    for module in record["modules"]:
        module["spectrum"], module["energy"] = None, {}
    page = render(record)
    Page(page)
    assert "<h2>Perplexity</h2>" not in page
    assert "low-rank patch can reach" not in page
    assert "<h2>Bytes by part</h2>" in page


def test_a_perplexity_that_explodes_is_drawn_on_a_logarithmic_scale() -> None:
    record = make_record(blocks=2)
    record["perplexity"] |= {"compressed": 1.1e6, "compensated": 676.0}
    page = render(record)
    assert "The scale is logarithmic." in page
    assert "1.1e+06" in page
    record["perplexity"]["compressed"] = None
    assert "not finite" in render(record)


def test_zero_spectra_and_errors_do_not_break_the_axes() -> None:
    record = make_record(blocks=1)
    for module in record["modules"]:
        module["spectrum"] = [0.0] * 4
        module["energy"] = {"1": 1.0}
        module["relative_error_before"] = module["relative_error_after"] = 0.0
    Page(render(record))


def test_names_are_escaped() -> None:
    record = make_record(blocks=1)
    record["options"]["model"] = '<script>alert("x")</script>'
    record["modules"][0]["name"] = "a.<b>&c"
    page = render(record)
    assert "<script>" not in page
    assert "a.&lt;b&gt;&amp;c" in page


def test_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a record of schema lowbit\.compress/1, got 'lowbit\.eval/1'"):
        render({"schema": "lowbit.eval/1"})


def test_axes_cover_their_data_with_round_ticks() -> None:
    axis = linear_axis(78.69, lambda v: f"{v:g}")
    assert [text for _, text in axis.ticks] == ["0", "20", "40", "60", "80"]
    assert axis(80) == 1
    assert axis(40) == 0.5
    ranks = log_axis(1, 256, lambda v: f"{v:.0f}", base=2, count=8)
    assert [text for _, text in ranks.ticks] == ["1", "2", "4", "8", "16", "32", "64", "128", "256"]
    assert ranks(16) == 0.5
    chart = line_chart(
        [Series("a", [(0, 1.0), (1, float("nan")), (2, 3.0)], "s0")],
        linear_axis(2, str),
        linear_axis(3, str),
        key="k",
        title="t",
        description="d",
    )
    assert "nan" not in str(chart)


def test_the_schema_accepts_a_record_and_names_what_is_wrong() -> None:
    record = make_record(blocks=2)
    assert list(problems(record, load_schema())) == []
    record["modules"][1]["rank"] = -1
    del record["totals"]["ratio"]
    record["inputs"]["x"] = "not a hash"
    record["perplexity"] = {"base": "low"}
    record["modules"][2]["energy"] = {"ranks": 0.5}
    assert sorted(problem.partition(":")[0] for problem in problems(record, load_schema())) == [
        "$.inputs.x",
        "$.modules[1].rank",
        "$.modules[2].energy, the name 'ranks'",
        "$.perplexity",
        "$.totals",
    ]


def test_a_schema_with_unknown_keywords_is_refused() -> None:
    with pytest.raises(ValueError, match="keyword oneOf is not understood"):
        list(problems({}, {"oneOf": []}))

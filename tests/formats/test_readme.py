"""Names in the README and the report of an output come from others: they are shown as they are, nothing more."""

from __future__ import annotations

from typing import Any

import pytest
from markdown_it import MarkdownIt

from lowbit.compression.readme import readme
from lowbit.report.page import render

from .records import make_record

HOSTILE = (
    "a](https://evil.example/x)<img src=x onerror=alert(1)> [b][c] **bold** _i_ `code` www.evil.example "
    "<https://evil.example> ~~no~~ &lt; me@evil.example $x$ | cell\n\n# Heading\n\x1b[2J<script>alert(1)</script>"
)


@pytest.mark.parametrize("name", [HOSTILE, "\\*x\\*", "[x]: https://evil.example", "owner/some_model-3B.v2"])
def test_names_are_no_markdown(name: str) -> None:
    record = make_record(blocks=2)
    record["options"]["model"] = record["model"]["architecture"] = record["perplexity"]["source"] = name
    text = readme(record)
    plain = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    heading = tokens[1]
    assert heading.content.endswith(", compressed by lowbit")
    assert {part.type for token in tokens for part in token.children or []} <= {
        "text",
        "text_special",
        "softbreak",
        "code_inline",
    }
    assert "".join(part.content for part in heading.children or []) == f"{plain}, compressed by lowbit"
    assert not {token.type for token in tokens} & {"html_block", "reference"}
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2"]
    for autolink in ("https://", "www.", "e@"):  # GitHub makes links of these
        assert autolink not in text.replace("\\", "\0")


def test_ordinary_names_stay_as_they_are() -> None:
    record = make_record(blocks=2)
    record["options"]["model"] = "HuggingFaceTB/SmolLM2-135M_base.v1"
    assert readme(record).startswith("# HuggingFaceTB/SmolLM2-135M_base.v1, compressed by lowbit\n")


def test_no_text_of_a_record_is_markup_on_the_page() -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                f"{key}<script>" if key == "model.safetensors" else key: hostile(item) for key, item in value.items()
            }
        if isinstance(value, list):
            return [hostile(item) for item in value]
        return f"{value}<script>\"'&" if isinstance(value, str) and not value.startswith("lowbit.compress/") else value

    page = render(hostile(make_record(blocks=2)))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 20

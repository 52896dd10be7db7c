"""mkdocs hook: equations become MathML while the site is built.

Browsers render MathML themselves and screen readers read it, so a page needs neither a script nor the network.
``pymdownx.arithmatex`` finds the equations; here each is converted, and one that latex2mathml cannot read fails a
strict build instead of showing raw TeX.
"""

from __future__ import annotations

import html
import logging
import re
from typing import Any

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.hooks.mathml")

_DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
# A figure is HTML, in which Markdown finds no equations: those of its caption are still as they were written.
_CAPTION = re.compile(r"<figcaption>.*?</figcaption>", re.DOTALL)
_WRITTEN = re.compile(r"\\\((.*?)\\\)", re.DOTALL)
_TAG = re.compile(r"\\tag\{([^}]*)\}")
# What the converter emits for input that it does not know: a literal backslash, or an alignment mark outside a table.
_LEFTOVER = re.compile(r"<m[ion]>(\\[A-Za-z]*|&)</m[ion]>")
# Delimiters that open and close: sized to what they hold, and matched so that indices attach to the closing one.
_PAIR = re.compile(r"(?<!\\left)(?<!\\right)\\([lr])([vV])ert(?![A-Za-z])")
# Names of functions come out as operators, with the space of a binary one on both sides; only limits need that.
_NAME = re.compile(r"<mo>(?!min|max|sup|inf)([A-Za-z]{2,})</mo>")
# Fences without \left and \right come out as identifiers, which are spaced and slanted as if they were variables.
_FENCE = re.compile(r"<mi>(&#x0(?:230A|2308|230B|2309|27E8|27E9);|&#x27E[89];)</mi>")


def to_mathml(tex: str, *, display: bool) -> str:
    """One equation; raises ValueError for TeX that the converter leaves as it is."""
    if re.search(r"(?<!\\left)(?<!\\right)\|", tex):
        raise ValueError(r"a bare | does not say whether it opens or closes: write \lvert and \rvert")
    sized = _PAIR.sub(lambda m: f"\\{'left' if m[1] == 'l' else 'right'}\\{m[1]}{m[2]}ert ", tex)
    mathml = convert(sized, display="block" if display else "inline")
    if leftover := _LEFTOVER.search(mathml):
        raise ValueError(f"cannot convert {leftover.group(1)!r}")
    if "negativethinmathspace" in mathml:
        raise ValueError(r"\! has no MathML form that browsers know")
    mathml = _NAME.sub(r"<mi>\1</mi>", mathml)
    mathml = _FENCE.sub(r'<mo fence="true" stretchy="false">\1</mo>', mathml)
    return mathml.replace("<math ", f'<math alttext="{html.escape(" ".join(tex.split()), quote=True)}" ', 1)


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Replace every equation of a page; a bad one is a warning, so a strict build fails and names the page."""

    def replace(match: re.Match[str], *, display: bool) -> str:
        tex = html.unescape(match.group(1)).strip()
        numbers = ", ".join(_TAG.findall(tex))  # lines of one block share a place
        tex = _TAG.sub("", tex).strip()
        try:
            mathml = to_mathml(tex, display=display)
        except Exception as error:
            log.warning("%s: equation %r: %s", page.file.src_uri, tex, error)
            return f"<code>{html.escape(tex)}</code>"
        if not display:
            return mathml
        tag = f'<span class="number">({html.escape(numbers)})</span>' if numbers else ""
        return f'<div class="equation">{mathml}{tag}</div>'

    def caption(match: re.Match[str]) -> str:
        return _WRITTEN.sub(lambda m: replace(m, display=False), match.group())

    content = _DISPLAY.sub(lambda m: replace(m, display=True), content)
    content = _CAPTION.sub(caption, content)
    return _INLINE.sub(lambda m: replace(m, display=False), content)

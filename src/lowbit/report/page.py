"""From the record of a run to the values that the page prints: no number is made up here, some are averaged.

A missing part of the record (no evaluation, no spectra, no adapter) takes its figure away and leaves the rest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lowbit.console import byte_size, share, size_change

from .parts import Cell, bit_map, flat_pairs, frontier_figure, nats, page_of, uniform_text
from .svg import Series, bars, line_chart, linear_axis, log_axis

__all__ = ["render"]

_STYLES = 8  # line colours of the style sheet
_KINDS = 12  # small charts at most; further kinds of layer are in the table only
_LOG_RATIO = 20.0  # bars that differ by more than this are drawn on a logarithmic scale
_SPECTRUM_FLOOR = 1e-4
_RIVALS = 6  # uniform settings beside the ones that were chosen
_PARTS = {
    "packed": "packed weights",
    "scales": "scales",
    "zero_points": "zero points",
    "adapter": "adapter",
    "other": "embeddings, norms, head",
    "headers": "headers of the files",
}


def percent(value: float | None) -> str:
    """Three digits that matter: ``23.1 %``; a dash for None."""
    return "–" if value is None else share(value)


def quantity(value: float | None) -> str:
    """A perplexity or an objective: two decimals in the ordinary range, powers of ten beyond."""
    if value is None:
        return "–"
    return f"{value:.2f}" if 1e-2 <= abs(value) < 1e5 or value == 0 else f"{value:.3g}"


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _kinds(modules: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Modules by the last part of their path, in order of first appearance."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for module in modules:
        kinds.setdefault(_kind(str(module["name"])), []).append(module)
    return kinds


def _labels(modules: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(_kind(str(module["name"])) for module in modules))


def _perplexity(record: Mapping[str, Any]) -> dict[str, Any] | None:
    measured = record.get("perplexity")
    if not measured:
        return None
    names = [name for name in ("base", "compressed", "compensated") if name in measured]
    keep = [name for name in names if measured[name] is not None or name == "compressed"]
    values = {name: measured[name] for name in keep}
    known = [value for value in values.values() if value is not None and value > 0]
    if not known:
        return None
    wide = max(known) / min(known) > _LOG_RATIO
    if wide:
        axis = log_axis(min(known) / 2, max(known), lambda v: f"{v:,.0f}" if v < 1e6 else f"{v:.0e}")
    else:
        axis = linear_axis(max(known), lambda v: f"{v:g}")
    rows = [
        (name, quantity(value) if value is not None else "not finite", [] if value is None else [(axis(value), name)])
        for name, value in values.items()
    ]
    text = ", ".join(f"{name} {shown}" for name, shown, _ in rows)
    distances = measured.get("against_base") or {}  # records of earlier versions have none
    return {
        "bars": bars(rows, title="Perplexity of the three models", description=f"{text}."),
        "rows": [(name, shown, *_distance(distances.get(name))) for name, shown, _ in rows],
        "distances": bool(distances),
        "log": wide,
        "tokens": int(measured.get("tokens") or 0),
        "source": str(measured.get("source") or ""),
    }


def _distance(found: Mapping[str, Any] | None) -> tuple[str, str]:
    """KL from the base model and agreement with it, with their standard errors where they have some."""
    if not found:
        return "", ""
    kl, agreement = f"{found['kl']:.4g}", f"{100 * found['agreement']:.1f}"
    if found["kl_error"] is not None:
        kl += f" ± {found['kl_error']:.2g}"
    if found["agreement_error"] is not None:
        agreement += f" ± {100 * found['agreement_error']:.1f}"
    return kl, f"{agreement} %"


def _errors(modules: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    kinds = _kinds(modules)
    values = [m[key] for m in modules for key in ("relative_error_before", "relative_error_after") if m.get(key)]
    if not values:
        return None
    blocks = sorted({int(m["block"]) for m in modules})
    y = linear_axis(max(values), lambda v: f"{100 * v:.3g} %")
    x = linear_axis(max(blocks[-1], 1), lambda v: f"{v:g}", low=float(blocks[0]) if len(blocks) > 1 else 0.0)
    charts, rows = [], []
    for number, (kind, group) in enumerate(kinds.items()):
        before = [(float(m["block"]), float(m["relative_error_before"])) for m in group]
        after = [
            (float(m["block"]), float(m["relative_error_after"]))
            for m in group
            if m.get("relative_error_after") is not None
        ]
        means = _mean([e for _, e in before]), _mean([e for _, e in after])
        drop = None if means[1] is None or not means[0] else 1 - means[1] / means[0]
        rows.append((kind, len(group), percent(means[0]), percent(means[1]), percent(drop)))
        if number < _KINDS:
            tail = f" and {percent(means[1])} after compensation" if after else ""
            charts.append(
                line_chart(
                    [Series("before", before, "before"), Series("after", after, "after")],
                    x,
                    y,
                    key=f"err{number}",
                    title=kind,
                    description=f"Relative output error of {kind} over {len(group)} blocks: "
                    f"mean {percent(means[0])} before{tail}.",
                    width=260,
                    height=164,
                    heading=True,
                    dots=len(group) <= 2,
                )
            )
    return {
        "charts": charts,
        "rows": rows,
        "compensated": any(m.get("relative_error_after") is not None for m in modules),
    }


def _spectra(modules: Sequence[Mapping[str, Any]], rank: int | None) -> dict[str, Any] | None:
    kinds = {
        kind: group
        for kind, group in _kinds([m for m in modules if m.get("spectrum")]).items()
        if any(m["spectrum"][0] > 0 for m in group)
    }
    if not kinds:
        return None
    longest = max(len(m["spectrum"]) for group in kinds.values() for m in group)
    x = log_axis(1, max(longest, 2), lambda v: f"{v:.0f}", base=2, count=8)
    labels = _labels(modules)
    falling, captured, table = [], [], []
    for kind, group in kinds.items():
        style = f"s{labels.index(kind) % _STYLES}"
        length = min(len(m["spectrum"]) for m in group)
        shown = sorted({round(2 ** (i / 6)) for i in range(6 * 9) if round(2 ** (i / 6)) <= length} | {length})
        spectra = [m["spectrum"] for m in group if m["spectrum"][0] > 0]
        falling.append(Series(kind, [(i, statistics.median([s[i - 1] / s[0] for s in spectra])) for i in shown], style))
        shares = [{int(r): float(share) for r, share in m["energy"].items()} for m in group]
        ranks = sorted(set.intersection(*(set(share) for share in shares)))
        points = [(float(r), _mean([share[r] for share in shares]) or 0.0) for r in ranks]
        captured.append(Series(kind, points, style))
        table.append((kind, {int(r): percent(share) for r, share in points}))
    mark = (float(rank), f"rank {rank}") if rank else None
    ranks = sorted({r for _, shares in table for r in shares})
    lowest = min((value for line in falling for _, value in line.points), default=1.0)
    y = log_axis(min(max(lowest, _SPECTRUM_FLOOR), 0.5), 1.0, lambda v: f"{v:g}")
    return {
        "falling": line_chart(
            falling,
            x,
            y,
            key="spec",
            title="Singular values of the weighted error",
            description="Singular values of the compression error weighted by the inputs, relative to the largest, "
            "median over blocks, for each kind of layer; the table below gives the energy they add up to.",
            x_label="index of the singular value",
            y_label="σᵢ / σ₁",
            mark=mark,
        ),
        "captured": line_chart(
            captured,
            x,
            linear_axis(1.0, lambda v: f"{100 * v:.0f} %", count=5),
            key="cap",
            title="Share of the error that a patch of each rank can remove",
            description="Share of the squared weighted error captured by the leading singular values, mean over "
            "blocks, for each kind of layer; the table below has the numbers.",
            x_label="rank",
            y_label="squared error captured",
            mark=mark,
            dots=True,
        ),
        "legend": [(line.label, line.style) for line in captured],
        "ranks": ranks,
        "rows": [(kind, [shares.get(r, "–") for r in ranks]) for kind, shares in table],
    }


def _bytes(record: Mapping[str, Any]) -> dict[str, Any]:
    totals = record["totals"]
    known: list[tuple[str, int, str]] = []
    for number, (part, amount) in enumerate(totals["shipped"].items()):
        label = _PARTS.get(part, str(part).replace("_", " "))
        known.append((label, int(amount), f"p{number % _STYLES}"))
    before, after = int(totals["bytes_given"]), int(totals["bytes_shipped"])
    full = max(before, after) or 1
    rows = [
        ("as given", byte_size(before), [(before / full, "whole")]),
        ("compressed", byte_size(after), [(amount / full, style) for _, amount, style in known]),
    ]
    text = ", ".join(f"{label} {byte_size(amount)}" for label, amount, _ in known if amount)
    return {
        "bars": bars(
            rows,
            title="Bytes before and after",
            description=f"{byte_size(before)} before; {byte_size(after)} after: {text}.",
        ),
        "rows": [
            (label, f"{amount:,}", percent(amount / after if after else 0.0), style)
            for label, amount, style in known
            if amount
        ],
        "before": f"{before:,}",
        "after": f"{after:,}",
    }


def _tiles(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Headline numbers: caption, value, small print."""
    totals, modules = record["totals"], record["modules"]
    tiles = [
        (
            "size",
            size_change(int(totals["bytes_given"]), int(totals["bytes_shipped"])).replace(" times", "×"),
            f"{byte_size(totals['bytes_given'])} → {byte_size(totals['bytes_shipped'])}, adapter included; "
            f"{byte_size(totals['bytes_16'])} in 16 bits",
        )
    ]
    weights = sum(math.prod(module["shape"]) for module in modules)
    stored = sum(
        sum(int(module["bytes"].get(part, 0)) for part in ("packed", "scales", "zero_points"))
        + int(module["bytes"].get("adapter_packed", module["bytes"].get("adapter", 0)))
        for module in modules
    )
    if weights:
        tiles.append(
            ("linear layers", f"{8 * stored / weights:.2f} bits", f"per weight with everything, {weights:,} weights")
        )
    measured = record.get("perplexity") or {}
    best = measured.get("compensated") if measured.get("compensated") is not None else measured.get("compressed")
    if measured.get("base") is not None and best is not None:
        without = measured.get("compressed")
        small = f"full precision {quantity(measured['base'])}"
        if measured.get("compensated") is not None:
            small += f", without adapter {quantity(without)}"
        tiles.append(("perplexity", quantity(best), small))
    nearest = _nearest(record)
    decision = record.get("decision")
    if nearest:
        small = f"nats per token; {percent(nearest['agreement'])} of top tokens are the same"
        if decision:
            small += f"; {nats(decision['kl_predicted'])} predicted"
        tiles.append(("KL from the original", f"{nearest['kl']:.3g}", small))
    elif decision:
        small = f"nats per token, predicted; no choice of this size is below {nats(decision['lower_bound'])}"
        tiles.append(("KL from the original", nats(decision["kl_predicted"]), small))
    before = _mean([float(m["relative_error_before"]) for m in modules if m.get("relative_error_before") is not None])
    after = _mean([float(m["relative_error_after"]) for m in modules if m.get("relative_error_after") is not None])
    if before is not None:
        value = percent(before) if after is None else percent(after)
        tiles.append(
            (
                "output error per layer",
                value,
                "mean" if after is None else f"mean, {percent(before)} before compensation",
            )
        )
    return tiles


def _method(options: Mapping[str, Any], decision: Mapping[str, Any]) -> str:
    """One line that says what was done."""
    if decision:
        size, quantizer = decision.get("size") or decision["bytes"], str(options.get("quantizer", "")).upper()
        return f"bits and ranks of {len(decision['settings'])} modules chosen for {byte_size(size)} · {quantizer}"
    parts = []
    bits = options.get("bits")
    if bits and int(bits) < 16:
        group = options.get("group_size")
        grid = "symmetric" if options.get("symmetric") else "asymmetric"
        parts.append(f"{bits} bits, {grid}, {f'groups of {group}' if group else 'one scale per row'}")
        parts.append(str(options.get("quantizer", "")).upper())
    if options.get("sparsity"):
        parts.append(f"{options['sparsity']} by {options.get('pruner')}")
    if options.get("compensate") not in (None, "none"):
        parts.append(f"{str(options['compensate']).replace('eora', 'EoRA')}, rank {options.get('rank')}")
    return " · ".join(part for part in parts if part)


def _frontier(decision: Mapping[str, Any], nearest: Mapping[str, Any]) -> dict[str, Any] | None:
    points = decision.get("frontier")
    return frontier_figure(points, decision, measured=nearest.get("kl")) if points else None


def _nearest(record: Mapping[str, Any]) -> dict[str, Any]:
    """How far the result is from the original, as it is served; empty where that was not measured."""
    distances = (record.get("perplexity") or {}).get("against_base") or {}
    return dict(distances.get("compensated") or distances.get("compressed") or {})


def _rivals(decision: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Uniform settings of the nearest sizes below and above the chosen one, the best first."""
    uniform = [point for point in decision.get("frontier", ()) if point.get("setting")]
    near = sorted(uniform, key=lambda p: abs(math.log(p["bytes"] / decision["bytes"])))[:_RIVALS]
    own = decision["kl_predicted"] if near else 0.0
    return [
        (uniform_text(p), f"{p['bytes']:,}", nats(p["kl"]), f"{p['kl'] / own:.2f}×" if own > 0 else "–")
        for p in sorted(near, key=lambda p: (p["kl"], p["bytes"]))
    ]


def _bits(modules: Sequence[Mapping[str, Any]], decision: Mapping[str, Any]) -> dict[str, Any] | None:
    found = [(str(m["name"]), int(m["block"]), Cell(m["bits"], m["rank"])) for m in modules]
    known = {name for name, _, _ in found}
    outer = [
        (name, None, Cell(setting[0], setting[2]))
        for name, setting in decision.get("settings", {}).items()
        if name not in known
    ]
    return bit_map([*found, *outer])


def _module_rows(modules: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for m in modules:
        bound, after = m.get("optimum_lower_bound"), m.get("objective_compensated")
        rows.append(
            [
                str(m["name"]),
                "×".join(str(n) for n in m["shape"]),
                str(m.get("rank") or "–"),
                percent(m.get("relative_error_before")),
                percent(m.get("relative_error_after")),
                quantity(after),
                quantity(bound),
                str(m.get("certificate") or "–"),
                f"{sum(int(v) for k, v in m['bytes'].items() if k in _PARTS):,}",
            ]
        )
    return rows


def render(record: Mapping[str, Any]) -> str:
    """The page of a ``lowbit.compress/1`` record.

    Raises:
        ValueError: a record of another schema.
        ImportError: jinja2 is missing; the message names the extra.
    """
    schema = str(record.get("schema"))
    if schema.rpartition("/")[0] != "lowbit.compress":
        raise ValueError(f"a report needs a record of schema lowbit.compress/1, got {schema!r}")
    modules = list(record["modules"])
    options: Mapping[str, Any] = record.get("options") or {}
    name = str(options.get("model") or record["model"]["architecture"])
    decision: Mapping[str, Any] = record.get("decision") or {}
    rank = None if decision or options.get("compensate") in (None, "none") else options.get("rank")
    figures: dict[str, Callable[[], Any]] = {
        "perplexity": lambda: _perplexity(record),
        "errors": lambda: _errors(modules),
        "spectra": lambda: _spectra(modules, rank),
        "bytes": lambda: _bytes(record),
        "frontier": lambda: _frontier(decision, _nearest(record)),
        "rivals": lambda: _rivals(decision),
        "bits": lambda: _bits(modules, decision),
    }
    return page_of(
        "report.html.j2",
        {
            "name": name,
            "method": _method(options, decision),
            "tiles": _tiles(record),
            "module_rows": _module_rows(modules),
            "model": flat_pairs(record, "model"),
            "options": flat_pairs(record, "options"),
            "calibration": flat_pairs(record, "calibration"),
            "inputs": flat_pairs(record, "inputs"),
            "versions": flat_pairs(record, "versions"),
            "machine": flat_pairs(record, "machine"),
            "loads_with": flat_pairs(record, "loads_with"),
            "version": str((record.get("versions") or {}).get("lowbit", "")),
            **{key: figure() for key, figure in figures.items()},
        },
    )

"""Every decoder type of the installed transformers, end to end: ``make test-architectures``.

Writes ``docs/results/architectures.md`` and fails when a type is neither equal nor refused for a reason of the list.
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from .run import Outcome, try_architecture
from .sizes import NOT_TRIED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "architectures.md"
ENOUGH = 100  # types that must be equal


def page(outcomes: list[Outcome]) -> str:
    """The results as Markdown."""
    equal = [outcome for outcome in outcomes if outcome.equal]
    refused = [outcome for outcome in outcomes if outcome.reason is not None]
    lines = [
        "# Architectures",
        "",
        f"Every type that transformers {transformers.__version__} maps to a causal or an image-text-to-text class, as "
        "a small model with random weights: compressed to 4 bits with an adapter, then computed by plain transformers "
        "on the files written. `make test-architectures` writes this page.",
        "",
        f"The perplexities of the base, the compressed and the compensated model equal those of plain transformers for "
        f"{len(equal)} types; {len(refused)} are refused.",
        "",
        "## Equal",
        "",
        "*Share* is the part of the parameters of the small model that is in compressed layers. Where PEFT does not "
        "take the adapter, its product was added to the weights.",
        "",
        "| type | class | layers | share | PEFT |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| `{o.kind}` | `{o.name}` | {o.layers} | {o.share:.0%} | {'no' if o.peft else 'yes'} |"
            for o in sorted(equal, key=lambda o: o.kind)
        ),
        "",
        "## Refused",
        "",
        "| reason | types |",
        "| --- | --- |",
    ]
    for reason in dict.fromkeys(o.reason for o in refused if o.reason):
        kinds = ", ".join(f"`{o.kind}`" for o in refused if o.reason is reason)
        lines.append(f"| {reason.value} | {kinds} |")
    lines += ["", "## Not tried", "", "| type | why |", "| --- | --- |"]
    lines += [f"| `{kind}` | {why} |" for kind, why in NOT_TRIED.items()]
    return "\n".join([*lines, ""])


def main(kinds: list[str]) -> int:
    """Try ``kinds``, or all; the exit status."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    every = dict.fromkeys([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES])
    outcomes: list[Outcome] = []
    failed: list[str] = []
    for kind in kinds or [kind for kind in every if kind not in NOT_TRIED]:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = try_architecture(kind, Path(folder))
            except Exception:  # one type must not hide the others
                traceback.print_exc(limit=-2)
                outcome = Outcome(kind)
        verdict = "equal" if outcome.equal else outcome.reason.name if outcome.reason else "FAILS"
        if verdict == "FAILS":
            failed.append(kind)
        outcomes.append(outcome)
        print(f"{kind:<28}{verdict:<16}{time.perf_counter() - started:6.1f} s", outcome.perplexity, flush=True)
    equal = sum(outcome.equal for outcome in outcomes)
    print(Counter("equal" if o.equal else o.reason.name if o.reason else "FAILS" for o in outcomes), "failed:", failed)
    if not kinds:
        PAGE.write_text(page(outcomes), encoding="utf-8")
    return int(bool(failed) or (not kinds and equal < ENOUGH))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

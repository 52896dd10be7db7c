"""Perplexity by streaming equals perplexity by transformers, for every variant."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny, special_tokenizer

from lowbit.data.text import load_rows
from lowbit.recipes.compress import compress
from lowbit.recipes.evaluate import evaluate
from lowbit.recipes.generate import generate
from lowbit.recipes.options import CompressOptions, EvalOptions
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Evaluated, Event

Make = Callable[..., CompressOptions]

# Mean of a few hundred float32 likelihoods near 6: each is off by at most some 1e-6, the mean by less.
SAME_LIKELIHOOD = 1e-6


def plain_nll(model: Any, rows: Any) -> float:
    """Mean negative log-likelihood by the model's own loss."""
    total = 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.as_tensor(row)[None]
            total += float(model(input_ids=ids, labels=ids).loss)
    return total / len(rows)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "phi", "gemma3_text"])
def test_base_model(tiny: Callable[..., Path], text: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny(kind)
    result = evaluate(EvalOptions(path=str(folder), text=str(text), tokens=160, length=32))
    rows = load_rows(str(text), AutoTokenizer.from_pretrained(folder), samples=5, length=32).ids
    expected = plain_nll(AutoModelForCausalLM.from_pretrained(folder), rows)
    assert result.tokens == 5 * 31
    assert result.windows == 5
    assert math.isclose(result.nll / result.tokens, expected, rel_tol=SAME_LIKELIHOOD)
    assert math.isclose(result.perplexity, math.exp(result.nll / result.tokens))


@pytest.mark.parametrize(("single", "given"), [("<s> $A <pad>", 1), ("<pad> <s> $A", 2)])
def test_windows_begin_with_special_tokens_that_are_not_predicted(
    tmp_path: Path, text: Path, single: str, given: int
) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path / "model")
    plain = evaluate(EvalOptions(path=str(folder), text=str(text), tokens=160, length=32))
    tokenizer = special_tokenizer(single)
    tokenizer.save_pretrained(folder)
    options = EvalOptions(path=str(folder), text=str(text), tokens=160, length=32)
    result = evaluate(options)
    begin, own = tokenizer("")["input_ids"][:given], 32 - given
    stream = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    rows = torch.tensor([begin + stream[n * own : (n + 1) * own] for n in range(5)])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=rows).logits[:, given - 1 : -1]
    expected = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, given:].flatten()))
    assert result.tokens == 5 * own
    assert math.isclose(result.nll / result.tokens, expected, rel_tol=SAME_LIKELIHOOD)
    assert result.record(options)["text"]["special_tokens"] == begin
    bare = evaluate(EvalOptions(path=str(folder), text=str(text), tokens=160, length=32, special_tokens="none"))
    assert (bare.perplexity, bare.sha256) == (plain.perplexity, plain.sha256)


def test_a_run_records_what_begins_its_rows_and_measures_with_it(tmp_path: Path, options: Make, text: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    special_tokenizer("<s> $A").save_pretrained(folder)
    bos = special_tokenizer("<s> $A")("")["input_ids"]
    where = {"evaluate": str(text), "evaluate_tokens": 96, "evaluate_length": 32}
    record = compress(options(model=str(folder), **where)).record
    assert record["options"]["special_tokens"] == "auto"
    assert record["calibration"]["special_tokens"] == record["evaluation"]["special_tokens"] == bos
    measured = evaluate(EvalOptions(path=str(folder), text=str(text), tokens=96, length=32))
    assert record["perplexity"]["base"] == measured.perplexity
    assert record["perplexity"]["tokens"] == measured.tokens == 93


def test_a_prompt_begins_as_a_text_does(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path / "model")
    tokenizer = special_tokenizer("<s> $A")
    tokenizer.save_pretrained(folder)
    ids = tokenizer("The quick", return_tensors="pt")["input_ids"]
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert generate(folder, "The quick", max_new_tokens=8) == tokenizer.decode(
        expected[0, ids.shape[1] :], skip_special_tokens=True
    )


def test_three_variants_from_files_equal_those_of_the_run(options: Make, text: Path) -> None:
    chosen = options(evaluate=str(text), evaluate_tokens=96, evaluate_length=32, evaluate_skip=-96)
    result = compress(chosen)
    where = {"text": str(text), "skip_tokens": -96, "tokens": 96, "length": 32}
    base = evaluate(EvalOptions(path=chosen.model, **where))
    compressed = evaluate(EvalOptions(path=str(result.out), **where))
    events: list[Event] = []
    compensated = evaluate(EvalOptions(path=str(result.out), adapter=result.out / "adapter", **where), events.append)
    perplexity = result.record["perplexity"]
    assert base.perplexity == perplexity["base"]
    assert compressed.perplexity == perplexity["compressed"]
    assert compensated.perplexity == perplexity["compensated"]
    assert len({base.perplexity, compressed.perplexity, compensated.perplexity}) == 3
    assert [event.name for event in events if isinstance(event, Evaluated)] == ["compensated"]


def test_record(tiny: Callable[..., Path], text: Path) -> None:
    options = EvalOptions(path=str(tiny("llama")), text=str(text), tokens=64, length=32, skip_tokens=10)
    record = evaluate(options).record(options)
    assert record["schema"] == "lowbit.eval/1"
    assert record["tokens"] == 62
    assert record["text"]["source"] == "text.txt"
    assert record["text"]["skip_tokens"] == 10


def test_all_tokens_by_default_and_from_the_end(tiny: Callable[..., Path], text: Path) -> None:
    folder = str(tiny("llama"))
    size = len(text.read_bytes())
    everything = evaluate(EvalOptions(path=folder, text=str(text), length=64))
    assert everything.windows == size // 64
    tail = evaluate(EvalOptions(path=folder, text=str(text), length=64, skip_tokens=-130))
    assert tail.windows == 2
    with pytest.raises(RecipeError, match="gives 50 tokens in its last 50, but one row of 64 are needed"):
        evaluate(EvalOptions(path=folder, text=str(text), length=64, skip_tokens=-50))


def test_generate(options: Make) -> None:
    chosen = options()
    result = compress(chosen)
    first = generate(chosen.model, "The quick", max_new_tokens=8)
    assert first == generate(chosen.model, "The quick", max_new_tokens=8)
    assert isinstance(generate(result.out, "The quick", adapter=result.out / "adapter", max_new_tokens=8), str)
    drawn = [generate(result.out, "The quick", max_new_tokens=8, greedy=False, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(RecipeError, match="the prompt is empty"):
        generate(chosen.model, "")

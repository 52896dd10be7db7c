"""Perplexity by streaming equals perplexity by transformers, for every variant."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny, special_tokenizer, tiny_config

from lowbit.data.text import load_rows
from lowbit.models.weights import Weights
from lowbit.recipes.compare import Difference, compare
from lowbit.recipes.compress import compress
from lowbit.recipes.evaluate import evaluate
from lowbit.recipes.generate import generate
from lowbit.recipes.options import CompareOptions, CompressOptions, EvalOptions
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Evaluated, Event, Note

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


# ---- against another model -------------------------------------------------------------------------------------------


def plain_distance(ours: Any, theirs: Any, rows: Any) -> tuple[list[float], list[float]]:
    """KL(ours ‖ theirs) per token and agreement of the top token, window by window, from plain logits."""
    kl, agreement = [], []
    with torch.no_grad():
        for row in rows:
            ids = torch.as_tensor(row)[None]
            left, right = (model(input_ids=ids).logits[0, :-1].double() for model in (ours, theirs))
            p, q = left.softmax(-1), right.softmax(-1)
            kl.append(float((p * (p.log() - q.log())).sum(-1).mean()))
            agreement.append(float((left.argmax(-1) == right.argmax(-1)).double().mean()))
    return kl, agreement


def spread(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny LLaMA with other weights, its embeddings and head among them."""
    return save_tiny(tmp_path_factory.mktemp("other") / "other", seed=1)


def test_distance_from_another_model_is_that_of_plain_logits(
    tiny: Callable[..., Path], tmp_path: Path, text: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny("llama", max_position_embeddings=256)
    other = save_tiny(tmp_path / "other", seed=1, max_position_embeddings=256)
    where = {"text": str(text), "tokens": 640, "length": 160}  # windows of more positions than logits are held of
    options = EvalOptions(path=str(other), against=str(folder), **where)
    result = evaluate(options)
    rows = load_rows(str(text), AutoTokenizer.from_pretrained(folder), samples=4, length=160).ids
    models = [AutoModelForCausalLM.from_pretrained(place) for place in (folder, other)]
    kl, agreement = plain_distance(models[0], models[1], rows)
    assert result.against is not None
    assert math.isclose(result.against.kl.value, statistics.fmean(kl), rel_tol=1e-5)
    assert math.isclose(result.against.kl.error or 0, spread(kl), rel_tol=1e-3)
    assert result.against.agreement == pytest.approx((statistics.fmean(agreement), spread(agreement)))
    losses = [plain_nll(models[1], [row]) for row in rows]
    assert math.isclose(result.perplexity_error or 0, result.perplexity * spread(losses), rel_tol=1e-3)
    assert result.perplexity == evaluate(EvalOptions(path=str(other), **where)).perplexity
    against = result.record(options)["against"]
    assert against == {
        "path": str(folder),
        "kl": result.against.kl.value,
        "kl_error": result.against.kl.error,
        "agreement": result.against.agreement.value,
        "agreement_error": result.against.agreement.error,
    }


def test_a_model_is_no_distance_from_itself(tiny: Callable[..., Path], text: Path) -> None:
    folder = str(tiny("llama"))
    result = evaluate(EvalOptions(path=folder, against=folder, text=str(text), tokens=96, length=32))
    assert result.against == ((0, 0), (1, 0))
    single = evaluate(EvalOptions(path=folder, against=folder, text=str(text), tokens=32, length=32))
    assert (single.against, single.perplexity_error) == (((0, None), (1, None)), None)


def test_special_tokens_give_no_distance(tmp_path: Path, text: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = special_tokenizer("<pad> <s> $A")
    folders = [save_tiny(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    for folder in folders:
        tokenizer.save_pretrained(folder)
    where = {"text": str(text), "tokens": 96, "length": 32}
    result = evaluate(EvalOptions(path=str(folders[1]), against=str(folders[0]), **where))
    rows = torch.as_tensor(load_rows(str(text), tokenizer, samples=3, length=32).ids)
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(folder)(input_ids=rows).logits[:, 1:-1] for folder in folders]
    log_p, log_q = (each.double().log_softmax(-1) for each in logits)
    assert result.against is not None
    assert math.isclose(result.against.kl.value, float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel_tol=1e-5)


def test_the_run_records_the_distances_that_are_measured_from_its_files(options: Make, text: Path) -> None:
    chosen = options(evaluate=str(text), evaluate_tokens=96, evaluate_length=32)
    result = compress(chosen)
    found = result.record["perplexity"]["against_base"]
    where = {"text": str(text), "tokens": 96, "length": 32, "against": chosen.model}
    for name, adapter in (("compressed", None), ("compensated", result.out / "adapter")):
        measured = evaluate(EvalOptions(path=str(result.out), adapter=adapter, **where))
        assert measured.against is not None
        assert measured.against.kl.value > 0
        assert found[name] == measured.against.record()
    where = {"evaluate": str(text), "evaluate_tokens": 48, "evaluate_length": 24}
    bare = compress(options(out=result.out.parent / "bare", compensate="none", **where))
    assert bare.record["perplexity"]["against_base"]["compensated"] is None


def test_models_of_other_tokens_are_refused_by_name(tmp_path: Path, tiny: Callable[..., Path], text: Path) -> None:
    base = str(tiny("llama"))
    padded = save_tiny(tmp_path / "padded", vocab_size=tiny_config("llama").vocab_size + 8)
    with pytest.raises(RecipeError, match=r"padded knows \d+ tokens and .*llama \d+: .* need one vocabulary"):
        evaluate(EvalOptions(path=str(padded), against=base, text=str(text), tokens=64, length=32))
    begun = save_tiny(tmp_path / "begun")
    special_tokenizer("<s> $A").save_pretrained(begun)
    with pytest.raises(RecipeError, match=r"llama makes other tokens of text.txt than .*begun: .* need one tokenizer"):
        evaluate(EvalOptions(path=str(begun), against=base, text=str(text), tokens=64, length=32))


def test_an_original_whose_logits_are_not_finite_is_named(
    tmp_path: Path, tiny: Callable[..., Path], text: Path
) -> None:
    broken = save_tiny(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"].fill_(3e38)  # finite as it is stored, not in the logits
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    where = {"text": str(text), "tokens": 64, "length": 32}
    with pytest.raises(RecipeError, match="the original model gives NaN or infinite logits in window 0"):
        evaluate(EvalOptions(path=str(tiny("llama")), against=str(broken), **where))


def test_two_models_are_compared_window_by_window(tiny: Callable[..., Path], other: Path, text: Path) -> None:
    from scipy import stats
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = [tiny("llama"), other, tiny("llama")]  # B is the original itself
    options = CompareOptions(
        a=str(folders[1]), b=str(folders[2]), against=str(folders[0]), text=str(text), tokens=160, length=32
    )
    record = compare(options).record(options)
    rows = load_rows(str(text), AutoTokenizer.from_pretrained(other), samples=5, length=32).ids
    original, a = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders[:2])
    kl, _ = plain_distance(original, a, rows)
    losses = [[plain_nll(model, [row]) for row in rows] for model in (a, original)]
    for key, columns in (("kl", (kl, [0.0] * 5)), ("nll", losses)):
        expected = stats.ttest_rel(columns[0], columns[1])
        found = record["difference"][key]
        assert (found["t"], found["p"]) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-3)
        assert found["value"] == pytest.approx(statistics.fmean(columns[0]) - statistics.fmean(columns[1]), rel=1e-5)
    assert record["schema"] == "lowbit.compare/1"
    assert record["a"]["kl"] == pytest.approx(statistics.fmean(kl), rel=1e-5)
    assert record["b"]["kl"] == 0
    assert record["against"]["perplexity"] == record["b"]["perplexity"]
    assert "kl" not in record["against"]


def test_no_more_is_in_memory_than_a_block_or_what_lies_outside_the_blocks_of_two_models(
    tiny: Callable[..., Path], other: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []
    most: list[list[str]] = []

    def watched(kind: str) -> Any:
        own = getattr(Weights, kind)

        @contextlib.contextmanager
        def hold(self: Weights, *args: Any, **kwargs: Any) -> Iterator[None]:
            with own(self, *args, **kwargs):
                held.append(kind)
                most.append(sorted(held))
                yield
                held.remove(kind)

        return hold

    for kind in ("outer", "block"):
        monkeypatch.setattr(Weights, kind, watched(kind))
    folder = str(tiny("llama"))
    compare(CompareOptions(a=folder, b=str(other), against=folder, text=str(text), tokens=64, length=32))
    assert ["outer", "outer"] in most
    # The first block is run once beside the embeddings of its own model, to see what its result looks like.
    assert {tuple(each) for each in most} == {("outer",), ("block",), ("outer", "outer"), ("block", "outer")}


def test_adapters_of_both_are_compared(options: Make, text: Path) -> None:
    chosen = options(evaluate=str(text), evaluate_tokens=96, evaluate_length=32)
    out = compress(chosen).out
    where = {"against": chosen.model, "text": str(text), "tokens": 96, "length": 32}
    record = json.loads((out / "lowbit.json").read_text())["perplexity"]
    for sides in ("ab", "ba"):  # the adapter of either
        adapter: dict[str, Any] = {f"adapter_{sides[0]}": out / "adapter"}
        asked = CompareOptions(a=str(out), b=str(out), **adapter, **where)
        found = compare(asked).record(asked)
        for side, name in zip(sides, ("compensated", "compressed"), strict=True):
            assert found[side]["kl"] == record["against_base"][name]["kl"]
            assert found[side]["perplexity"] == record[name]


def test_an_adapter_that_names_no_base_is_measured_and_said_to_be_unbound(options: Make, text: Path) -> None:
    out = compress(options()).out
    events: list[Event] = []
    where = {"path": str(out), "text": str(text), "tokens": 96, "length": 32, "adapter": out / "adapter"}
    evaluate(EvalOptions(**where), events.append)
    assert not [event for event in events if isinstance(event, Note)]
    weights = out / "adapter" / "adapter_model.safetensors"
    save_file(load_file(weights), weights)
    evaluate(EvalOptions(**where), events.append)
    (note,) = [event.message for event in events if isinstance(event, Note)]
    assert "is not bound to a base by a fingerprint of its weights: only its shapes are compared" in note


def test_equal_models_differ_by_nothing_and_a_single_window_is_refused(tiny: Callable[..., Path], text: Path) -> None:
    folder = str(tiny("llama"))
    three = {"a": folder, "b": folder, "against": folder, "text": str(text), "length": 32}
    assert compare(CompareOptions(tokens=64, **three)).kl == Difference(0, 0, None, None)
    with pytest.raises(RecipeError, match=r"text.txt gives 1 window of 32 tokens, but a comparison needs at least 2"):
        compare(CompareOptions(tokens=32, **three))

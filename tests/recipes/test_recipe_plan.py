"""A plan: statistics once, then any size; what a compression makes of a decision, and what it promised."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recipe_settings import weight_files
from tiny_models import contents

from lowbit.compression import shards
from lowbit.compression.setting import Setting
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.models.decoder import Decoder
from lowbit.recipes import planning
from lowbit.recipes.compress import compress
from lowbit.recipes.decide import is_plan, read_plan
from lowbit.recipes.evaluate import evaluate
from lowbit.recipes.options import CompressOptions, EvalOptions, PlanOptions, parse_options
from lowbit.recipes.plan import plan
from lowbit.report.schema import load_schema, problems
from lowbit.runs.errors import RecipeError

Make = Callable[..., CompressOptions]


@pytest.fixture(scope="module")
def asked(tiny: Callable[..., Path], text: Path) -> Callable[..., dict[str, Any]]:
    """Options of a plan or of a compression of the tiny LLaMA, or another model."""

    def make(out: Path, kind: str = "llama", **changes: Any) -> dict[str, Any]:
        fields = {"model": str(tiny(kind)), "out": out, "calibration": str(text), "samples": 3, "length": 24}
        return fields | {"group_size": 16} | changes

    return make


@pytest.fixture(scope="module")
def plans(asked: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``plans(kind)``: the directory of a plan, made once."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("plan") / "plan"
            plan(parse_options(PlanOptions, **asked(made[kind], kind)))
        return made[kind]

    return make


@pytest.fixture
def planned(plans: Callable[[str], Path]) -> Path:
    """The directory of a plan of the tiny LLaMA."""
    return plans("llama")


def sizes_of(folder: Path) -> tuple[int, int]:
    """Least bytes, and bytes of what was given."""
    found = plan(parse_options(PlanOptions, model=str(folder), out=folder))
    return found.table.least, found.table.given


def test_a_plan_covers_every_module_and_every_setting(planned: Path, asked: Callable[..., dict[str, Any]]) -> None:
    record = read_plan(planned)
    assert not list(problems(record, load_schema("lowbit-plan-1")))
    inventory = Decoder(open_checkpoint(asked(planned)["model"])).inventory
    assert [m["name"] for m in record["modules"]] == [*inventory.named, *inventory.outer_modules]
    settings = [Setting(*row) for row in record["settings"]]
    dense = settings.index(Setting(16, None, 0, 16))
    for row in record["modules"]:
        assert row["kl"][dense] == 0.0
        known = {s: kl for s, kl in zip(settings, row["kl"], strict=True) if kl is not None}
        for bits in (2, 3, 4, 5, 6):
            wider = next(b for b in (3, 4, 5, 6, 8) if b > bits)
            assert known[Setting(wider, 16, 0, 16)] < known[Setting(bits, 16, 0, 16)]
            if row["block"] is not None:
                assert (
                    known[Setting(bits, 16, 8, 16)] <= known[Setting(bits, 16, 4, 16)] < known[Setting(bits, 16, 0, 16)]
                )
                assert known[Setting(bits, 16, 4, 16)] < known[Setting(bits, 16, 4, 8)] < known[Setting(bits, 16, 4, 4)]
        assert known[Setting(3, 16, 0, 16)] < known[Setting(3, 32, 0, 16)]
        if row["block"] is None:
            assert {s.rank for s in known} == {0}
    page = (planned / "plan.html").read_text()
    assert "predicted KL" in page
    names = {path.name for path in planned.iterdir()}
    assert {"plan.json", "plan.html", "head.safetensors", "embedding.safetensors", "SHA256SUMS"} <= names
    assert not (planned / ".lowbit").exists()


def test_a_further_size_needs_no_model(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but plan.json is read: the model and its statistics are not touched."""
    monkeypatch.setattr(planning, "collect_statistics", None)
    monkeypatch.setattr(planning, "open_job", None)
    least, given = sizes_of(planned)
    before = 1e9
    for size in (least, (least + given) // 2, given):
        found = plan(parse_options(PlanOptions, model=str(planned), out=planned, size=str(size)))
        assert found.decision is not None
        assert found.settled is not None
        assert found.decision.bytes <= size
        assert found.decision.lower_bound <= found.decision.kl < before
        assert set(found.settled["settings"]) == {m["name"] for m in found.record["modules"]}
        before = found.decision.kl
    curve = plan(parse_options(PlanOptions, model=str(planned), out=planned)).sizes(6)
    assert 3 <= len(curve) <= 6
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(curve))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "opt"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_files_are_no_larger_than_was_asked_for(
    plans: Callable[[str], Path], asked: Callable[..., dict[str, Any]], tmp_path: Path, kind: str, share: float
) -> None:
    beside = plans(kind)
    least, given = sizes_of(beside)
    size = int(least + share * (given - least))
    result = compress(parse_options(CompressOptions, **asked(tmp_path / "out", kind, size=str(size), plan=beside)))
    assert 0.9 * size - 4000 <= weight_files(result.out) <= result.record["decision"]["bytes"] <= size
    assert result.record["totals"]["bytes_shipped"] == weight_files(result.out)


def test_a_plan_on_the_way_is_the_plan_beside(
    planned: Path, asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    size = str(sum(sizes_of(planned)) // 2)
    first = compress(parse_options(CompressOptions, **asked(tmp_path / "a", size=size, plan=planned)))
    second = compress(parse_options(CompressOptions, **asked(tmp_path / "b", size=size)))
    assert contents(first.out) == contents(second.out)
    assert compress(parse_options(CompressOptions, **asked(tmp_path / "b", size=size))).already_done
    assert not (tmp_path / "b" / ".lowbit").exists()


def test_a_record_says_what_was_decided_and_the_files_hold_it(
    planned: Path, asked: Callable[..., dict[str, Any]], text: Path, tmp_path: Path
) -> None:
    least, given = sizes_of(planned)
    size = str(int(least + 0.3 * (given - least)))
    words = {"evaluate": str(text), "evaluate_tokens": 96, "evaluate_length": 24}
    result = compress(parse_options(CompressOptions, **asked(tmp_path / "out", size=size, plan=planned, **words)))
    record = result.record
    assert not list(problems(record, load_schema("lowbit-compress-1")))
    settings = {name: Setting(*row) for name, row in record["decision"]["settings"].items()}
    for found in record["modules"]:
        assert (found["bits"], found["rank"]) == (settings[found["name"]].bits, settings[found["name"]].rank)
        assert found["kl"] >= 0
    assert "Bits and ranks" in (result.out / "report.html").read_text()
    distance = record["perplexity"]["against_base"]["compensated"]
    again = evaluate(
        EvalOptions(path=str(result.out), adapter=result.out / "factors", against=asked(tmp_path)["model"],
                    text=str(text), tokens=96, length=24)
    )  # fmt: skip
    assert again.against is not None
    assert again.against.kl.value == pytest.approx(distance["kl"], rel=1e-4)
    assert distance["kl"] < 4 * record["decision"]["kl_predicted"] + 1e-6


def test_less_is_lost_than_by_one_setting_of_the_same_bytes(
    asked: Callable[..., dict[str, Any]], text: Path, tmp_path: Path
) -> None:
    words = {"evaluate": str(text), "evaluate_tokens": 480, "evaluate_length": 24}
    uniform = compress(
        parse_options(
            CompressOptions, **asked(tmp_path / "a", bits=3, rank=4, quantizer="gptq", adapter_bits=8, **words)
        )
    )
    size = uniform.record["totals"]["bytes_shipped"]
    found = compress(parse_options(CompressOptions, **asked(tmp_path / "b", size=str(size), **words)))
    assert found.record["totals"]["bytes_shipped"] <= size
    kl = [result.record["perplexity"]["against_base"]["compensated"]["kl"] for result in (uniform, found)]
    assert kl[1] < 0.65 * kl[0]


def test_pins_hold(planned: Path, asked: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    least, given = sizes_of(planned)
    pins = {"keep": "embed_tokens,*.1.self_attn.o_proj", "bits_of": "mlp.*=4, mlp.down_proj=6"}
    size = str(int(least + 0.75 * (given - least)))
    result = compress(parse_options(CompressOptions, **asked(tmp_path / "out", size=size, plan=planned, **pins)))
    for name, (bits, _, rank, _) in result.record["decision"]["settings"].items():
        if name.endswith(("embed_tokens", "1.self_attn.o_proj")):
            assert (bits, rank) == (16, 0)
        elif "mlp" in name:
            assert bits == (6 if name.endswith("down_proj") else 4)


def test_bits_per_weight_and_divergence_are_sizes_too(planned: Path) -> None:
    def decide(**words: Any) -> Any:
        return plan(parse_options(PlanOptions, model=str(planned), out=planned, **words)).decision

    record = read_plan(planned)
    by_bits = decide(bits_per_weight=9)
    assert by_bits == decide(size=str(9 * record["bytes_16"] // 16))
    near = decide(max_kl=by_bits.kl)
    assert near.kl <= by_bits.kl
    assert near.bytes <= by_bits.bytes * 1.002


@pytest.mark.parametrize(
    "words, message",
    [
        ({"size": "1KB"}, "1,000 bytes are too few: the smallest that this model can be made here is"),
        ({"size": "1GB"}, "1,000,000,000 bytes are more than the model takes as it is"),
        ({"size": "much"}, "option size: 'much' is no size"),
        ({"size": "1MB", "max_kl": 0.1}, "size, bits_per_weight and max_kl ask for the same thing"),
        ({"size": "1MB", "rank": 8}, "rank is what a size decides"),
        ({"size": "1MB", "bits": 4}, "bits is what a size decides"),
        ({"size": "1MB", "sparsity": "2:4"}, "sparsity is not decided"),
        ({"size": "1MB", "keep": "lm_heads"}, "pattern 'lm_heads' fits no module"),
        ({"size": "1MB", "bits_of": "lm_head"}, "option bits_of: 'lm_head' is not of the form PATTERN=N"),
        ({"size": "1MB", "bits_of": "lm_head=7"}, "7 bits are not in the plan, which has 2, 3, 4, 5, 6, 8, 16"),
        ({"keep": "lm_head"}, "plan, keep and bits_of belong to a decision"),
        ({"max_kl": 0.1, "samples": 2}, "a finished run with other settings"),
        ({"max_kl": 0.1, "kind": "opt"}, "a finished run with other settings"),
    ],
)
def test_what_cannot_be_decided_is_refused(
    planned: Path, asked: Callable[..., dict[str, Any]], tmp_path: Path, words: dict[str, Any], message: str
) -> None:
    words = {"plan": planned, **words} if "keep" not in words or len(words) > 1 else words
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        compress(parse_options(CompressOptions, **asked(tmp_path / "out", **words)))
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_mixture_of_experts_is_refused_before_its_statistics(
    asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="experts of a mixture get; give --bits and --rank"):
        plan(parse_options(PlanOptions, **asked(tmp_path / "plan", "qwen3_moe", symmetric=True)))
    assert not (tmp_path / "plan").exists()


def test_a_refused_size_leaves_nothing_that_refuses_another(
    asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    def run(**words: Any) -> Any:
        return compress(parse_options(CompressOptions, **asked(tmp_path / "out", **words)))

    with pytest.raises(RecipeError, match="too few"):
        run(size="1KB")
    with pytest.raises(RecipeError, match="too few"):
        run(size="1KB", samples=2)
    assert run(max_kl=0.5, samples=2).record["decision"]["kl_predicted"] <= 0.5


def test_damaged_plans_are_named(planned: Path, tmp_path: Path) -> None:
    copy = tmp_path / "plan"
    shutil.copytree(planned, copy)
    record = json.loads((copy / "plan.json").read_text())
    for damage in (
        b"",
        b"{",
        json.dumps(record | {"modules": []}).encode(),
        json.dumps({**record, "settings": 3}).encode(),
    ):
        (copy / "plan.json").write_bytes(damage)
        with pytest.raises(RecipeError, match=r"plan\.json: no "):
            plan(parse_options(PlanOptions, model=str(copy), out=copy))


def test_a_changed_plan_is_not_taken(planned: Path, asked: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    copy = tmp_path / "plan"
    shutil.copytree(planned, copy)
    file = next(copy.glob("gradients-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(RecipeError, match="missing or was changed since"):
        compress(parse_options(CompressOptions, **asked(tmp_path / "out", max_kl=0.1, plan=copy)))


def test_rows_of_an_embedding_are_weighed(planned: Path, asked: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """By the moments of all their uses, so that what the model loses is less than by rounding to nearest."""
    decoder = Decoder(open_checkpoint(asked(planned)["model"]))
    moments = planning.Moments(planned, decoder.inventory)
    job = planning.open_job(parse_options(PlanOptions, **asked(tmp_path)), lambda _: None)
    for name in decoder.inventory.outer_modules:
        moment, w = moments.rows(name), decoder.weights.read(f"{name}.weight").to(torch.float32)
        assert moment is not None
        method = replace(job.method, settings={name: Setting(3, 16, 0, 16)}).of(name)
        losses = []
        for given in (moment, None):
            parts = shards.quantize_outer(method, job.arrays, [w], given)
            from lowbit.formats.packed.compressed_tensors import dequantize_module

            d = (w - dequantize_module({f".{k}": v for k, v in parts.items()}, bits=3, scheme=method.scheme)).double()
            losses.append(float(((d @ moment) * d).sum()))
        assert losses[0] < 0.8 * losses[1]


def test_a_plan_says_which_model_it_is_of(planned: Path) -> None:
    assert is_plan(planned)
    assert not is_plan(planned.parent)
    assert read_plan(planned)["options"]["model"] == "llama"

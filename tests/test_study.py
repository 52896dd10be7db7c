"""The study of quality at equal bytes: originals compute what they came from, the page says what was measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
torch = pytest.importorskip("torch", reason="needs the extra torch")

from lowbit.formats.checkpoint import open_checkpoint  # noqa: E402

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "bytes"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
def test_a_grid_free_copy_computes_the_same(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    originals = script("originals", monkeypatch)
    torch.manual_seed(0)
    model_class = {"Llama": "LlamaForCausalLM", "Gemma3Text": "Gemma3ForCausalLM"}[kind]
    model = getattr(transformers, model_class)(getattr(transformers, f"{kind}Config")(**SMALL)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(torch.rand_like(parameter))

    model.save_pretrained(tmp_path)
    source = open_checkpoint(tmp_path)
    copy = {name: w.float() for name, w in originals.grid_free(source).items()}
    ids = torch.arange(5, 37)[None]
    with torch.no_grad():
        before = model(ids).logits
        changed = sum(not torch.allclose(w, source.read(name), rtol=0.05) for name, w in copy.items())
        model.load_state_dict(copy, strict=False)
        after = model(ids).logits
    assert changed == 9 * 2  # seven layers and two norms of each block
    assert float((after - before).abs().max()) <= 0.03 * float(before.abs().max())


def line(name: str, family: str, size: int, kl: float, **more: Any) -> dict[str, Any]:
    noise = np.random.default_rng(len(name)).uniform(0.9, 1.1, 16)
    return {
        "text": "wikitext2", "windows": 16, "name": name, "family": family, "bytes": size, "perplexity": 30 + kl,
        "kl": (kl * noise).tolist(), **more,
    }  # fmt: skip


def test_the_page_has_a_section_for_what_was_measured_and_none_besides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = script("page", monkeypatch)
    monkeypatch.setattr(page, "RECORDS", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "bytes.md")
    uniform = {"bits": 3, "rank": 0, "embedding": 4}
    records = [
        line("original", "original", 2_000_000, 0),
        line("uniform-rtn-3+e4", "uniform rtn", 430_000, 0.8, **uniform),
        line("uniform-gptq-3+e4", "uniform gptq", 430_000, 0.4, **uniform),
        line("peer-nf4+e4", "bitsandbytes", 470_000, 0.3, bits=4, embedding=4, version="1"),
        line("decision-3.5", "decision", 437_500, 0.2),
        line("decision-4", "decision", 500_000, 0.1),
    ]
    del records[0]["kl"]
    (tmp_path / "smollm2.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page.main()
    text = (tmp_path / "bytes.md").read_text(encoding="utf-8")
    assert "Gemma-3-270M," not in text
    assert "C4 documents" not in text
    assert "| 3.5 | GPTQ 3 bits, embedding 4 bits | 3.44 | 0.4 |" in text  # the better of two equal sizes
    decided = next(row for row in text.splitlines() if row.startswith("| 3.5 | **decision**"))
    assert "% below, t = " in decided
    peer = next(row for row in text.splitlines() if row.startswith("| bitsandbytes"))
    assert "(between sizes)" in peer
    assert "by chance" not in text


def test_a_size_between_two_records_is_on_the_line_through_their_logarithms(monkeypatch: pytest.MonkeyPatch) -> None:
    page = script("page", monkeypatch)
    two = [{"bytes": 100, "kl": [0.4, 0.2]}, {"bytes": 200, "kl": [0.1, 0.2]}]
    assert page.between(two, 150) == pytest.approx([0.2, 0.2])
    assert page.between(two, 200) == pytest.approx([0.1, 0.2])
    assert page.between(two, 201) is None


def test_an_embedding_is_the_widest_that_a_size_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = script("measure", monkeypatch)
    values = 8_000_000  # a size of n bits per weight is n million bytes
    assert measure.fitting({3: 3_300_000, 4: 3_450_000, 5: 3_600_000}, values) == [4]
    assert measure.fitting({3: 3_100_000, 8: 9_000_000}, values) == []

"""What is stored is finite in the type that it is stored in, or the run is refused before its long work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

from lowbit.models.weights import stored_as
from lowbit.recipes.compress import compress
from lowbit.recipes.options import CompressOptions
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import BlockStarted, Event

Make = Callable[..., CompressOptions]


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("biased") / "m", dtype=torch.bfloat16, mlp_bias=True, attention_bias=True)


def enlarged(model: Path, folder: Path, name: str, value: float) -> Path:
    """A copy of a model with one large value."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[5] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.layers.1.mlp.down_proj.bias",
    ],
)
def test_what_float16_cannot_hold_is_refused_before_the_first_block(
    options: Make, biased: Path, tmp_path: Path, name: str
) -> None:
    model = str(enlarged(biased, tmp_path / "large", name, 1e5))
    events: list[Event] = []
    with pytest.raises(RecipeError) as caught:
        compress(options(model=model, dtype="float16"), events.append)
    assert f"tensor {name} holds 99840 at " in str(caught.value)
    assert str(caught.value).endswith("which float16 cannot hold: choose --dtype bfloat16 or float32")
    assert not any(isinstance(event, BlockStarted) for event in events)
    compress(options(model=model))  # in the same directory, with the type that the message names


@pytest.mark.parametrize(
    "value, changes, what",
    [
        (1e7, {}, r"\[Q-2\] a scale of .* overflows float16"),
        (3e5, {"bits": 8}, "its weight, as a reader unpacks it, holds .* float16"),
        (3e5, {"bits": 16, "sparsity": "2:4"}, "its weight holds .* float16"),
    ],
)
def test_so_are_scales_unpacked_and_dense_weights(
    options: Make, biased: Path, tmp_path: Path, value: float, changes: dict[str, object], what: str
) -> None:
    model = str(enlarged(biased, tmp_path / "large", "model.layers.0.mlp.up_proj.weight", value))
    with pytest.raises(RecipeError, match=rf"layers\.0\.mlp\.up_proj: {what}.*: choose .*--dtype"):
        compress(options(model=model, dtype="float16", **changes))


def test_the_largest_value_is_held_and_the_next_is_not() -> None:
    largest = torch.finfo(torch.float16).max
    assert stored_as(torch.float16, torch.tensor([largest]), "x")[0] == largest
    with pytest.raises(RecipeError, match=r"x holds 65520 at \(0,\), which float16 cannot hold"):
        stored_as(torch.float16, torch.tensor([65520.0]), "x")
    with pytest.raises(RecipeError, match="which bfloat16 cannot hold: choose --dtype float32"):
        stored_as(torch.bfloat16, torch.tensor([torch.finfo(torch.float32).max]), "x")

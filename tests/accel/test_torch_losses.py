"""Distillation losses under autograd: sums of them, upstream factors, half precision, one buffer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from lowbit import nn as losses  # noqa: E402
from lowbit.accel.torch_cuda import diagnostics, distill  # noqa: E402

LENGTHS = torch.tensor([4, 2])
LABELS = torch.tensor([[0, -100, 2, 1], [1, 1, 0, -100]])
CASES: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], object]]] = {
    "logit_loss": ((3, 5), losses.logit_loss, distill.logit_loss),
    "token_loss": (
        (2, 4, 5),
        lambda s, t: losses.token_loss(s, t, LABELS),
        lambda s, t: distill.token_loss(s, t, LABELS),
    ),
    "feature_loss": (
        (2, 4, 5),
        lambda s, t: losses.feature_loss(s, t, LENGTHS),
        lambda s, t: distill.feature_loss(s, t, LENGTHS),
    ),
    "score_loss": ((2, 3, 4, 4), losses.score_loss, distill.score_loss),
    "attention_map_loss": (
        (2, 3, 4, 4),
        lambda s, t: losses.attention_map_loss(s, t, LENGTHS),
        lambda s, t: distill.attention_map_loss(s, t, LENGTHS),
    ),
}


OPTIONS: list[tuple[str, dict[str, object]]] = [
    ("logit_loss", {"temperature": 3.0, "divergence": "kl"}),
    ("token_loss", {"temperature": 0.5, "ignored": "skip"}),
    ("score_loss", {"floor": -0.5, "causal": True}),
    ("attention_map_loss", {"floor": 0.2}),
]
"""Options that are none of the defaults; the last argument of an operation is that of its case."""


def draw(*shape: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=made, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_gradient_of_the_operation(name: str) -> None:
    shape, differentiable, operation = CASES[name]
    student, teacher = draw(*shape)
    loss = differentiable(student * 2, teacher)
    (3 * loss).backward()
    expected = operation((student * 2).detach(), teacher)
    assert loss.shape == ()
    assert loss.item() == expected.loss  # type: ignore[attr-defined]
    assert student.grad is not None
    assert torch.allclose(student.grad, 6 * expected.gradient, rtol=1e-14)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name, options", OPTIONS)
def test_every_option_reaches_the_operation(name: str, options: dict[str, object]) -> None:
    """Loss and gradient are those of the options given, and not those of the defaults."""
    student, teacher = draw(*CASES[name][0])
    more = {"token_loss": (LABELS,), "attention_map_loss": (LENGTHS,)}.get(name, ())
    loss = getattr(losses, name)(student, teacher, *more, **options)
    loss.backward()
    expected = getattr(distill, name)(student.detach(), teacher, *more, **options)
    assert loss.item() == expected.loss
    assert student.grad is not None
    assert torch.equal(student.grad, expected.gradient)
    plain = getattr(distill, name)(student.detach(), teacher, *more)
    assert plain.loss != expected.loss
    assert not torch.equal(plain.gradient, expected.gradient)
    for option in options:  # each of them alone matters too
        rest = {key: value for key, value in options.items() if key != option}
        assert getattr(distill, name)(student.detach(), teacher, *more, **rest).loss != expected.loss


def test_all_features_without_lengths() -> None:
    student, teacher = draw(2, 4, 5)
    losses.feature_loss(student, teacher).backward()
    assert student.grad is not None
    assert torch.equal(student.grad, distill.feature_loss(student.detach(), teacher).gradient)


def test_a_half_precision_student_gets_half_precision_gradients() -> None:
    student, teacher = draw(3, 5)
    low = student.detach().bfloat16().requires_grad_()
    losses.logit_loss(low, teacher.bfloat16()).backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16


def test_a_second_backward_pass_is_refused() -> None:
    student, teacher = draw(3, 5)
    loss = losses.logit_loss(student, teacher)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        loss.backward()


def test_the_hessian_operator_is_the_hessian() -> None:
    """Of a network with two parameters tensors, against torch's explicit one; and its largest eigenvalue."""
    made = torch.Generator().manual_seed(1)
    x, y = (torch.randn(9, k, generator=made, dtype=torch.float64) for k in (3, 2))
    w, b = (torch.randn(s, generator=made, dtype=torch.float64).requires_grad_() for s in ((2, 3), (2,)))

    def loss() -> Tensor:
        return (torch.tanh(x @ w.T + b) - y).square().mean() + 0.01 * (w.norm() + b.norm())

    def flat(p: Tensor) -> Tensor:
        return (torch.tanh(x @ p[:6].reshape(2, 3).T + p[6:]) - y).square().mean() + 0.01 * (
            p[:6].norm() + p[6:].norm()
        )

    explicit = torch.autograd.functional.hessian(flat, torch.cat([w.detach().reshape(-1), b.detach()]))
    operator = diagnostics.hessian_operator(loss, [w, b])
    columns = torch.stack([operator(e) for e in torch.eye(8, dtype=torch.float64)])
    assert torch.allclose(columns, explicit, atol=1e-14)
    start = torch.randn(2, 8, generator=made, dtype=torch.float64)
    found = diagnostics.power_eigenvalues(operator, start, stop="residual", tolerance=1e-8, iterations=500)
    spectrum = torch.linalg.eigvalsh(explicit)
    assert abs(float(found.value[0]) - float(spectrum[spectrum.abs().argmax()])) < 1e-7
    assert w.grad is None

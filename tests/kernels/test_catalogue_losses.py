"""Losses over a catalogue against torch's cross-entropy of all logits at once, in value and gradient."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kernels import catalogue_losses as module
from kernels.catalogue_losses import FactoredLogits, catalogue_losses


@pytest.fixture(autouse=True, scope="module")
def small_parts() -> Iterator[None]:
    """Parts of two rows, so that every test has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PART_BYTES", {"cpu": 1})
        patch.setattr(module, "_FEWEST_ROWS", 2)
        yield


def make_heads(rows: int, items: int, widths: tuple[int, ...], scale: float, seed: int) -> list[FactoredLogits]:
    """Heads with terms at three columns a row, some of them twice, but for the last one."""
    generator = torch.Generator().manual_seed(seed)
    heads = []
    for width in widths:
        states = (scale * torch.randn(rows, width, generator=generator)).requires_grad_()
        vectors = torch.randn(items, width, generator=generator).requires_grad_()
        columns = torch.randint(items, (rows, 3), generator=generator)
        terms = torch.randn(rows, 3, generator=generator).requires_grad_()
        heads.append(FactoredLogits(states, vectors, columns, terms))
    return [*heads[:-1], FactoredLogits(heads[-1].states_ME, heads[-1].vectors_NE)]


def learnt(heads: list[FactoredLogits]) -> list[Tensor]:
    tensors = (tensor for head in heads for tensor in (head.states_ME, head.vectors_NE, head.terms_MS))
    return [tensor for tensor in tensors if tensor is not None]


def test_four_even_items_by_hand() -> None:
    states_ME, vectors_NE = torch.ones(1, 1, requires_grad=True), torch.zeros(4, 1, requires_grad=True)
    read: list[Tensor] = []
    head = FactoredLogits(states_ME, vectors_NE)
    losses_H = catalogue_losses([head], torch.tensor([2]), read=lambda _, probs_CN: read.append(probs_CN.clone()))
    losses_H.sum().backward()
    torch.testing.assert_close(losses_H.detach(), torch.tensor([4.0]).log())
    torch.testing.assert_close(read, [torch.full((1, 4), 0.25)])
    torch.testing.assert_close(vectors_NE.grad, torch.tensor([[0.25], [0.25], [-0.75], [0.25]]))
    torch.testing.assert_close(states_ME.grad, torch.zeros(1, 1))


@given(st.integers(1, 7), st.integers(1, 9), st.floats(0.1, 30), st.booleans(), st.integers(0, 2**31))
def test_values_gradients_and_means_are_those_of_torch(
    rows: int, items: int, scale: float, weighted: bool, seed: int
) -> None:
    heads = make_heads(rows, items, (5, 3, 4), scale, seed)
    generator = torch.Generator().manual_seed(seed)
    targets_M = torch.randint(items, (rows,), generator=generator)
    weights_M = 0.1 + torch.rand(rows, generator=generator) if weighted else None
    scales_H, read_MN = torch.rand(3, generator=generator), torch.full((rows, items), torch.nan)
    ours_H = catalogue_losses(heads, targets_M, weights_M, read_MN.__setitem__)
    shares_M = torch.full((rows,), 1 / rows) if weights_M is None else weights_M / weights_M.sum()
    by_row = [F.cross_entropy(head.logits(), targets_M, reduction="none") for head in heads]
    expected_H = torch.stack([(shares_M * losses_M).sum() for losses_M in by_row])
    torch.testing.assert_close(ours_H, expected_H, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read_MN, torch.stack([head.logits().softmax(dim=-1) for head in heads]).mean(0).detach())
    ours, expected = (torch.autograd.grad((scales_H * losses).sum(), learnt(heads)) for losses in (ours_H, expected_H))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_target_too_rare_for_a_float_still_has_its_loss_and_pull() -> None:
    states_ME = torch.eye(2, requires_grad=True)
    vectors_NE = torch.tensor([[0.0, 0.0], [200.0, 1.0]])
    losses_H = catalogue_losses([FactoredLogits(states_ME, vectors_NE)], torch.tensor([0, 0]))
    losses_H.sum().backward()
    expected = (200 + torch.tensor([0.0, 1.0]).logsumexp(0).item()) / 2
    assert losses_H.item() == pytest.approx(expected)
    torch.testing.assert_close(states_ME.grad[0], torch.tensor([100.0, 0.5]))


def test_autocast_multiplies_in_its_own_precision() -> None:
    heads, targets_M = make_heads(6, 9, (5, 3, 4), 1.0, seed=0), torch.arange(6)
    exact = torch.autograd.grad(catalogue_losses(heads, targets_M).sum(), learnt(heads))
    with torch.autocast("cpu", torch.bfloat16):
        losses_H = catalogue_losses(heads, targets_M)
        expected_H = torch.stack([F.cross_entropy(head.logits(), targets_M) for head in heads])
    torch.testing.assert_close(losses_H, expected_H)
    found = torch.autograd.grad(losses_H.sum(), learnt(heads))
    assert [tensor.dtype for tensor in found] == [torch.float32] * len(found)
    assert 0 < max((a - b).abs().max().item() for a, b in zip(found, exact, strict=True)) < 0.02


def test_nothing_is_trained_where_nothing_wants_a_gradient() -> None:
    heads, targets_M = make_heads(3, 5, (2, 2), 1.0, seed=0), torch.arange(3)
    with torch.no_grad():
        assert not catalogue_losses(heads, targets_M).requires_grad
    frozen = FactoredLogits(heads[0].states_ME.detach(), heads[0].vectors_NE)
    (to_vectors_NE,) = torch.autograd.grad(catalogue_losses([frozen], targets_M).sum(), heads[0].vectors_NE)
    assert to_vectors_NE.any()

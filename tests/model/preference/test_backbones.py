"""What every backbone keeps: items do not see each other, padding is nothing, the history matters; and its own ways."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from onerec.model.preference.backbones import BACKBONES, Backbone, StackBlock, TokenLinear, build_backbone, mix_tokens
from onerec.model.preference.settings import BackboneSettings

KINDS = sorted(BACKBONES)


def settings_of(kind: Any, **changes: Any) -> BackboneSettings:
    return BackboneSettings(kind=kind, width=8, hidden_width=12, dropout=0.0, **changes)


def inputs(num_items: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two requests of four events and the place before all events; the second has two of them."""
    generator = torch.Generator().manual_seed(1)
    present_BS = torch.tensor([[True] * 5, [True, True, False, False, True]])
    history_BSD = torch.randn(2, 5, 8, generator=generator)
    return history_BSD, present_BS, torch.randn(2, num_items, 2, 8, generator=generator)


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(settings_of(request.param)).eval()


def test_items_of_a_request_do_not_see_each_other(backbone: Backbone) -> None:
    history_BSD, present_BS, items_BGMD = inputs()
    together = backbone(history_BSD, present_BS, items_BGMD)
    assert together.shape == (2, 3, backbone.out_width)
    for place in range(3):
        alone = backbone(history_BSD, present_BS, items_BGMD[:, place : place + 1])
        torch.testing.assert_close(together[:, place], alone[:, 0])
    assert not torch.allclose(together[:, 0], together[:, 1])


def test_what_stands_in_the_padding_does_not_matter(backbone: Backbone) -> None:
    history_BSD, present_BS, items_BGMD = inputs()
    expected = backbone(history_BSD, present_BS, items_BGMD)
    history_BSD[1, 2:4] = 1e3
    torch.testing.assert_close(backbone(history_BSD, present_BS, items_BGMD), expected)
    shorter = backbone(history_BSD[1:, [0, 1, 4]], present_BS[1:, [0, 1, 4]], items_BGMD[1:])
    torch.testing.assert_close(shorter, expected[1:])


def test_every_present_event_and_every_token_matters(backbone: Backbone) -> None:
    history_BSD, present_BS, items_BGMD = inputs(num_items=1)
    history_BSD.requires_grad_()
    items_BGMD.requires_grad_()
    backbone(history_BSD, present_BS, items_BGMD).square().sum().backward()
    assert history_BSD.grad is not None
    assert items_BGMD.grad is not None
    reached = history_BSD.grad.abs().sum(dim=-1) > 1e-8
    torch.testing.assert_close(reached, present_BS)
    assert (items_BGMD.grad.abs().sum(dim=-1) > 1e-8).all()


def test_tokens_are_mixed_by_sending_a_part_of_each_to_each() -> None:
    """Two tokens of two parts: 1 2 3 4 and 5 6 7 8 become 1 2 5 6 and 3 4 7 8."""
    tokens = torch.tensor([[[[1.0, 2, 3, 4], [5, 6, 7, 8]]]])
    assert mix_tokens(tokens).tolist() == [[[[1, 2, 5, 6], [3, 4, 7, 8]]]]
    torch.testing.assert_close(mix_tokens(mix_tokens(tokens)), tokens)


def test_a_token_linear_is_a_linear_map_for_each_token() -> None:
    torch.manual_seed(0)
    linear, x = TokenLinear(3, 4, 5), torch.randn(2, 3, 4)
    for token in range(3):
        expected = F.linear(x[:, token], linear.weight_TDF[token].T, linear.bias_TF[token])
        torch.testing.assert_close(linear(x)[:, token], expected)


def test_the_stack_is_a_causal_transformer_over_history_and_item() -> None:
    """A block against attention written out over the whole sequence, oldest event first, then the item's two tokens."""
    torch.manual_seed(0)
    settings = settings_of("stack", num_heads=2)
    block = StackBlock(settings).eval()
    history_BSD, present_BS, items_BGMD = inputs(num_items=1)
    history_BSD, present_BS = history_BSD[:1], present_BS[:1]
    found_history, found_items = block(history_BSD, present_BS, items_BGMD[:1])

    sequence = torch.cat([history_BSD[0].flip(0), items_BGMD[0, 0]])  # (7, D)
    normed = block.attention_norm(sequence)
    qkv = torch.cat([block.history_qkv(normed[:5]), block.item_qkv(normed[5:])])
    queries, keys, values = (x.unflatten(-1, (2, 4)).transpose(0, 1) for x in qkv.chunk(3, dim=-1))
    read = F.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(0, 1).flatten(-2)
    sequence = sequence + torch.cat([block.history_output(read[:5]), block.item_output(read[5:])])
    normed = block.norm(sequence)
    inner = F.gelu(torch.cat([block.history_inner(normed[:5]), block.item_inner(normed[5:])]))
    expected = sequence + torch.cat([block.history_last(inner[:5]), block.item_last(inner[5:])])
    torch.testing.assert_close(found_history[0], expected[:5].flip(0))
    torch.testing.assert_close(found_items[0, 0], expected[5:])


def test_target_attention_weighs_events_by_the_item() -> None:
    """Two items, each like one event: what they attend to differs, the mean of all events does not."""
    torch.manual_seed(0)
    backbone = build_backbone(settings_of("attention", num_heads=1)).eval()
    features = backbone.features  # type: ignore[union-attr]
    with torch.no_grad():
        features.query.weight.copy_(20 * torch.eye(8))
        features.output.weight.copy_(torch.eye(8))
        features.key_value.weight.copy_(torch.eye(8).repeat(2, 1))
    events = F.one_hot(torch.tensor([[0, 1, 2]]), 8).float()
    items = torch.stack([events[:, :2], torch.zeros(1, 2, 8)], dim=2)
    found = features(events, torch.ones(1, 3, dtype=torch.bool), items).unflatten(-1, (5, 8))
    attended, crossed, mean = found[0, :, 2], found[0, :, 3], found[0, :, 4]
    assert attended.argmax(dim=-1).tolist() == [0, 1]
    torch.testing.assert_close(crossed, attended * events[0, :2])
    np.testing.assert_allclose(mean.detach().numpy(), np.tile(np.r_[np.full(3, 1 / 3), np.zeros(5)], (2, 1)), rtol=1e-6)


@pytest.mark.parametrize("key", ["num_heads", "num_tokens"])
def test_parts_that_do_not_divide_the_width_are_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=f"{key}: found 3, expected a divisor of width = 8"):
        settings_of("mixer", **{key: 3})

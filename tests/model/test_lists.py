"""Lists in training: what each item may know, what one-item lists are, and what they cost."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.flops import forward_flops
from onerec.model.lists import ListPass
from onerec.model.onerec import OneRec

SIZES, NUM_ITEMS = (4, 3), 12
CODES_NL = np.stack(np.unravel_index(np.arange(NUM_ITEMS), SIZES), axis=1)
RICH: dict[str, Any] = {
    "bos_reads_context": True,
    "prefix_vectors": True,
    "repeat_bias": True,
    "item_head_weight": 1.0,
}
INPUTS = torch.tensor([[3, 7, 3, 1], [5, 0, 0, 0]])  # item index + 1
LISTS = torch.tensor([[[4, 9, 0]], [[11, 2, 6]]])


def make_model(session_items: int, **shape: Any) -> OneRec:
    torch.manual_seed(0)
    shape = {"d_model": 16, "num_heads": 2, "d_ff": 32, "dropout": 0.0, **shape}
    model = OneRec(OneRecConfig(SIZES, NUM_ITEMS, session_items=session_items, **shape)).eval()
    model.set_codes(CODES_NL, "hash-of-the-table")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def losses(model: OneRec, lists: torch.Tensor) -> torch.Tensor:
    """Loss of every list by itself (B, L)."""
    return torch.stack(
        [
            model(input_ids=row[None], target_items=one[None]).level_losses_L
            for row, one in zip(INPUTS, lists, strict=True)
        ]
    )


@pytest.mark.parametrize("context", ["causal", "bidirectional", "lazy"])
def test_lists_of_one_item_cost_what_single_items_cost(context: str) -> None:
    shape = RICH | {"bos_reads_context": context != "lazy", "context": context}
    lists, single = make_model(1, **shape).train(), make_model(0, **shape).train()
    single.load_state_dict(lists.state_dict())
    found, expected = lists(input_ids=INPUTS, target_items=LISTS[..., :1]), single(INPUTS, target_items=LISTS[:, 0, :1])
    for name in ("loss", "level_losses_L", "item_loss", "num_targets"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)


def test_the_loss_is_the_mean_over_items_and_the_first_is_a_single_one() -> None:
    lists, single = make_model(3, **RICH), make_model(0, **RICH)
    single.load_state_dict(lists.state_dict(), strict=False)
    with torch.no_grad():
        alone = single(INPUTS, target_items=LISTS[:, 0, :1])
        whole = lists(INPUTS, target_items=LISTS)
        short = {size: lists(INPUTS, target_items=LISTS[..., :size]) for size in (1, 2)}
    torch.testing.assert_close(short[1].level_losses_L, alone.level_losses_L)
    parts = [short[1].level_losses_L]
    parts.append(2 * short[2].level_losses_L - parts[0])
    parts.append(3 * whole.level_losses_L - parts[0] - parts[1])
    assert not torch.allclose(parts[1], parts[2])
    torch.testing.assert_close(losses(lists, LISTS).mean(dim=0), whole.level_losses_L)
    assert whole.num_targets == LISTS.numel()
    torch.testing.assert_close(whole.loss, whole.level_losses_L.sum() + whole.item_loss)


@pytest.mark.parametrize("context", ["causal", "lazy"])
def test_an_item_knows_those_before_it_and_no_later_one(context: str) -> None:
    model, changed = make_model(3, context=context), LISTS.clone()
    changed[..., 1] = torch.tensor([[1], [8]])

    @torch.no_grad()
    def hidden(lists: torch.Tensor) -> torch.Tensor:
        states_BSD = model.encoder(INPUTS).last_hidden_state
        mask_BS = model.encoder.real_positions(INPUTS != 0, None)
        batch = ListPass(model, states_BSD, (INPUTS - 1).clamp(min=0), mask_BS, lists[:, 0])
        return batch.hidden(lists[:, 0]).unflatten(0, (2, 3))  # (B, m, L, D)

    before, after = hidden(LISTS), hidden(changed)
    torch.testing.assert_close(after[:, 0], before[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(after[:, 1, 0], before[:, 1, 0], rtol=0, atol=0)  # nothing read of the second yet
    assert (after[:, 1, 1] - before[:, 1, 1]).abs().amax(dim=1).gt(1e-3).all()
    assert (after[:, 2] - before[:, 2]).abs().amax(dim=2).gt(1e-3).all()
    last_code = LISTS.clone()
    last_code[0, 0, 1], last_code[1, 0, 1] = 10, 1  # the same first code, another last one
    assert (hidden(last_code)[:, 2] - before[:, 2]).abs().amax(dim=2).gt(1e-3).all()


def test_a_list_knows_the_order_of_its_items() -> None:
    model = make_model(3)
    swapped = LISTS[..., [1, 0, 2]]
    third, third_swapped = (3 * losses(model, lists) - 2 * losses(model, lists[..., :2]) for lists in (LISTS, swapped))
    assert not torch.allclose(third, third_swapped)


def test_every_weight_has_a_gradient_and_a_loaded_model_costs_alike(tmp_path: Path) -> None:
    model = make_model(3, num_experts=3, **RICH)
    model.save_pretrained(tmp_path)
    loaded = OneRec.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(losses(loaded, LISTS), losses(model, LISTS), rtol=0, atol=0)
    model.train()(input_ids=INPUTS, target_items=LISTS).loss.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert idle == []
    for table in (model.decoder.further.places, model.decoder.further.last_codes, model.decoder.further.last_level):
        assert table.weight.grad.ne(0).any()
    loads = [float(block.feed_forward.router.take_load().sum()) for block in model.decoder.blocks]
    assert loads == [2 * (3 * 3 - 1) * 2] * 2  # lists x tokens x experts of a token


def test_single_items_are_no_training_of_a_model_of_lists() -> None:
    model = make_model(3)
    assert model(input_ids=INPUTS, target_items=LISTS[:, 0, :1]).loss.isfinite()
    with pytest.raises(ConfigError, match="found single items to train on, expected whole lists"):
        model.train()(input_ids=INPUTS, target_items=LISTS[:, 0, :1])


def test_flops_are_those_torch_counts() -> None:
    model = make_model(3, **RICH)
    config, tokens = model.config, 3 * (2 + 1) - 1
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(input_ids=INPUTS[:1], target_items=LISTS[:1])
    unseen = 2 * 2 * config.num_decoder_layers * config.d_model * (tokens * tokens - tokens * (tokens + 1) // 2)
    assert counter.get_total_flops() - unseen == forward_flops(config, 5, 3, 5)

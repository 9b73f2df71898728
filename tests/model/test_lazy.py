"""The lazy context: what is shared, what each layer reads, and one ranking by steps, teacher forcing and generate."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from onerec.decoding.beam import beam_search
from onerec.decoding.trie import Trie
from onerec.model.configuration import BOS_TOKEN, OneRecConfig
from onerec.model.lazy import ContextProcessor, LazyCrossAttention
from onerec.model.onerec import OneRec
from tests.decoding.test_beam import generate

SIZES = (6, 5, 4)
NUM_ITEMS = 50
SHARINGS = [
    {},
    {"num_kv_heads": 1},
    {"num_kv_heads": 2, "num_kv_layers": 2, "separate_values": True, "embedding_dim": 6},
    {"num_kv_heads": 2, "num_experts": 4, "num_shared_experts": 1, "num_dense_blocks": 1},
]


def configuration(**changes: object) -> OneRecConfig:
    shape = {"d_model": 16, "num_heads": 4, "d_ff": 32, "num_decoder_layers": 3, "max_history_items": 8}
    return OneRecConfig(codes_per_level=SIZES, num_items=NUM_ITEMS, context="lazy", **{**shape, **changes})


def make_model(**changes: object) -> OneRec:
    torch.manual_seed(0)
    model = OneRec(configuration(**changes)).eval()
    places = np.random.default_rng(0).choice(int(np.prod(SIZES)), NUM_ITEMS, replace=False)
    model.set_codes(np.stack(np.unravel_index(places, SIZES), axis=1), "hash")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def codes_of(model: OneRec) -> np.ndarray:
    first_rows = torch.tensor(model.config.level_offsets) - model.config.level_offsets[0]
    return (model.encoder.code_rows_NL - first_rows).numpy()


def histories() -> tuple[Tensor, Tensor]:
    return torch.randint(NUM_ITEMS, (3, 8), generator=torch.Generator().manual_seed(1)), torch.tensor([8, 1, 5])


@torch.no_grad()
def score_all_items(model: OneRec, items_BS: Tensor, lengths_B: Tensor) -> Tensor:
    """Log-probability (B, N) of every item by teacher forcing."""
    tokens_NL = torch.from_numpy(codes_of(model)) + torch.tensor(model.config.level_offsets)
    inputs_NL = torch.cat([torch.full((NUM_ITEMS, 1), BOS_TOKEN), tokens_NL[:, :-1]], dim=1)
    rows = []
    for history_S, length in zip(items_BS, lengths_B, strict=True):
        input_ids = (history_S[:length] + 1).expand(NUM_ITEMS, -1)
        log_probs_NLV = model(input_ids=input_ids, decoder_input_ids=inputs_NL).logits.log_softmax(-1)
        rows.append(log_probs_NLV.gather(2, tokens_NL[..., None]).sum(dim=(1, 2)))
    return torch.stack(rows)


# ---- sharing -----------------------------------------------------------------------------------------------------


def stored_numbers(model: OneRec, num_items: int) -> int:
    """Distinct numbers that the keys and values of a request's context take."""
    context = model.encode(torch.zeros(1, num_items, dtype=torch.long), torch.tensor([num_items]))
    storages = {part.untyped_storage().data_ptr(): part.untyped_storage() for part in (*context.keys, *context.values)}
    return sum(storage.nbytes() for storage in storages.values()) // 4


@pytest.mark.parametrize(("num_kv_heads", "num_kv_layers", "split"), itertools.product([1, 4], [1, 3], [1, 2]))
def test_a_context_position_is_stored_in_as_many_numbers_as_the_paper_says(
    num_kv_heads: int, num_kv_layers: int, split: int
) -> None:
    """S_kv * L_kv * G_kv * d_head, whatever the number of layers (arXiv 2508.20900, section 2.2.1)."""
    sharing = {"num_kv_heads": num_kv_heads, "num_kv_layers": num_kv_layers, "separate_values": split == 2}
    model = make_model(**sharing)
    d_context = split * num_kv_layers * num_kv_heads * 4
    assert stored_numbers(model, num_items=7) == (1 + 7) * d_context
    processor = model.decoder.context_processor
    assert processor.projection.weight.shape == (d_context, 16)
    assert sum(parameter.numel() for parameter in processor.parameters()) == 17 * d_context


def test_by_default_all_layers_read_one_tensor_as_keys_and_values() -> None:
    context = make_model().encode(*histories())
    assert len({id(part) for part in (*context.keys, *context.values)}) == 1
    assert len(context.keys) == len(context.values) == 3


def test_blocks_have_no_projection_of_keys_and_values() -> None:
    names = [name for name, _ in make_model().named_parameters() if "cross_attention" in name]
    assert {name.split(".", 3)[-1] for name in names} == {
        "cross_attention.query.weight",
        "cross_attention.output.weight",
    }
    assert len(make_model().encoder.blocks) == 0


@pytest.mark.parametrize(
    ("num_layers", "num_sets", "expected"),
    [(3, 1, [0, 0, 0]), (4, 2, [0, 0, 1, 1]), (5, 2, [0, 0, 0, 1, 1]), (5, 3, [0, 0, 1, 1, 2]), (3, 3, [0, 1, 2])],
)
def test_the_set_of_each_layer(num_layers: int, num_sets: int, expected: list[int]) -> None:
    """floor(layer * L_kv / N_layer) by hand."""
    processor = ContextProcessor(configuration(num_decoder_layers=num_layers, num_kv_layers=num_sets))
    keys, _ = processor(torch.randn(1, 2, 16))
    first_of_set = {number: expected.index(number) for number in expected}
    assert [next(i for i, other in enumerate(keys) if other is one) for one in keys] == [
        first_of_set[number] for number in expected
    ]


def test_chunks_are_normalised_apart() -> None:
    """Two sets of keys and values from four chunks, each by its own norm."""
    config = configuration(num_kv_heads=2, num_kv_layers=2, separate_values=True, num_decoder_layers=2)
    processor, x = ContextProcessor(config), torch.randn(1, 3, 16)
    for scale, norm in enumerate(processor.norms, start=1):
        torch.nn.init.constant_(norm.weight, scale)
    keys, values = processor(x)
    chunks = (x @ processor.projection.weight.T).split(8, dim=-1)
    for number, found in enumerate([keys[0], values[0], keys[1], values[1]]):
        expected = chunks[number] / chunks[number].square().mean(dim=-1, keepdim=True).sqrt() * (number + 1)
        torch.testing.assert_close(found.transpose(1, 2).flatten(2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("mask", ["none", "rows", "queries"])
def test_grouped_queries_equal_copied_keys(num_kv_heads: int, mask: str) -> None:
    torch.manual_seed(0)
    attention = LazyCrossAttention(configuration(num_kv_heads=num_kv_heads))
    full = LazyCrossAttention(configuration(num_kv_heads=4))
    full.load_state_dict(attention.state_dict())
    x, keys, values = torch.randn(2, 3, 16), torch.randn(2, num_kv_heads, 5, 4), torch.randn(2, num_kv_heads, 5, 4)
    visible = {
        "none": None,
        "rows": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None],
        "queries": torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]).bool(),
    }[mask]
    copied = [part.repeat_interleave(4 // num_kv_heads, dim=1) for part in (keys, values)]
    torch.testing.assert_close(attention(x, keys, values, visible), full(x, *copied, visible))


# ---- one model by every path -------------------------------------------------------------------------------------


def test_context_positions_do_not_see_each_other() -> None:
    model, lengths = make_model(), torch.tensor([3])
    first, second = (model.encode(torch.tensor([[3, middle, 7]]), lengths).keys[0] for middle in (9, 30))
    same = (first == second).all(dim=3).all(dim=1)[0]
    assert same.tolist() == [True, True, False, True]  # start, 3, the item in the middle, 7


def test_cross_attention_comes_before_self_attention() -> None:
    """With the context's output cut off before self-attention, the block's own parts in the order of the paper."""
    block, x = make_model().decoder.blocks[0], torch.randn(2, 1, 3, 16)
    keys = torch.randn(2, 4, 5, 4)
    expected = x[:, 0] + block.cross_attention(block.cross_norm(x[:, 0]), keys, keys, None)
    expected = expected + block.self_attention(block.self_norm(expected), causal=True)
    expected = expected + block.feed_forward(block.feed_forward_norm(expected))
    torch.testing.assert_close(block(x, keys, keys, None)[:, 0], expected)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_each_target_sees_only_the_items_before_it(sharing: dict[str, object]) -> None:
    model = make_model(**sharing)
    history, targets = [4, 18, 31, 5], [9, 17, 30, 4, 21]
    many = model(input_ids=torch.tensor([history]) + 1, target_items=torch.tensor([targets]))
    single = [
        model(
            input_ids=torch.tensor([[item + 1 for item in history[:cut]] or [0]]), target_items=torch.tensor([[item]])
        )
        for cut, item in enumerate(targets)
    ]
    torch.testing.assert_close(many.level_losses_L, torch.stack([one.level_losses_L for one in single]).mean(dim=0))


@pytest.mark.parametrize("sharing", SHARINGS)
def test_beams_as_wide_as_the_catalogue_give_the_exhaustive_ranking(sharing: dict[str, object]) -> None:
    model, (items_BS, lengths_B) = make_model(**sharing), histories()
    trie = Trie.from_table(codes_of(model), SIZES)
    found = beam_search(model, model.encode(items_BS, lengths_B), trie, NUM_ITEMS, NUM_ITEMS)
    expected = score_all_items(model, items_BS, lengths_B).sort(dim=1, descending=True)
    torch.testing.assert_close(found.items_BK, expected.indices)
    torch.testing.assert_close(found.scores_BK, expected.values)


def test_generate_finds_the_same_beams() -> None:
    model, (items_BS, lengths_B) = make_model(num_kv_heads=2), histories()
    codes_NL = codes_of(model)
    found = beam_search(model, model.encode(items_BS, lengths_B), Trie.from_table(codes_NL, SIZES), 4, 4)
    items_BK, _ = generate(model, codes_NL, items_BS, lengths_B, 4, 4)
    assert items_BK.tolist() == found.items_BK.tolist()


def test_the_item_head_reads_what_has_seen_the_history() -> None:
    """The auxiliary loss depends on every item of the history, and on none of the target's codes."""
    model = make_model(item_head_weight=1.0)
    losses = [
        model(input_ids=torch.tensor([[first, 9, 31]]), target_items=torch.tensor([[22]])).item_loss for first in (4, 5)
    ]
    assert not torch.isclose(*losses)
    with torch.no_grad():
        model.decoder.codes.weight.add_(1.0)
    moved = model(input_ids=torch.tensor([[4, 9, 31]]), target_items=torch.tensor([[22]])).item_loss
    torch.testing.assert_close(moved, losses[0])


def test_training_reaches_every_parameter() -> None:
    model = make_model(num_kv_heads=2, num_kv_layers=2, separate_values=True, item_head_weight=1.0).train()
    model(input_ids=torch.tensor([[4, 18, 31]]), target_items=torch.tensor([[9, 17, 30, 4]])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []

"""Blocks with weights of eight bits: near the float model in every shape, small in memory, and refused by name."""

import copy
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onerec.decoding.beam import beam_search
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.moe import Experts
from onerec.model.onerec import OneRec
from onerec.model.precision import Precision
from onerec.model.quantised import Float8Linear, Int8Linear, QuantisedExperts, quantise

CODES_PER_LEVEL, NUM_ITEMS = (4, 4, 5), 30
SHAPES = [
    {"context": "causal"},
    {"context": "bidirectional", "activation": "swiglu"},
    {"context": "lazy"},
    {"context_block": "hstu"},
    {"num_experts": 3, "experts_in_context": True, "num_shared_experts": 1},
]


def make_model(**changes: object) -> OneRec:
    torch.manual_seed(0)
    shape = {"d_model": 32, "num_heads": 2, "d_ff": 64, "num_context_layers": 2, "num_decoder_layers": 2, **changes}
    model = OneRec(OneRecConfig(codes_per_level=CODES_PER_LEVEL, num_items=NUM_ITEMS, max_history_items=8, **shape))
    flat_N = np.random.default_rng(0).choice(int(np.prod(CODES_PER_LEVEL)), NUM_ITEMS, replace=False)
    model.set_codes(np.stack(np.unravel_index(flat_N, CODES_PER_LEVEL), axis=1), "hash")
    return model.eval()


@torch.inference_mode()
def search(model: OneRec) -> tuple[np.ndarray, np.ndarray]:
    """The catalogue in the order of two requests, and the score of each item."""
    context = model.encode(torch.tensor([[3, 17, 29, 3], [5, 0, 0, 0]]), torch.tensor([4, 1]))
    trie = Trie.from_table(model.codes_of(torch.arange(NUM_ITEMS)).numpy(), CODES_PER_LEVEL)
    found = beam_search(model, context, trie, NUM_ITEMS, NUM_ITEMS)
    order = found.items_BK.argsort(dim=1)
    return found.items_BK.numpy(), found.scores_BK.gather(1, order).numpy()


def tensors_of_blocks(model: OneRec) -> Iterator[Tensor]:
    """What the blocks hold."""
    for stack in model.stacks():
        yield from stack.state_dict().values()


@pytest.fixture(params=["bfloat16", "float32"])
def activations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """What the hardware is made to look as if it multiplied fastest."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": request.param == "bfloat16"})
    return getattr(torch, request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: next(iter(shape)) + "-" + str(next(iter(shape.values()))))
def test_beams_in_int8_score_items_nearly_as_in_float32(shape: dict[str, object], activations: torch.dtype) -> None:
    model = make_model(**shape)
    before = copy.deepcopy(model.state_dict())
    coarse = model.for_decoding("int8")
    (_, fine_scores), (items, scores) = search(model), search(coarse)
    assert all(sorted(row) == list(range(NUM_ITEMS)) for row in items.tolist())
    assert scores.dtype == np.float32
    assert 1e-4 < np.abs(scores - fine_scores).max() < 0.2  # between -2 and -8
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_copy_and_a_pickle_give_the_same_lists() -> None:
    coarse = make_model().for_decoding("int8")
    expected = search(coarse)
    for again in (copy.deepcopy(coarse), pickle.loads(pickle.dumps(coarse))):
        for found, wanted in zip(search(again), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_the_float_weights_are_gone(activations: torch.dtype) -> None:
    """Self-attention 32 x 96 and 32 x 32, feed-forward 32 x 64 twice; a decoder's cross-attention 32 x 64, 32 x 32
    twice. A byte a weight, a scale a row; the norms are 32 wide, two in a context's block and three in a decoder's."""
    model = make_model()
    coarse = model.for_decoding("int8")
    context, decoder = 32 * (96 + 32) + 2 * 32 * 64, 32 * (96 + 32 + 64 + 32 + 32) + 2 * 32 * 64
    context_rows, decoder_rows = 96 + 32 + 64 + 32, 96 + 32 + 64 + 32 + 32 + 64 + 32
    width = activations.itemsize
    expected = 2 * (context + width * (context_rows + 2 * 32)) + 2 * (decoder + width * (decoder_rows + 3 * 32))
    assert sum(tensor.nbytes for tensor in tensors_of_blocks(coarse)) == expected
    assert sum(tensor.nbytes for tensor in tensors_of_blocks(model)) == 4 * (2 * context + 2 * decoder + 10 * 32)
    matrices = [tensor for tensor in tensors_of_blocks(coarse) if tensor.dim() == 2 and tensor.size(1) > 1]
    assert {tensor.dtype for tensor in matrices} == {torch.int8}
    assert coarse.num_parameters() == model.num_parameters()


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_nothing_but_the_blocks_is_held_twice(precision: Precision) -> None:
    model = make_model(prefix_vectors=True, repeat_bias=True)
    lowered = model.for_decoding(precision)
    own = {tensor.data_ptr() for tensor in tensors_of_blocks(lowered)}
    assert not own & {tensor.data_ptr() for tensor in tensors_of_blocks(model)}
    outside = {name: tensor for name, tensor in lowered.state_dict().items() if tensor.data_ptr() not in own}
    assert {"encoder.embedding.items.weight", "code_heads.levels.0.weight", "decoder.norm.weight"} <= set(outside)
    held = model.state_dict()
    assert all(tensor.data_ptr() == held[name].data_ptr() for name, tensor in outside.items())


def test_experts_of_eight_bits_are_those_experts() -> None:
    """Also where one has no token; each expert's output is its own matrices'."""
    torch.manual_seed(0)
    experts = Experts(make_model(**SHAPES[-1]).config)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.2)
    coarse = QuantisedExperts(experts, lambda weight_FD: Int8Linear(weight_FD.detach(), torch.float32))
    with torch.no_grad():  # the float experts become what the numbers stand for
        for number in range(3):
            experts.inner_EDF[number] = coarse.inner[number].weight.T
            experts.output_EFD[number] = coarse.output[number].weight.T
        x_TD, tokens_A, counts_E = torch.randn(4, 32), torch.tensor([0, 3, 1, 2, 3]), torch.tensor([2, 0, 3])
        torch.testing.assert_close(coarse(x_TD, tokens_A, counts_E), experts(x_TD, tokens_A, counts_E))


def test_float8_takes_widths_in_sixteens_and_leaves_the_others_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch computes float8 on a CPU, so that its blocks can be run here; a GPU folds no attention."""
    monkeypatch.setattr("onerec.model.layers.pays_to_fold", lambda *_: False)
    model = make_model(d_ff=40, num_experts=2, expert_d_ff=48, num_dense_blocks=1)
    coarse = copy.deepcopy(model)
    for stack in coarse.stacks():
        quantise(stack, "float8", torch.bfloat16)
    dense, mixed = coarse.decoder.blocks
    assert isinstance(dense.cross_attention.query, Float8Linear)
    assert dense.cross_attention.query.codes_FD.dtype == torch.float8_e4m3fn
    assert dense.feed_forward.inner.weight.dtype == torch.bfloat16  # 40 is no multiple of 16
    assert isinstance(mixed.feed_forward.experts, QuantisedExperts)
    assert 1e-3 < np.abs(search(coarse)[1] - search(model)[1]).max() < 1.0


def test_float8_is_refused_where_the_hardware_has_none() -> None:
    with pytest.raises(ConfigError, match=r"decoding\.precision: found float8 on cpu, expected a CUDA device.*int8"):
        make_model().for_decoding("float8")

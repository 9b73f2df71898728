"""Folded attention is scaled dot-product attention with its projections, and is taken where it saves work alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.folded_attention import attend_folded, fold_context, pays_to_fold
from kernels.reference import attention
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 7), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_equals_projected_attention(
    num_requests: int, num_beams: int, num_heads: int, num_positions: int, masked: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    width, head_dim = 6, 5
    states_BWD = torch.randn(num_requests, num_beams, width)
    keys_BHSd, values_BHSd = torch.randn(2, num_requests, num_heads, num_positions, head_dim)
    query_ID, output_DI = torch.randn(num_heads * head_dim, width), torch.randn(width, num_heads * head_dim)
    visible_B11S = None
    if masked:
        visible_B11S = torch.rand(num_requests, 1, 1, num_positions) < 0.6
        visible_B11S[..., 0] = True
    found = attend_folded(states_BWD, fold_context(keys_BHSd, values_BHSd, query_ID, output_DI), visible_B11S)
    queries_BHWd = (states_BWD @ query_ID.T).unflatten(-1, (num_heads, -1)).transpose(1, 2)
    mixed_BHWd = attention(queries_BHWd, keys_BHSd, values_BHSd, visible_B11S)
    expected = mixed_BHWd.transpose(1, 2).flatten(2) @ output_DI.T
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_pays_for_many_beams_and_few_positions_alone() -> None:
    # A beam costs 2 * 4 * (8 + 2) = 80 plainly and 2 * 2 * 2 * 8 = 64 folded; folding costs 2 * 2 * 4 * 8 = 128.
    shape = {"width": 8, "inner": 4, "num_heads": 2}
    assert not pays_to_fold(num_beams=8, num_positions=2, **shape)
    assert pays_to_fold(num_beams=9, num_positions=2, **shape)
    assert not pays_to_fold(num_beams=1000, num_positions=3, **shape)  # 88 plainly, 96 folded


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_beams_decode_alike_folded_and_not(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 16, "num_heads": 2, "head_dim": 16, "d_ff": 16, "max_history_items": 8}
    model = OneRec(OneRecConfig(codes_per_level=[4, 4], num_items=4, **shape)).eval().for_decoding(precision)
    items_BS, lengths_B = torch.tensor([[1, 2, 3], [3, 0, 0]]), torch.tensor([3, 1])
    codes_BW = torch.arange(64).view(2, 32) % 4

    def step() -> tuple[torch.Tensor, int]:
        context, cache = model.encode(items_BS, lengths_B), model.new_cache()
        model.decode_step(None, 0, context, cache)
        cache.reorder(torch.zeros_like(codes_BW))
        return model.decode_step(codes_BW, 1, context, cache), len(cache.folded)

    with torch.inference_mode():
        found, num_folded = step()
        monkeypatch.setattr("onerec.model.layers.pays_to_fold", lambda *_: False)
        expected, num_unfolded = step()
    assert (num_folded, num_unfolded) == (model.config.num_decoder_layers, 0)
    torch.testing.assert_close(found, expected, atol=1e-5 if precision == "float32" else 0.05, rtol=1e-4)

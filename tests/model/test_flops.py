"""Counted operations against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kernels.reference import attention_to_prefix
from onerec.model import decoder
from onerec.model.configuration import OneRecConfig
from onerec.model.flops import decoding_flops
from onerec.model.onerec import OneRec


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_decoding_flops_are_those_torch_counts(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The counter sees matrix products only, which the fast attention to a beam's own codes largely avoids.
    monkeypatch.setattr(decoder, "attend_to_prefix", attention_to_prefix)
    config = OneRecConfig(codes_per_level=[8, 6, 5], num_items=30, d_model=32, d_ff=64, activation=activation)
    model = OneRec(config).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        context = model.encode(torch.zeros(1, 9, dtype=torch.long), torch.tensor([9]))
        cache = model.new_cache()
        model.decode_step(None, 0, context, cache)
        cache.reorder(torch.zeros(1, 4, dtype=torch.long))
        model.decode_step(torch.zeros(1, 4, dtype=torch.long), 1, context, cache)
        cache.reorder(torch.zeros(1, 7, dtype=torch.long))
        model.decode_step(torch.zeros(1, 7, dtype=torch.long), 2, context, cache)
    assert counter.get_total_flops() == decoding_flops(config, num_positions=10, beams_per_level=[1, 4, 7])

"""Counted operations against torch's own counter."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kernels.reference import attention_to_prefix
from onerec.model import decoder
from onerec.model.configuration import OneRecConfig
from onerec.model.flops import decoding_flops, forward_flops, training_flops
from onerec.model.onerec import OneRec

SHAPES = [
    {"activation": "relu"},
    {"activation": "swiglu"},
    {"num_experts": 5, "num_dense_blocks": 1, "expert_d_ff": 24},
    {"num_experts": 5, "experts_per_token": 3, "num_shared_experts": 2, "experts_in_context": True},
    {"bos_reads_context": True, "prefix_vectors": True},
    {"context_block": "hstu"},
    {"context": "lazy"},
    {"context": "lazy", "embedding_dim": 12, "prefix_vectors": True},
    {"context": "lazy", "embedding_dim": 12, "num_kv_heads": 2, "num_kv_layers": 2, "separate_values": True},
]
CODES_NL = np.stack([np.arange(30) % 8, np.arange(30) % 6, np.arange(30) % 5], axis=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_flops_are_those_torch_counts(shape: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    # The counter sees matrix products only, which the fast attention to a beam's own codes largely avoids.
    monkeypatch.setattr(decoder, "attend_to_prefix", attention_to_prefix)
    config = OneRecConfig(codes_per_level=[8, 6, 5], num_items=30, d_model=32, d_ff=64, **shape)
    model = OneRec(config).eval()
    model.set_codes(CODES_NL, "hash")
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


@pytest.mark.parametrize("shape", SHAPES)
def test_training_flops_are_those_torch_counts(shape: dict[str, object]) -> None:
    """One target after nine items; attention to a target's own codes is counted as its mean, of a triangle's half."""
    config = OneRecConfig(codes_per_level=[8, 6, 5], num_items=30, d_model=32, d_ff=64, item_head_weight=1.0, **shape)
    model = OneRec(config).eval()
    model.set_codes(CODES_NL, "hash")
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(input_ids=torch.ones(1, 9, dtype=torch.long), target_items=torch.zeros(1, 1, dtype=torch.long))
    triangle = 2 * 2 * config.num_decoder_layers * config.d_model * (3 * 3 - 3 * 2)  # 3 x 3 scores, of which 6 are seen
    assert counter.get_total_flops() - triangle == forward_flops(config, 10, 1, 10)
    assert training_flops(config, 10, 1, 10) == 3 * forward_flops(config, 10, 1, 10)

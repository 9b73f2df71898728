"""The jagged attention kernels, forward and backward, against the plain reference."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.jagged_attention import Form
from tests.kernels.jagged_cases import compare


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    biased=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=3)
@pytest.mark.parametrize("form", get_args(Form))
def test_equals_the_reference_over_random_ragged_batches(
    form: Form, lengths: list[int], biased: bool, dtype: torch.dtype
) -> None:
    compare(lengths, form, biased, "triton", dtype)


@pytest.mark.parametrize("form", get_args(Form))
def test_sequences_of_several_tiles(form: Form) -> None:
    compare([70, 3], form, True, "triton", torch.float32, heads=1, width=6)

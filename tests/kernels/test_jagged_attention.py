"""Attention within ragged sequences by torch against the plain reference, with all derivatives."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.backends import is_installed
from kernels.jagged_attention import Form, attend_jagged, interval_buckets
from tests.kernels.jagged_cases import compare, offsets_of


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    form=st.sampled_from(get_args(Form)),
    biased=st.booleans(),
)
@settings(max_examples=15)
def test_equals_the_reference(lengths: list[int], form: Form, biased: bool) -> None:
    compare(lengths, form, biased, "torch", torch.float32)


def test_by_hand() -> None:
    """Two positions whose scores are biases alone: ln 3 in the same place, 0 one place behind; shares 3/4 and 1/4."""
    ones, values = torch.ones(3, 1, 1), torch.tensor([[[4.0]], [[8.0]], [[5.0]]])
    places = torch.tensor([math.log(3), 0.0])
    found = attend_jagged(0 * ones, ones, values, torch.tensor([0, 2, 3]), 2, "softmax", places)
    torch.testing.assert_close(found.flatten(), torch.tensor([4.0, 7.0, 5.0]))
    half = torch.tensor([0.0, 2.0])
    found = attend_jagged(0 * ones, ones, values, torch.tensor([0, 2, 3]), 2, "silu", half)
    silu = 2 / (1 + math.exp(-2))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 4 * silu / 2, 0.0]))


def test_intervals_grow_by_a_third_and_unknown_ones_have_their_own() -> None:
    """ln(100) / 0.301 = 15.3, ln(101) / 0.301 = 15.3; under a second and one second are the first bucket."""
    seconds = torch.tensor([float("nan"), float("inf"), 0.0, 1.0, 1.36, -1.83, 100, -101, 1e9], dtype=torch.float64)
    assert interval_buckets(seconds, 20).tolist() == [0, 0, 1, 1, 2, 3, 16, 16, 19]


def test_a_position_without_a_time_is_added_nothing_for_it() -> None:
    """silu(2) of the position itself and silu(0) of the first, which has no time, by two; silu(3) alone is neither."""
    ones, values = torch.ones(2, 1, 1), torch.tensor([[[4.0]], [[8.0]]])
    times, intervals = torch.tensor([float("inf"), 7.0], dtype=torch.float64), torch.tensor([3.0, 2.0, 3.0])
    found = attend_jagged(
        0 * ones, ones, values, torch.tensor([0, 2]), 2, "silu", interval_bias_I=intervals, times_T=times
    )
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 8 / 2 * 2 / (1 + math.exp(-2))]))


@pytest.mark.skipif(is_installed("flash"), reason="flash-attn is installed")
def test_asking_for_a_package_that_is_not_there_names_the_extra() -> None:
    ones = torch.ones(1, 1, 1)
    with pytest.raises(ImportError, match="extra `gpu`"):
        attend_jagged(ones, ones, ones, offsets_of([1]), 1, "softmax", backend="flash")

"""Denormals vanish within the block only."""

import torch

from kernels.denormals import flushed_denormals

DENORMAL = 1e-40


def test_denormals_are_zero_within_the_block_only() -> None:
    with flushed_denormals():
        assert (torch.tensor([DENORMAL]) * 1.0).item() == 0
    assert (torch.tensor([DENORMAL]) * 1.0).item() != 0


def test_an_error_ends_the_flushing_too() -> None:
    try:
        with flushed_denormals():
            raise ValueError
    except ValueError:
        pass
    assert (torch.tensor([DENORMAL]) * 1.0).item() != 0

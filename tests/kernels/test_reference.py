import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.reference import assign_residual, nearest_codes


def test_residuals_worked_by_hand() -> None:
    """(10, 1) is nearest to (9, 0), which leaves (1, 1); that is nearest to (1, 0), which leaves (0, 1)."""
    codebooks = [torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.5]])]
    codes_NL, residual_ND = assign_residual(torch.tensor([[10.0, 1.0], [0.0, 3.0]]), codebooks)
    torch.testing.assert_close(codes_NL, torch.tensor([[1, 0], [0, 1]]))
    torch.testing.assert_close(residual_ND, torch.tensor([[0.0, 1.0], [0.0, 0.5]]))


def test_ties_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(nearest_codes(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), codebook), torch.tensor([1, 1]))


def test_no_rows() -> None:
    codes_NL, residual_ND = assign_residual(torch.empty(0, 3), [torch.zeros(4, 3)])
    assert codes_NL.shape == (0, 1)
    assert residual_ND.shape == (0, 3)


@given(
    seed=st.integers(0, 2**16), num_rows=st.integers(1, 30), num_codes=st.integers(1, 9), num_levels=st.integers(1, 3)
)
def test_equals_brute_force(seed: int, num_rows: int, num_codes: int, num_levels: int) -> None:
    """Small whole numbers: float32 is exact, so ties are true ties."""
    random = np.random.default_rng(seed)
    rows = random.integers(-6, 7, (num_rows, 3))
    codebooks = random.integers(-6, 7, (num_levels, num_codes, 3))
    expected = []
    for row in rows:
        codes = []
        for codebook in codebooks:
            distances = [int(((row - code) ** 2).sum()) for code in codebook]
            codes.append(distances.index(min(distances)))
            row = row - codebook[codes[-1]]
        expected.append(codes)
    tensors = [torch.from_numpy(codebook).float() for codebook in codebooks]
    codes_NL, _ = assign_residual(torch.from_numpy(rows).float(), tensors)
    np.testing.assert_array_equal(codes_NL.numpy(), expected)

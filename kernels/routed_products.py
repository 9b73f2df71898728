"""Products of tokens with the matrices of the experts that they are routed to.

Legend: T tokens, A assignments, E experts, D inner width, F outer width.
"""

from torch import Tensor

from kernels.backends import Backend, takes_kernel
from kernels.grouped_products import grouped_product


def routed_product(
    tokens_TD: Tensor, weights_EDF: Tensor, counts_E: Tensor, rows_A: Tensor, backend: Backend = "auto"
) -> Tensor:
    """Row `rows_A[i]` times its expert's matrix, in row i of the result (A, F).

    Args:
        counts_E: assignments of each expert, which sum to A; an expert may have none.
        rows_A: int64, the token of each assignment, those of the first expert first.
        backend: on CUDA a Triton kernel that reads the tokens where they lie; a named one that cannot run is an error.

    Raises:
        ImportError: a backend is asked for whose package is not installed.
    """
    if len(rows_A) and takes_kernel(backend, "triton", tokens_TD, weights_EDF):
        from kernels.triton_grouped_products import RoutedProduct

        product_AF: Tensor = RoutedProduct.apply(tokens_TD, weights_EDF, counts_E, rows_A)
        return product_AF
    return grouped_product(tokens_TD.index_select(0, rows_A), weights_EDF, counts_E)

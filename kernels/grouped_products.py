"""One matrix product for each group of rows, as the experts of a mixture need it.

Legend: T rows, E groups, D inner width, F outer width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_ALIGNMENT_BYTES = 16  # of each row, which torch's grouped product asks for


def grouped_product(rows_TD: Tensor, weights_EDF: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply the first `counts_E[0]` rows by the first matrix, the next `counts_E[1]` by the second, ... (T, F).

    A group may be empty; its matrix then gets a gradient of zeros. `counts_E` sums to T.
    """
    if _has_fused_product(rows_TD, weights_EDF):
        return F.grouped_mm(rows_TD, weights_EDF, offs=counts_E.cumsum(dim=0, dtype=torch.int32))
    # Both splits are views; their gradients are put together in one copy, where an index for each group would make a
    # gradient of the whole for each.
    groups = zip(rows_TD.split(counts_E.tolist()), weights_EDF.unbind(), strict=True)
    return torch.cat([rows_tD @ weights_DF for rows_tD, weights_DF in groups])


def _has_fused_product(rows_TD: Tensor, weights_EDF: Tensor) -> bool:
    """torch's grouped product is one kernel on CUDA, for bfloat16 and rows of whole 16 bytes."""
    if rows_TD.device.type != "cuda" or rows_TD.dtype != torch.bfloat16:
        return False
    return all(width * rows_TD.element_size() % _ALIGNMENT_BYTES == 0 for width in weights_EDF.shape[1:])

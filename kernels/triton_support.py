"""What all Triton kernels need to know of where they run. Importing this module imports Triton."""

import torch
import triton
import triton.language as tl
from triton import knobs

_DOT_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """The type in which tiles are multiplied, the sums being float32.

    Kernels turn what they load into float32 at once, since the interpreter takes the bits of a bfloat16 for another
    number; the compiler drops the way there and back.
    """
    if knobs.runtime.interpret:
        return tl.float32
    return _DOT_TYPES.get(dtype, tl.float32)


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors, which want a program each at least; 1 where programs run one after another."""
    return 1 if knobs.runtime.interpret else torch.cuda.get_device_properties(device).multi_processor_count


def padded(size: int, least: int = 16) -> int:
    """The power of two that a tile's side of `size` takes; products of tiles need 16 rows and columns."""
    return max(least, triton.next_power_of_2(size))

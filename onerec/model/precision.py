"""Which number format the matrix products of a model use."""

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "int8", "float8"]


def choose_precision(wish: Literal["auto", "float32", "bfloat16"]) -> Literal["float32", "bfloat16"]:
    """The wish, or for "auto" bfloat16 where the device multiplies it in hardware: the weights stay float32 anyway."""
    if wish != "auto":
        return wish
    return "bfloat16" if _multiplies_bfloat16() else "float32"


def _multiplies_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))

"""Which of several ways to compute one thing is taken: a kernel where it can run, plain torch everywhere else."""

import importlib.util
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "torch", "triton", "flash"]

_PACKAGES = {"triton": "triton", "flash": "flash_attn"}


def takes_kernel(backend: Backend, name: Literal["triton", "flash"], *tensors: Tensor) -> bool:
    """Whether to run the kernel of package `name`: asked for, or `auto`, on CUDA, installed and precise enough.

    Kernels add up in float32.

    Raises:
        ImportError: it is asked for by name and is not installed.
    """
    if backend == "auto":
        return all(tensor.is_cuda and tensor.dtype != torch.float64 for tensor in tensors) and is_installed(name)
    if backend == name and not is_installed(name):
        raise ImportError(
            f"backend {name}: found no package {_PACKAGES[name]}, which it needs. Install the extra `gpu` "
            "(pip install '.[gpu]'), or take the backend auto."
        )
    return backend == name


def is_installed(name: Literal["triton", "flash"]) -> bool:
    """Whether the package of a backend can be imported; it is not imported for that."""
    return importlib.util.find_spec(_PACKAGES[name]) is not None

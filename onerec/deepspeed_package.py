"""DeepSpeed, an extra that takes seconds to import: loaded when it is first asked for."""

import os
from types import ModuleType

import torch

from onerec.errors import ConfigError


def load_deepspeed(found: str, instead: str) -> ModuleType:
    """The package, ready for the device.

    Args:
        found: the setting that needs it.
        instead: how to do without it.

    Raises:
        ConfigError: it is not installed.
    """
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{found}, but DeepSpeed is not installed (no module {error.name!r}). "
            f"Install the extra (pip install -e .[deepspeed]) or {instead}."
        ) from None
    if on_cpu:
        # It would compile a shared-memory all-reduce (a minute) that crashes under torchrun; gloo does it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed

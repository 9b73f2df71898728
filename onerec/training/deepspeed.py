"""DeepSpeed's ZeRO (arXiv 1910.02054): optimizer state, gradients and weights sharded over the processes.

Nothing here imports it before it is asked for.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from onerec.deepspeed_package import load_deepspeed
from onerec.errors import ArtifactError
from onerec.training.settings import TrainingSettings

_CLAIMED_BY_ACCELERATE = "ACCELERATE_USE_DEEPSPEED"
_AS_TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def deepspeed_config(settings: TrainingSettings, precision: str) -> dict[str, Any] | None:
    """DeepSpeed's config for these settings, None for plain data parallelism.

    Products are in `precision` by autocast, so weights, gradients and what is reduced stay in float32.
    """
    if settings.zero_stage == 0:
        return None
    autocast = {"enabled": precision == "bfloat16", "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return {
        "train_micro_batch_size_per_gpu": 1,  # a name for the sampler's batch, as in TrainingArguments
        "gradient_accumulation_steps": settings.accumulation_steps,
        "gradient_clipping": settings.max_gradient_norm,
        "torch_autocast": autocast,
        "zero_optimization": {"stage": settings.zero_stage, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


@contextlib.contextmanager
def deepspeed_runtime(zero_stage: int) -> Iterator[None]:
    """Make DeepSpeed ready within the block, one process alone included, and keep later trainers from taking it up.

    Raises:
        ConfigError: the package is not installed.
    """
    if zero_stage == 0:
        yield
        return
    load_deepspeed(f"training.zero_stage: found {zero_stage}", instead="set zero_stage to 0")
    added = _stand_alone() if int(os.environ.get("WORLD_SIZE", "1")) == 1 else []
    try:
        with warnings.catch_warnings():
            # Its collectives go by names that torch deprecates, once a call.
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
            yield
    finally:
        for name in (_CLAIMED_BY_ACCELERATE, *added):  # a process started later is none of torchrun's
            os.environ.pop(name, None)
        unset_hf_deepspeed_config()


def whole_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's name and whole value, gathered from all processes where ZeRO 3 has sharded it.

    All processes have to walk through it together. A value is valid until the next one is asked for.
    """
    for name, parameter in model.named_parameters():
        with _gathered(parameter):
            yield name, parameter.detach()


def require_same_processes(checkpoint: Path, num_processes: int) -> None:
    """Refuse a ZeRO checkpoint that another number of processes has written: each holds one process's shards.

    Raises:
        ArtifactError: the numbers differ.
    """
    found = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    if found and found != num_processes:
        raise ArtifactError(
            f"{checkpoint}: found the ZeRO shards of {found} processes, expected those of {num_processes}. "
            f"Continue with {found} processes (torchrun --nproc_per_node={found}), or delete {checkpoint.parent} to "
            "train from the start; with zero_stage 0 a training continues with any number."
        )


def _stand_alone() -> list[str]:
    """The process group and the environment that torchrun would have made for one process; what was added to it."""
    added = [name for name in _AS_TORCHRUN if name not in os.environ]
    os.environ.update({name: _AS_TORCHRUN[name] for name in added})
    if not torch.distributed.is_initialized():
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        backend = torch.distributed.get_default_backend_for_device(device)
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    return added


def _gathered(parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])

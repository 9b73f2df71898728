"""What a training's user reads where memory runs out or another process is gone."""

import contextlib
from collections.abc import Iterator

import torch

from onerec.errors import ConfigError, OneRecError
from onerec.training.settings import TrainingSettings

# torch's allocator for the CPU and the collectives raise a plain RuntimeError, known by its words alone.
_NO_MEMORY = ("can't allocate memory", "not enough memory")
_NO_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@contextlib.contextmanager
def explained_failures(settings: TrainingSettings) -> Iterator[None]:
    """Turn failures that are not the code's own into sentences; the last checkpoint is whole in either case.

    Raises:
        ConfigError: out of memory, with the settings to change.
        OneRecError: another process has ended.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if _says_no_memory(error):
            raise ConfigError(_memory_advice(settings)) from error
        if any(words in str(error) for words in _NO_PEER):
            raise OneRecError(
                "training: another process of this run has ended, so this one cannot go on. See its message or, where "
                "there is none, whether the system has killed it for lack of memory. The last checkpoint is whole: the "
                "same command goes on from there."
            ) from error
        raise


def _says_no_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _NO_MEMORY)


def _memory_advice(settings: TrainingSettings) -> str:
    advice = [
        f"lower training.max_positions_per_step (now {settings.max_positions_per_step})",
        f"raise training.accumulation_steps (now {settings.accumulation_steps}), which leaves the losses as they are",
    ]
    if not settings.activation_checkpointing:
        advice.append("set training.activation_checkpointing to true")
    if settings.zero_stage < 3:
        advice.append(f"raise training.zero_stage (now {settings.zero_stage})")
    return f"training: out of memory. To need less, {'; or '.join(advice)}. The last checkpoint is whole."

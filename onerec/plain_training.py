"""Options of a run that stages with a training of their own do not carry: refused by name before work is lost."""

from collections.abc import Callable, Sequence

from onerec.config import RunConfig
from onerec.data.target_settings import TargetSettings
from onerec.errors import ConfigError

_IS_ON: dict[str, Callable[[RunConfig], bool]] = {
    "model.pathways": lambda config: config.model.pathways is not None,
    "model.session_items": lambda config: config.model.session_items > 0,
    "training.targets": lambda config: config.training.targets != TargetSettings(),
    "training.teacher": lambda config: config.training.teacher is not None,
    "training.ema_decay": lambda config: config.training.ema_decay is not None,
    "training.zero_stage": lambda config: config.training.zero_stage > 0,
}
OF_THE_MODEL = ("model.pathways", "model.session_items", "training.targets", "training.teacher")
OF_THE_STATE = ("training.ema_decay", "training.zero_stage")


def require_plain(config: RunConfig, stage: str, options: Sequence[str]) -> None:
    """Refuse a config in which one of the options is on.

    Raises:
        ConfigError: names the option and the stage.
    """
    for name in options:
        if _IS_ON[name](config):
            raise ConfigError(f"{name}: found with --stage {stage}, which does not carry it. Leave it out.")

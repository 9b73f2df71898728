"""Even loads of the experts: their biases are moved after every step, their loads told in the log."""

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onerec.model.moe import load_statistics
from onerec.model.onerec import OneRec


class ExpertBalancer(TrainerCallback):
    """Balances a model's experts; does nothing for a model without any."""

    def __init__(self, model: OneRec) -> None:
        self._model = model
        self._loads_RE: Tensor | None = None  # R routers, E experts

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Move the biases; all processes call it together."""
        loads_RE = self._model.balance_experts()
        if loads_RE is not None:
            self._loads_RE = loads_RE if self._loads_RE is None else self._loads_RE + loads_RE

    def drain(self) -> dict[str, float]:
        """Figures of the loads since the last call."""
        loads_RE, self._loads_RE = self._loads_RE, None
        return {} if loads_RE is None else load_statistics(loads_RE)

"""What one optimiser step computes with the model, as one module, so that every process takes it in one forward pass.

Shapes: B prompts, G generated items of a prompt, F samples without the trie, L levels, P targets of a window.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onerec.decoding.trie import Trie
from onerec.model.context import Context
from onerec.model.onerec import OneRec
from rl.objectives import cispo, ecpo, gbpo, grpo, sapo, vespo
from rl.rollout import PromptBatch, Rollout
from rl.scoring import Scores, legal_masses, score_codes, score_items
from rl.settings import AlignSettings, ObjectiveSettings
from rl.supervision import SupervisedBatch


@dataclass(frozen=True)
class Experience:
    """Prompts, what was generated for them, and what it is worth."""

    prompts: PromptBatch
    rollout: Rollout
    advantages_BG: Tensor
    old_log_probs_BG: Tensor  # NaN: those of the policy as it stands
    reference_log_probs_BG: Tensor | None
    free_codes_BFL: Tensor | None = None  # drawn without the trie, with the advantages of the format reward
    free_advantages_BF: Tensor | None = None
    logged_advantages_B: Tensor | None = None  # of the prompts' targets, from the log's feedback


@dataclass(frozen=True)
class PolicyOutput:
    """Scores of everything in an experience, and the supervised loss."""

    scores: Scores
    free: Scores | None
    logged: Scores | None
    supervised_loss: Tensor | None
    num_targets: int  # that the supervised loss is to count for
    legal_masses_BG: Tensor | None = None  # log-probability that free choices along the generated items stay legal


class Policy(nn.Module):
    """The model with its catalogue. Generated items are scored without dropout, supervised targets with it."""

    def __init__(self, model: OneRec, trie: Trie, settings: AlignSettings) -> None:
        super().__init__()
        self.model = model
        self._trie, self._settings = trie, settings

    def forward(self, experience: Experience, windows: SupervisedBatch | None) -> PolicyOutput:
        """Score an experience and, where `windows` of training targets are given, compute their loss."""
        was_training = self.training
        self.eval()
        prompts = experience.prompts
        context = prompts.encode(self.model)
        excluded = prompts.seen if self._settings.rollout.exclude_seen else None
        scores = self.score(context, experience.rollout.items_BG, excluded)
        free = logged = None
        if experience.free_codes_BFL is not None:
            free = score_codes(self.model, context, experience.free_codes_BFL)
        if experience.logged_advantages_B is not None:
            targets_B1 = torch.from_numpy(prompts.targets_B[:, None]).to(context.states_BSD.device)
            logged = self.score(context, targets_B1, None)
        masses_BG = None
        if self._settings.legality_weight:
            masses_BG = legal_masses(self.model, context, experience.rollout.items_BG, self._trie)
        self.train(was_training)
        if windows is None:
            return PolicyOutput(scores, free, logged, None, 0, masses_BG)
        outputs = self.model(**windows.inputs)
        num_targets = int(outputs.num_targets) * windows.counted
        return PolicyOutput(scores, free, logged, outputs.loss, num_targets, masses_BG)

    def score(self, context: Context, items_BG: Tensor, excluded: list | None) -> Scores:
        """Log-probabilities of items under the distribution that the objective's settings name."""
        temperature = self._settings.rollout.temperature
        if self._settings.objective.scoring == "plain":
            return score_codes(self.model, context, self.model.codes_of(items_BG), temperature)
        return score_items(self.model, context, items_BG, self._trie, temperature, excluded)


def surrogate(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, settings: ObjectiveSettings) -> Tensor:
    """The objective of each sample, to be maximised, by the kind that the settings name.

    Beside dpo, whose pairs have a loss of their own, free and logged samples take grpo's.
    """
    samples = log_probs, old_log_probs, advantages
    above = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
    match settings.kind:
        case "ecpo":
            return ecpo(*samples, settings.epsilon, settings.delta)
        case "gbpo":
            return gbpo(*samples)
        case "cispo":
            return cispo(*samples, above)
        case "sapo":
            return sapo(*samples)
        case "vespo":
            return vespo(*samples)
        case _:
            return grpo(*samples, settings.epsilon, above)

"""Which prompts a rollout has and what is generated for them, in the trainer itself and in rollout workers alike.

Everything random follows from (seed, rollout, share), so that a resumed training meets the same rollouts. Prompts do
not depend on how they are shared out; the noise in their samples does.

Shapes: B prompts of a share, G samples of a prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from onerec.bundle import build_trie
from onerec.data.pathways import EventSource, WindowPathways
from onerec.decoding.trie import Trie
from onerec.model.onerec import OneRec
from onerec.pipeline import Pipeline
from rl.policy import Policy
from rl.rollout import PromptBatch, Prompts, Rollout, roll_out
from rl.settings import AlignSettings

Generate = Callable[[OneRec, int], tuple[PromptBatch, Rollout]]
"""Policy and number of a rollout -> this process's prompts of it and what was generated for them."""


@dataclass(frozen=True)
class RolloutPlan:
    """What every process must know alike to generate without being told more than a number."""

    prompts: Prompts
    trie: Trie
    settings: AlignSettings
    seed: int

    @classmethod
    def open(cls, pipeline: Pipeline, model: OneRec, settings: AlignSettings) -> "RolloutPlan":
        """The plan of a run's alignment, for a model of the run.

        Raises:
            DataError: no training event has another before it.
        """
        histories, fitted = pipeline.data.histories, pipeline.fit_pathways()
        pathways = None
        if model.encoder.pathways is not None and fitted is not None:
            source = EventSource(histories.training(), fitted.profiles)
            pathways = WindowPathways(model.encoder.pathways.reader(), source)
        prompts = Prompts.of(histories, model.config.max_history_items, pathways)
        return cls(prompts, build_trie(pipeline.table).to(model.device), settings, pipeline.config.seed)

    def rows(self, number: int) -> np.ndarray:
        """The training rows that are the prompts of a rollout, those of all processes."""
        rng = np.random.default_rng([self.seed, number])
        return rng.choice(self.prompts.rows, self.settings.prompts_per_step, replace=False)

    def generate(self, model: OneRec, number: int, share: int = 0, num_shares: int = 1) -> tuple[PromptBatch, Rollout]:
        """Generate for every `num_shares`-th prompt of a rollout, from `share` on; the model is left as it was."""
        was_training = model.training
        model.eval()
        prompts = self.prompts.batch(self.rows(number)[share::num_shares], model.device)
        generator = torch.Generator(model.device)
        generator.manual_seed(int(np.random.SeedSequence([self.seed, number, share]).generate_state(1)[0]))
        rollout = roll_out(model, prompts, self.trie, self.settings.rollout, generator)
        if self.settings.rollout.off_policy:
            rollout = replace(rollout, behaviour_BG=self._score(model, prompts, rollout))
        model.train(was_training)
        return prompts, rollout

    @torch.no_grad()
    def _score(self, model: OneRec, prompts: PromptBatch, rollout: Rollout) -> torch.Tensor:
        excluded = prompts.seen if self.settings.rollout.exclude_seen else None
        judge = Policy(model, self.trie, self.settings)
        return judge.score(prompts.encode(model), rollout.items_BG, excluded).log_probs_BG

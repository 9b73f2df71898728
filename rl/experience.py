"""From a rollout to its experience: what the policy made of its prompts, and what that is worth.

Shapes: B prompts of this process, G generated items of a prompt, F samples without the trie.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.sampling import sample_items
from onerec.errors import ConfigError
from onerec.model.onerec import OneRec
from rl.dpo import best_and_worst
from rl.generation import Generate, RolloutPlan
from rl.objectives import group_advantages
from rl.policy import Experience, Policy
from rl.rewards.feedback import duration_aware_advantages, log_percentiles, require_column
from rl.rewards.format import format_advantages
from rl.rollout import PromptBatch, Prompts, Rollout
from rl.settings import LoggedFeedbackSettings

_FREE = 1  # parts the noise of free samples from that of rollouts
ItemReward = Callable[[PromptBatch, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Judged:
    """A rollout with its rewards, for the monitor."""

    rollout: Rollout
    rewards_BG: Tensor
    targets_B: Tensor
    spread_B: Tensor


class LoggedFeedback:
    """Duration-aware advantages of the training events."""

    def __init__(self, prompts: Prompts, settings: LoggedFeedbackSettings) -> None:
        training = prompts.training
        self._percentiles_N = log_percentiles(training.offsets, training.feedback, settings)
        self._dislikes_N = np.zeros(training.num_events, dtype=bool)
        if settings.dislike_column is not None:
            self._dislikes_N = np.nan_to_num(require_column(training.feedback, settings.dislike_column)) > 0
        self._top_share = settings.top_share

    def advantages(self, rows: np.ndarray) -> np.ndarray:
        """Advantages of the events in these rows, taken as one batch."""
        return duration_aware_advantages(self._percentiles_N[rows], self._dislikes_N[rows], self._top_share)


class ExperienceMaker:
    """Has items generated for the prompts of each rollout, and says what they are worth.

    Args:
        generate: this process's share of a rollout.
        rank, num_processes: of the trainers.

    Raises:
        ConfigError: fewer prompts than a step takes, or a step that the processes cannot share evenly.
        DataError: a feedback column that is missing or constant.
    """

    def __init__(
        self, plan: RolloutPlan, generate: Generate, reward: ItemReward, rank: int = 0, num_processes: int = 1
    ) -> None:
        self._plan, self._generate, self._reward, self._settings = plan, generate, reward, plan.settings
        self._rank, self._num_processes = rank, num_processes
        feedback = plan.settings.feedback
        self._feedback = LoggedFeedback(plan.prompts, feedback) if feedback else None
        wanted = plan.settings.prompts_per_step
        if wanted > len(plan.prompts.rows) or wanted % num_processes:
            raise ConfigError(
                f"align.prompts_per_step: found {wanted}, expected at most the {len(plan.prompts.rows)} training "
                f"events with a history, and a multiple of the {num_processes} processes."
            )

    def make(self, policy: Policy, reference: OneRec, number: int) -> tuple[Experience, Judged]:
        """The experience of rollout `number`; the policy is left in the mode it was in."""
        was_training = policy.training
        policy.eval()
        prompts, rollout = self._generate(policy.model, number)
        judged, advantages_BG = self._judge(prompts, rollout)
        if self._settings.objective.kind == "dpo":
            rollout = _pairs(judged)
        free_codes_BFL, free_advantages_BF = self._sample_freely(policy.model, prompts, number)
        logged_B = None
        if self._feedback is not None:
            own = slice(self._rank, None, self._num_processes)
            advantages_B = self._feedback.advantages(self._plan.rows(number))[own]
            logged_B = torch.from_numpy(advantages_B).to(policy.model.device)
        reference_BG = self._reference_scores(reference, prompts, rollout)
        policy.train(was_training)
        old_BG = rollout.behaviour_BG
        if old_BG is None:
            old_BG = torch.full_like(rollout.scores_BG, float("nan"))
        experience = Experience(
            prompts, rollout, advantages_BG, old_BG, reference_BG, free_codes_BFL, free_advantages_BF, logged_B
        )
        return experience, judged

    def _judge(self, prompts: PromptBatch, rollout: Rollout) -> tuple[Judged, Tensor]:
        items_BG = rollout.items_BG.masked_fill(~rollout.present_BG, -1).cpu().numpy()
        rewards = self._reward(prompts, items_BG, rollout.scores_BG.cpu().numpy())
        rewards_BG = torch.from_numpy(rewards).to(rollout.items_BG.device)
        advantages_BG, spread_B = group_advantages(
            rewards_BG, rollout.present_BG, self._settings.objective.scale_advantages
        )
        targets_B = torch.from_numpy(prompts.targets_B).to(rollout.items_BG.device)
        return Judged(rollout, rewards_BG, targets_B, spread_B), advantages_BG

    @torch.no_grad()
    def _sample_freely(self, model: OneRec, prompts: PromptBatch, number: int) -> tuple[Tensor | None, Tensor | None]:
        """Codes drawn without the trie and the format reward's advantages, where the config asks for them."""
        settings = self._settings.format
        if settings is None:
            return None, None
        noise, choice = np.random.SeedSequence([self._plan.seed, number, self._rank, _FREE]).spawn(2)
        generator = torch.Generator(model.device).manual_seed(int(noise.generate_state(1)[0]))
        context = prompts.encode(model)
        samples = sample_items(model, context, self._plan.trie, settings.group_size, generator, constrained=False)
        chooser = np.random.default_rng(choice)
        advantages_BF = format_advantages((samples.items_BG >= 0).cpu().numpy(), settings.chosen, chooser)
        return samples.codes_BGL, torch.from_numpy(advantages_BF).to(model.device)

    @torch.no_grad()
    def _reference_scores(self, reference: OneRec, prompts: PromptBatch, rollout: Rollout) -> Tensor | None:
        """Log-probabilities under the reference, where the objective reads them."""
        if not self._settings.objective.kl_weight and self._settings.objective.kind != "dpo":
            return None
        excluded = prompts.seen if self._settings.rollout.exclude_seen else None
        judge = Policy(reference, self._plan.trie, self._settings)
        return judge.score(prompts.encode(reference), rollout.items_BG, excluded).log_probs_BG


def _pairs(judged: Judged) -> Rollout:
    """The best and the worst item of every group that has any spread."""
    rollout = judged.rollout
    places_B2 = best_and_worst(judged.rewards_BG, rollout.present_BG)
    present_B2 = judged.spread_B[:, None].expand_as(places_B2)
    return Rollout(rollout.items_BG.gather(1, places_B2), present_B2, rollout.scores_BG.gather(1, places_B2))

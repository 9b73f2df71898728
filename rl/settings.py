"""The sections of a run's config that post-training reads: reward and align."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from onerec.config import RunConfig
from rl.dpo import PreferenceSettings
from rl.preference.settings import RewardModelSettings
from rl.rewards.feedback import FeedbackSettings
from rl.rewards.future import FutureRewardSettings
from rl.rewards.industrial import Rule
from rl.rewards.preference import PreferenceRewardSettings
from tokenizer.settings import Settings


class RolloutSettings(Settings):
    """What the policy generates for each prompt."""

    kind: Literal["sample", "distinct", "beam"] = Field(
        "distinct", description="independent samples; samples without replacement; or the beam (the report's choice)"
    )
    group_size: int = Field(16, ge=2, description="items of a prompt, 2 or more (MiniOneRec: 16; the report: 512)")
    temperature: PositiveFloat = Field(1.0, description="of samples, and of the scores that the objective takes")
    top_p: float = Field(1.0, gt=0, le=1, description="of sample: mass of the likeliest choices of a step that is kept")
    exclude_seen: bool = Field(False, description="generate no item of the prompt's history")
    updates: PositiveInt = Field(1, description="optimiser steps on each rollout; 1 is on-policy")
    workers: int = Field(0, ge=0, description="processes of this host that generate for each trainer's; 0: it itself")
    sync_every: PositiveInt = Field(
        1, description="workers: rollouts from one sending of the weights to the next; 1 is on-policy"
    )

    @model_validator(mode="after")
    def _mass_is_cut_where_choices_are_drawn(self) -> "RolloutSettings":
        if self.top_p < 1 and self.kind != "sample":
            raise ValueError(f"top_p: found {self.top_p} with kind {self.kind}, expected 1, or kind sample")
        return self

    @model_validator(mode="after")
    def _weights_are_sent_to_someone(self) -> "RolloutSettings":
        if self.sync_every > 1 and not self.workers:
            raise ValueError(f"sync_every: found {self.sync_every} without workers, expected 1, or workers above 0")
        return self

    @property
    def off_policy(self) -> bool:
        """Whether the policy may have moved on from the one that has generated."""
        return self.updates > 1 or self.sync_every > 1


class RewardSettings(Settings):
    """What a generated item earns: a sum, then the rules in their order."""

    base: float = Field(0.0, description="every item's reward, for rules that multiply")
    rank_weight: float = Field(1.0, ge=0, description="weight of the ranking reward on the prompt's target; 0: none")
    prefix_credit: float = Field(0.0, ge=0, le=1, description="ranking reward: credit for leading codes that are right")
    preference: PreferenceRewardSettings | None = Field(None, description="what the reward model expects; null: none")
    future: FutureRewardSettings | None = Field(None, description="what the user came to later; null: none")
    rules: tuple[Rule, ...] = Field((), description="industrial rules, see rl/rewards/industrial.py")


class FormatSettings(Settings):
    """The format reward: samples without the trie, some of which are raised where legal."""

    weight: PositiveFloat = Field(1.0, description="of the format term in the loss")
    group_size: PositiveInt = Field(128, description="samples of a prompt without the trie (the report: 128)")
    chosen: PositiveInt = Field(5, description="random ones of them that count (the report: 5)")

    @model_validator(mode="after")
    def _chosen_of_group(self) -> "FormatSettings":
        if self.chosen > self.group_size:
            raise ValueError(f"chosen: found {self.chosen}, expected at most group_size = {self.group_size}")
        return self


class LoggedFeedbackSettings(FeedbackSettings):
    """Training events as samples of their own, with the duration-aware advantage and no behaviour probability."""

    weight: PositiveFloat = Field(1.0, description="of the logged samples' term in the loss")


class ObjectiveSettings(Settings):
    """How advantages become a loss; see rl/objectives.py."""

    kind: Literal["grpo", "cispo", "sapo", "vespo", "ecpo", "gbpo", "dpo"] = Field(
        "ecpo", description="the surrogate; dpo takes the best against the worst of a group"
    )
    scale_advantages: bool = Field(True, description="by the group's standard deviation; Dr. GRPO: false")
    weight: float = Field(1.0, ge=0, description="of the surrogate in the loss")
    epsilon: float = Field(0.2, gt=0, lt=1, description="clip range of grpo and ecpo (TRL: 0.2)")
    epsilon_high: PositiveFloat | None = Field(
        None, description="range above 1 of grpo (DAPO: 0.28) and cispo (ScaleRL: 4); null: epsilon"
    )
    delta: float = Field(0.1, ge=0, description="ecpo: room above 1 + epsilon for bad samples (the report: 0.1)")
    scoring: Literal["constrained", "plain"] = Field(
        "constrained", description="item probability: renormalised over the catalogue's codes, or over all codes"
    )
    kl_weight: float = Field(0.0, ge=0, description="of the KL to the reference (the report: none; MiniOneRec: 1e-3)")
    preference: PreferenceSettings = PreferenceSettings()
    reference: Path | None = Field(None, description="folder of the reference's pre-training; null: this run's own")
    reference_every_steps: PositiveInt | None = Field(None, description="moving reference: steps between its updates")
    reference_mixture: float = Field(0.6, gt=0, le=1, description="share of the policy in an update (TRL: 0.6)")


class SupervisedSettings(Settings):
    """Next-token loss that runs beside the reward and holds the policy."""

    weight: float = Field(1.0, ge=0, description="of the supervised loss")
    max_positions_per_step: PositiveInt = Field(2048, description="history positions of a step, over all processes")
    filter_column: str | None = Field(None, description="RSFT: feedback column whose lowest targets are dropped")
    drop_share: float = Field(0.5, gt=0, lt=1, description="RSFT: share of targets that is dropped (the report: 0.5)")


class MonitorSettings(Settings):
    """What is watched, how often, and when training is stopped with the last good weights."""

    every_steps: PositiveInt = Field(20, description="steps between lines, checks and checkpoints")
    users: PositiveInt | None = Field(1000, description="validation users of a check, a seeded sample; null: all")
    probe_prompts: PositiveInt = Field(128, description="training prompts on which legality, KL and entropy are taken")
    min_legality_ratio: float = Field(0.5, ge=0, description="stop below this share of the pre-trained legality")
    min_coverage_ratio: float = Field(0.5, ge=0, description="stop below this share of the first line's coverage")
    max_metric_drop: float = Field(0.1, ge=0, description="stop this share below the pre-trained selection metric")


class AlignSettings(Settings):
    """The stage that aligns a pre-trained model with rewards."""

    steps: PositiveInt = Field(200, description="optimiser steps")
    prompts_per_step: PositiveInt = Field(64, description="training events whose histories are prompts of a step")
    learning_rate: PositiveFloat = Field(1e-4, description="of AdamW, constant (the report: 8e-5 to 1e-4)")
    warmup_steps: int = Field(10, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, on all weights")
    max_gradient_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardSettings = RewardSettings()
    format: FormatSettings | None = None
    legality_weight: float = Field(
        0.0, ge=0, description="of the mean log-probability that free choices along the generated items stay legal"
    )
    feedback: LoggedFeedbackSettings | None = None
    objective: ObjectiveSettings = ObjectiveSettings()
    supervised: SupervisedSettings = SupervisedSettings()
    monitor: MonitorSettings = MonitorSettings()

    @model_validator(mode="after")
    def _something_is_learnt(self) -> "AlignSettings":
        weights = (self.objective.weight, self.supervised.weight, self.legality_weight)
        if not any(weights) and self.format is None and self.feedback is None:
            raise ValueError(
                "objective.weight: found 0, as are supervised.weight and legality_weight, without format and feedback; "
                "expected one of them, or no gradient moves the policy"
            )
        return self

    @model_validator(mode="after")
    def _lines_tell_of_as_many_steps(self) -> "AlignSettings":
        if self.steps > self.monitor.every_steps and self.steps % self.monitor.every_steps:
            raise ValueError(
                f"steps: found {self.steps}, expected a multiple of monitor.every_steps = {self.monitor.every_steps}, "
                "or fewer: a last line of fewer steps would have less coverage, and might stop the training for it"
            )
        return self

    @model_validator(mode="after")
    def _rollouts_end_at_checkpoints(self) -> "AlignSettings":
        steps_of_weights = self.rollout.updates * self.rollout.sync_every
        if self.monitor.every_steps % steps_of_weights:
            raise ValueError(
                f"monitor.every_steps: found {self.monitor.every_steps}, expected a multiple of rollout.updates x "
                f"rollout.sync_every = {steps_of_weights}, so that every checkpoint begins a rollout with its weights"
            )
        return self


class AlignedRunConfig(RunConfig):
    """A run's config with the sections that only post-training reads; the run itself does not depend on them."""

    reward: RewardModelSettings = RewardModelSettings()
    align: AlignSettings = AlignSettings()

    def run_config(self) -> RunConfig:
        """The config without those sections, which is what the run's folder is bound to."""
        return RunConfig.model_validate(self.model_dump(exclude={"reward", "align"}))

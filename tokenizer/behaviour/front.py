"""The frozen front: token vectors of any item -> its vector, stored with the tokenizer and used for new items alike.

Legend: N items, D width of all queries together.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from tokenizer.artifacts import hash_arrays, hash_text
from tokenizer.behaviour.networks import QFormer
from tokenizer.behaviour.pairs import behaviour_pairs
from tokenizer.behaviour.tokens import TEXT, ItemTokens
from tokenizer.behaviour.training import LossRecord, train_qformer
from tokenizer.config import TokenizerSettings
from tokenizer.errors import ArtifactError, DataError
from tokenizer.sequences import Sequences

_BATCH_ITEMS = 256


class FrontReport(BaseModel):
    """What the front was trained on, and what was cut."""

    items_read: int  # items with a token of any kind
    texts_at_limit: int  # texts of as many tokens as are read: those that were longer are among them
    user_pairs: int
    swing_pairs: int
    swing_capped_items: int  # items with more users than Swing counts
    swing_left_out: int  # (user, item) meetings that Swing did not count
    losses: list[LossRecord]


@dataclass(frozen=True)
class BehaviourFront:
    """A trained QFormer."""

    qformer: QFormer

    def vectors(self, tokens: ItemTokens) -> np.ndarray:
        """Vectors of all items, float32 (N, D); those without tokens have a zero row.

        Raises:
            DataError: token vectors of another encoder than at fitting time.
        """
        expected = self.qformer.facts["token_widths"]
        if not tokens.widths.items() <= expected.items():
            raise DataError(
                f"token vectors: found widths {tokens.widths}, expected {expected} as at fitting time. "
                "Use the encoders that the tokenizer was fitted with."
            )
        counts_N = tokens.counts
        known = np.argsort(-counts_N, kind="stable")[: np.count_nonzero(counts_N)]  # alike lengths: little padding
        vectors_ND = np.zeros((len(counts_N), self.qformer.queries.numel()), dtype=np.float32)
        starts = range(0, len(known), _BATCH_ITEMS)
        for start in tqdm(starts, desc="behaviour vectors", leave=False, disable=len(starts) < 2):
            rows = known[start : start + _BATCH_ITEMS]
            with torch.inference_mode():
                vectors_ND[rows] = self.qformer(tokens.batch(rows)).flatten(1).numpy()
        return vectors_ND

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        save_file(self.qformer.state_dict(), path, metadata={"qformer": json.dumps(self.qformer.facts)})

    @classmethod
    def load(cls, path: Path) -> "BehaviourFront":
        """Read what `save` wrote; raises ArtifactError where it is missing or damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                qformer = QFormer(**json.loads(file.metadata()["qformer"]))
                qformer.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise ArtifactError(f"{path}: not a readable QFormer ({error}). Fit the tokenizer again.") from error
        return cls(qformer.eval().requires_grad_(False))


def fit_front(
    tokens: ItemTokens, sequences: Sequences, settings: TokenizerSettings
) -> tuple[BehaviourFront, FrontReport]:
    """Train the QFormer on training events; a finished or stopped training of equal inputs is taken up.

    Raises:
        DataError: no two items with tokens that a user met.
        ArtifactError: a damaged state of a stopped training.
    """
    chosen = settings.behaviour
    pairs = behaviour_pairs(sequences, tokens.known, settings)
    state = None
    if settings.text.cache_folder:
        keys = {name: kind.key for name, kind in tokens.kinds.items()}
        identity = [
            keys,
            hash_arrays(pairs.pairs_P2),
            chosen.model_dump(mode="json", exclude={"weight"}),
            settings.seed,
        ]
        state = Path(settings.text.cache_folder) / f"{hash_text(json.dumps(identity))[:32]}.qformer.pt"
    qformer, losses = train_qformer(tokens, pairs.pairs_P2, chosen, settings.seed, settings.text.device, state)
    report = FrontReport(
        items_read=int(tokens.known.sum()),
        texts_at_limit=int((tokens.kinds[TEXT].counts_N >= chosen.max_text_tokens).sum()),
        user_pairs=pairs.num_user_pairs,
        swing_pairs=pairs.num_swing_pairs,
        swing_capped_items=pairs.capped_items,
        swing_left_out=pairs.meetings_left_out,
        losses=losses,
    )
    return BehaviourFront(qformer), report

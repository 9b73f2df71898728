"""Format reward of the technical report (arXiv 2506.13695): legal samples are raised, illegal ones ignored.

Reinforcement alone pushes probability into codes that no item has. Of the G samples of a request that were drawn
without the trie, K are taken *at random*: advantage 1 where legal. Illegal ones are dropped, not punished, and so are
all that were not taken. Taking the likeliest K instead would only confirm what the policy already does.

Shapes: B requests, G samples of a request.
"""

import numpy as np

from onerec.errors import ConfigError


def format_advantages(legal_BG: np.ndarray, num_chosen: int, generator: np.random.Generator) -> np.ndarray:
    """Advantage 1 for the legal ones among `num_chosen` random samples of each request, else 0. float32 (B, G).

    Raises:
        ConfigError: more are to be chosen than there are samples.
    """
    num_samples = legal_BG.shape[1]
    if not 1 <= num_chosen <= num_samples:
        raise ConfigError(
            f"format reward: found {num_chosen} samples to choose of {num_samples}, expected 1 to {num_samples}."
        )
    places_BG = np.argsort(generator.random(legal_BG.shape), axis=1)
    return (legal_BG & (places_BG < num_chosen)).astype(np.float32)

"""The engine's own options."""

from pathlib import Path

import numpy as np
import pytest

from onerec.bundle import Bundle
from onerec.errors import ConfigError
from onerec.serving.engine import Engine
from onerec.serving.limits import Limits
from onerec.serving.schema import RecommendRequest


def scores(engine: Engine) -> list[float]:
    (answer,) = engine.answer([engine.query(RecommendRequest(history=[103, 117], k=10))])
    return [item.score for item in answer.items]


def test_the_weights_may_have_another_precision_than_the_bundles(small_bundle: Path) -> None:
    bundle = Bundle.load(small_bundle)
    expected = bundle.recommender(precision="int8").recommend([np.array([3, 17])], 10, exclude_seen=True)
    plain, engine = Engine(bundle, Limits()), Engine(bundle, Limits(precision="int8"))
    np.testing.assert_array_equal(scores(engine), expected.scores_BK[0])
    assert scores(engine) != scores(plain)
    with pytest.raises(ConfigError, match="float8"):
        Engine(bundle, Limits(precision="float8"))  # which no processor multiplies

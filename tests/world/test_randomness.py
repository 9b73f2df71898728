"""Counter-based random numbers: reference values of SplitMix64, uniform, independent of each other."""

import numpy as np
from scipy import stats

from onerec.world.randomness import Purpose, fold, normal, purpose_key, uniform


def test_folding_the_counter_of_key_zero_is_splitmix64() -> None:
    """The first outputs of SplitMix64 with seed 0, as its published reference code prints them."""
    reference = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    np.testing.assert_array_equal(fold(np.uint64(0), np.arange(4)), np.array(reference, np.uint64))


def test_numbers_depend_on_key_and_lane_alone() -> None:
    keys = fold(purpose_key(7, Purpose.USER), np.arange(1_000))
    whole = uniform(keys[:, None], np.arange(3))
    np.testing.assert_array_equal(uniform(keys[500:501, None], np.arange(2, 3)), whole[500:501, 2:])


def test_uniform_and_normal_have_their_distributions() -> None:
    keys = fold(purpose_key(7, Purpose.DRIFT), np.arange(50_000))
    assert stats.kstest(uniform(keys, 0), "uniform").pvalue > 1e-3
    assert stats.kstest(normal(keys, 1), "norm").pvalue > 1e-3
    assert 0 < uniform(keys, 0).min() < uniform(keys, 0).max() < 1


def test_neighbouring_seeds_purposes_counters_and_lanes_are_uncorrelated() -> None:
    counters = np.arange(50_000)
    base = uniform(fold(purpose_key(7, Purpose.DRIFT), counters), 0)
    neighbours = [
        uniform(fold(purpose_key(8, Purpose.DRIFT), counters), 0),
        uniform(fold(purpose_key(7, Purpose.TIME), counters), 0),
        uniform(fold(purpose_key(7, Purpose.DRIFT), counters + 1), 0),
        uniform(fold(purpose_key(7, Purpose.DRIFT), counters), 1),
    ]
    for other in neighbours:
        assert abs(np.corrcoef(base, other)[0, 1]) < 4.5 / np.sqrt(len(counters))

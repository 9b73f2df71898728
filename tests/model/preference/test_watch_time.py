"""The mixture is a distribution of times: by hand, against numerical integration, and fitted to a sample."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from onerec.model.preference.watch_time import WatchTime, num_outputs

TIMES = torch.linspace(0, 400, 20_001, dtype=torch.float64)


def random_mixtures(seed: int, count: int = 3, num_gaussians: int = 2) -> WatchTime:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(count, num_outputs(num_gaussians), generator=generator, dtype=torch.float64)
    return WatchTime.of(raw, unit_seconds=10.0)


def on_grid(watched: WatchTime) -> WatchTime:
    """The same distributions with a last axis for times, over which they broadcast."""
    return WatchTime(watched.log_weights[:, None], watched.theta[:, None], watched.mu[:, None], watched.sigma[:, None])


def integral(values: Tensor) -> Tensor:
    return torch.trapezoid(values, TIMES, dim=-1)


def test_an_exponential_alone_by_hand() -> None:
    nothing = -math.inf
    watched = WatchTime(
        torch.tensor([[0.0, nothing]]), torch.tensor([4.0]), torch.tensor([[9.0]]), torch.tensor([[1.0]])
    )
    assert watched.log_density(torch.tensor([2.0])).item() == pytest.approx(-0.5 - math.log(4))
    assert watched.cdf(torch.tensor([2.0])).item() == pytest.approx(1 - math.exp(-0.5))
    assert watched.mean().item() == pytest.approx(4)
    assert watched.quantile(0.5).item() == pytest.approx(4 * math.log(2), rel=1e-5)


def test_a_gaussian_cut_at_its_mean_is_a_half_normal() -> None:
    """With mu near 0 half of the mass is cut off: density doubled, mean sigma * sqrt(2 / pi)."""
    watched = WatchTime(
        torch.tensor([[-math.inf, 0.0]]), torch.tensor([1.0]), torch.tensor([[0.0]]), torch.tensor([[3.0]])
    )
    assert watched.mean().item() == pytest.approx(3 * math.sqrt(2 / math.pi))
    assert watched.log_density(torch.tensor([0.0])).item() == pytest.approx(math.log(2 / (3 * math.sqrt(2 * math.pi))))
    assert watched.cdf(torch.tensor([3.0])).item() == pytest.approx(0.6826895, rel=1e-5)
    assert watched.quantile(0.6826895).item() == pytest.approx(3, rel=1e-5)


def test_the_entropy_of_even_weights_is_the_log_of_their_number() -> None:
    watched = WatchTime.of(torch.zeros(2, num_outputs(3)), 1.0)
    torch.testing.assert_close(watched.entropy(), torch.full((2,), math.log(4)))


@pytest.mark.parametrize("seed", range(5))
def test_density_mean_and_distribution_function_agree(seed: int) -> None:
    watched = random_mixtures(seed)
    density = on_grid(watched).log_density(TIMES.expand(3, -1)).exp()
    torch.testing.assert_close(integral(density), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(integral(density * TIMES), watched.mean(), rtol=1e-3, atol=1e-3)
    summed = torch.cumulative_trapezoid(density, TIMES, dim=-1)
    torch.testing.assert_close(on_grid(watched).cdf(TIMES[1:].expand(3, -1)), summed, rtol=0, atol=1e-3)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_a_quantile_is_the_inverse_of_the_distribution_function(seed: int, probability: float) -> None:
    watched = random_mixtures(seed, num_gaussians=4)
    found = watched.cdf(watched.quantile(probability))
    torch.testing.assert_close(found, torch.full_like(found, probability), rtol=0, atol=1e-9)


def test_the_unit_scales_times_and_nothing_else() -> None:
    raw = torch.randn(5, num_outputs(2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small, large = WatchTime.of(raw, 1.0), WatchTime.of(raw, 60.0)
    seconds = torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(large.mean(), 60 * small.mean())
    torch.testing.assert_close(large.quantile(0.3), 60 * small.quantile(0.3))
    torch.testing.assert_close(large.log_density(60 * seconds), small.log_density(seconds) - math.log(60))


def test_likelihood_finds_quick_skips_beside_long_views() -> None:
    """Four tenths skip within two seconds on average, the others watch about 30."""
    rng = np.random.default_rng(0)
    skips = rng.random(4000) < 0.4
    seconds = torch.from_numpy(np.where(skips, rng.exponential(2.0, 4000), rng.normal(30, 4, 4000).clip(0)))
    raw = torch.zeros(1, num_outputs(2), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(300):
        loss = -WatchTime.of(raw, float(seconds.mean())).log_density(seconds).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fitted = WatchTime.of(raw.detach(), float(seconds.mean()))
    assert fitted.log_weights[0, 0].exp().item() == pytest.approx(0.4, abs=0.03)
    assert fitted.theta.item() == pytest.approx(2, rel=0.15)
    assert fitted.mean().item() == pytest.approx(float(seconds.mean()), rel=0.03)
    for probability in (0.1, 0.5, 0.9):
        share = (seconds <= fitted.quantile(probability)).double().mean().item()
        assert share == pytest.approx(probability, abs=0.02)

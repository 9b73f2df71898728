"""Settings of all tests."""

import hypothesis

# No test asserts a time: a loaded machine would fail it for nothing.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

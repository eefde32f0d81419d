"""Settings of the whole test run."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Machines that run the tests are shared: how long an example takes says nothing about the code.
settings.register_profile("hetsched", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hetsched")

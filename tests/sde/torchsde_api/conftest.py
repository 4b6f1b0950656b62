"""Brownian motions without entropy draw it from NumPy's global generator, which tests leave alone."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def own_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give both libraries a generator of the test's own."""
    monkeypatch.setattr(np.random, "randint", np.random.default_rng(0).integers)

"""The one pool of ranks of a test run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dist.pool import Pool


@pytest.fixture(scope="session")
def ranks() -> Iterator[Pool]:
    """Eight worker processes."""
    pool = Pool(8)
    yield pool
    pool.close()

"""The lists of quick and slow tests name tests that exist."""

import pytest

from tests.support import tiers


def test_every_entry_marks_a_test(request: pytest.FixtureRequest) -> None:
    assert request.config.stash[tiers.UNUSED] == []

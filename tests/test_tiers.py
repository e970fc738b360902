"""The lists of quick and slow tests are of tests that exist."""

from tests.support import tiers


def test_every_entry_marks_a_test(request):
    assert request.config.stash[tiers.UNUSED] == []

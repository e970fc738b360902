"""The tiers that tests are run in, files that need what is not installed, and the fixtures that all tests have.

- ``pytest -m quick``: before a push, two minutes, with the extra ``dev`` alone: the method on tensors, the recorded
  tensors, the contract in float32, the main job.
- ``pytest``: every property, at least once for each family that it could fail for.
- ``pytest -m slow``: what takes long and shows in breadth what the tests above show by example.
- ``pytest -m ""``: all of them, as ``.ci/run`` does.

support/tiers.py lists the quick and the slow tests, with what a plain run keeps of each property. Where a library that
only the extra ``test`` brings is missing, a file of tests that imports it is skipped as a whole, and the reason names
the library.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.support import tiers
from tests.support.golden import shared

# Shapes are random, machines are slow: bound the number of examples, not their time.
settings.register_profile("algm", deadline=None, max_examples=60)
settings.load_profile("algm")
torch.set_num_threads(1)  # tiny models; tests run in parallel


class Module(pytest.Module):
    """A file of tests. It is skipped if it imports a library of the extra "test" that is missing."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            cause = error.__cause__
            missing = cause.name.partition(".")[0] if isinstance(cause, ModuleNotFoundError) and cause.name else ""
            if missing not in tiers.HEAVY:
                raise
            pytest.skip(f"needs {missing}: pip install -e '.[test]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return Module.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[tiers.UNUSED] = tiers.mark(items)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with CamVid and its head, or skip the test."""
    place = shared()
    if place is None:
        pytest.skip("ALGM_SHARED does not name the folder with CamVid and its head")
    return place / "data"

"""Code that is not on PyPI: checkouts in the folder that ALGM_THIRD_PARTY names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


def third_party(name: str) -> Path:
    """Make a checkout, or a folder in it such as "EVA/EVA-01/seg", importable. Return its path, or skip the test."""
    place = os.environ.get("ALGM_THIRD_PARTY")
    path = Path(place or "", name)
    if place is None or not path.is_dir():
        pytest.skip(f"ALGM_THIRD_PARTY names no folder with a checkout of {name}")
    if str(path) not in sys.path:  # nothing of a checkout can be installed
        sys.path.append(str(path))
    return path


def import_from(*checkouts: Path, needed: Path) -> None:
    """Make checkouts importable before anything that is installed, and what they need after it."""
    sys.path[:0] = map(str, checkouts)
    sys.path.append(str(needed))

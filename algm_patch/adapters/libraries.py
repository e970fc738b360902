"""Know the libraries themselves: the oldest releases whose blocks are known, and where classes are kept."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version

# The oldest releases whose blocks are known.
FLOORS = {"timm": "1.0.17", "transformers": "4.49"}

# Folders of transformers.models whose vision model is in a file of another name.
FILES = {"data2vec": "data2vec_vision", "donut": "donut_swin", "maskformer": "maskformer_swin"}


def why_too_old(library: str) -> str | None:
    """Return why the loaded release of a library is too old for its blocks to be known; None if it is not.

    Args:
        library: name of a top-level package, such as ``"timm"``.
    """
    floor, found = FLOORS.get(library), version_of(library)
    if floor is None or found is None or numbers_in(found) >= numbers_in(floor):
        return None
    return (
        f"it comes from {library} {found}, and ALGM knows the blocks of {library} {floor} and later. "
        f"Install {library}>={floor}"
    )


def version_of(library: str) -> str | None:
    """Return the version of a loaded library; None if it states none, as a copy inside another project may."""
    try:
        return version(library)
    except PackageNotFoundError:
        return getattr(sys.modules.get(library), "__version__", None)


def numbers_in(release: str) -> list[int]:
    """Return the first three numbers of a version."""
    return [int(number) for number in re.findall(r"\d+", release)[:3]]


def transformers_path(name: str) -> str:
    """Return the path of a class of transformers, given as ``"folder.Class"`` such as ``"vit.ViTLayer"``."""
    folder, _, cls = name.partition(".")
    return f"transformers.models.{folder}.modeling_{FILES.get(folder, folder)}.{cls}"

"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a file beside ``path`` to write to, which afterwards takes its place; after an error it is removed.

    Whoever reads ``path`` meanwhile finds what was there before. A symbolic link stays one, to a new file.

    Raises:
        FileNotFoundError: if the folder of ``path`` is not there.
    """
    path = Path(path).resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: {path.parent} is not a folder")
    unfinished = path.with_name(f".{uuid4().hex}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)

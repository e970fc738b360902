"""Old names and orders, which work with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deprecated(message: str, file: str) -> Iterator[None]:
    """Assert that the body gives one warning, a DeprecationWarning with this text, that points to a line of a file.

    By default Python shows a DeprecationWarning only if it points to the user's own code.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert message in str(warning.message)
    assert warning.filename == file

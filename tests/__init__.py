"""Tests, in the layout of the library; what they share is in ``tests.support``."""

import pytest

pytest.register_assert_rewrite("tests.support")

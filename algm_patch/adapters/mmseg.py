"""Blocks of mmsegmentation."""

from __future__ import annotations

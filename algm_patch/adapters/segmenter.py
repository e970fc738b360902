"""Blocks of Segmenter."""

from __future__ import annotations

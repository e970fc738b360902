"""Blocks of transformers."""

from __future__ import annotations

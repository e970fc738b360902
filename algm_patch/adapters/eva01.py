"""Blocks of the EVA-01 segmentation code."""

from __future__ import annotations

"""Blocks of torch.hub's DINOv2 and open_clip."""

from __future__ import annotations

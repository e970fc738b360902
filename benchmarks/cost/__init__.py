"""Measure time, memory and GFLOPs."""

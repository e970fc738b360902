"""Thresholds and layers, found by measurement."""

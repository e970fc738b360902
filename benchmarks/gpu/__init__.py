"""Measure what ALGM gains on a GPU."""

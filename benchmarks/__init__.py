"""Measure what ALGM costs and keeps. Run a module from the repository root: ``python -m benchmarks.WING.NAME``."""

"""Models of the EVA-01 segmentation code."""

from contract import Case

CASES: dict[str, Case] = {}

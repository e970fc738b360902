"""Models of Segmenter."""

from contract import Case

CASES: dict[str, Case] = {}

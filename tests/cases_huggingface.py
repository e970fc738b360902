"""Models of transformers."""

from contract import Case

CASES: dict[str, Case] = {}

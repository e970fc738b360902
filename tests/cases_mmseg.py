"""Models of mmsegmentation."""

from contract import Case

CASES: dict[str, Case] = {}

"""Models of torch.hub's DINOv2 and open_clip."""

from contract import Case

CASES: dict[str, Case] = {}

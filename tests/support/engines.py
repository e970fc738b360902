"""Find in an ONNX graph what engines, TensorRT first of all, are known not to take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# The operators whose results have a shape that values decide, and those that hold graphs of their own.
BY_VALUE = {"NonZero", "Compress", "Unique", "If", "Loop", "Scan", "Sequence"}
LARGEST_TOPK = 3840  # TensorRT's


def not_taken(program: Any) -> list[str]:
    """Return a sentence on each operation of an ONNX program (of ``torch.onnx.export``) that some engine lacks."""
    return [f"{node.op_type} {node.name}: {why}" for node in program.model.graph.all_nodes() for why in faults(node)]


def faults(node: Any) -> Iterator[str]:
    """Yield what engines do not take of one operation."""
    kind, types = node.op_type, [value.dtype for value in node.inputs if value is not None]
    data = str(types[0]) if types else ""
    reduction = node.attributes["reduction"].value if "reduction" in node.attributes else "none"
    if None in types:
        yield "of a type that is not known"
    if kind in BY_VALUE:
        yield "its shape depends on values"
    if kind == "TopK":
        count = node.inputs[1].const_value
        if count is None or count.numpy().item() > LARGEST_TOPK:
            yield f"takes {'an unknown number' if count is None else count.numpy().item()}"
    if kind == "ScatterND" and reduction != "none":
        yield f"reduces by {reduction}, where indices come twice"
    if kind == "ScatterElements" and reduction != "none" and data == "INT64":
        yield f"reduces int64 by {reduction}"
    if kind.startswith(("Reduce", "CumSum", "ArgM")) and data == "INT64":
        yield "reduces int64"
    if kind.startswith(("Pad", "Scatter", "Reduce", "CumSum")) and data == "BOOL":
        yield "is of bool"

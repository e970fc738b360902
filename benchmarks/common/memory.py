"""Measure the memory that a call allocates."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_memory(function: Callable[[Tensor], object], x: Tensor) -> float:
    """Return the bytes at the peak of ``function(x)``, beyond what was allocated before."""
    if x.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function(x)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function(x)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    allocations = [event["args"] for event in events if event.get("name") == "[memory]"]
    start = allocations[0]["Total Allocated"] - allocations[0]["Bytes"]
    return float(max(event["Total Allocated"] for event in allocations) - start)

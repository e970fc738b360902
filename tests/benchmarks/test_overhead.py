"""The overhead benchmark."""

import sys

import overhead


def test_the_overhead_benchmark_runs(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["overhead.py", "--model", "vit_tiny_patch16_224", "--size", "128", "--rounds", "1"]
    )
    overhead.main()
    printed = capsys.readouterr().out
    assert printed.count("proportional") == len(overhead.SHARES)
    assert printed.count("plain") == len(overhead.SHARES)

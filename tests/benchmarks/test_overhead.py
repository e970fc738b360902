"""Overhead prints a row for each share of windows, plain and proportional, of every model."""

from benchmarks.cost import overhead


def test_the_overhead_benchmark_runs(capsys):
    overhead.main(["--model", "vit_tiny_patch16_224", "--size", "128", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert printed.count("proportional") == len(overhead.SHARES)
    assert printed.count("plain") == len(overhead.SHARES)

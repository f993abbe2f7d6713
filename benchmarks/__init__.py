"""Benchmarks: `python -m benchmarks`, or `ci/bench`."""

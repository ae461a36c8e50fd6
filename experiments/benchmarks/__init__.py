"""Benchmarks: ours beside the peers, measured in one run, printed as tables."""

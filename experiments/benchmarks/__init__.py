"""Benchmarks: dynopt_ray and peers (other libraries), measured in one run, printed as tables."""

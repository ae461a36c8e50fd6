"""Ready-to-launch specs, cluster files and benchmarks."""

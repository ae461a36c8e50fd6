"""`python -m experiments.benchmarks [NAME …]`: run all benchmarks, or those named."""

import importlib
import sys

BENCHMARKS = (
    "choice",
    "cluster",
    "cluster_simulation",
    "compensation",
    "device_waits",
    "growing",
    "packs",
    "pruning",
    "structure",
    "tabular",
)


def main() -> None:
    """Run the benchmarks, and print their tables."""
    names = sys.argv[1:] or BENCHMARKS
    for name in names:
        if name not in BENCHMARKS:
            sys.exit(f"no benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
        importlib.import_module(f"experiments.benchmarks.{name}").main()


if __name__ == "__main__":
    main()

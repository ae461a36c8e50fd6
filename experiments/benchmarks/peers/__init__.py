"""Scripts that run in the peers' own environments, as subprocesses of a benchmark."""

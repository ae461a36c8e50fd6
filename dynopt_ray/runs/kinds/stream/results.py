"""The results of learned events, kept in the run directory part by part."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import count
from typing import Any

import torch

from dynopt_ray.online import LearnResult, Rejected
from dynopt_ray.runs.parts import Parts


class KeptResults:
    """The results of a stream's events from the first one on, in files of the run directory.

    A learner that is restored after the death of its process knows the results of the events since
    its last snapshot only. So results are kept before each snapshot.

    Args:
        parts: the parts of the run.

    Attributes:
        results: the results so far, those of an earlier process included.

    Raises:
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.results: list[LearnResult] = []
        self._num_files = 0
        for number in count():
            kept = parts.result(_name(number))
            if kept is None:
                break
            self.results += _unpacked(kept)
            self._num_files = number + 1
        self._num_kept = len(self.results)

    def add(self, result: LearnResult) -> None:
        """Add the result of the next event."""
        self.results.append(result)

    def keep(self) -> None:
        """Write the results that were added since the last time.

        Raises:
            CheckpointError: they could not be written.
        """
        if self._num_kept < len(self.results):
            self._parts.finish(_name(self._num_files), _packed(self.results[self._num_kept :]))
            self._num_files += 1
            self._num_kept = len(self.results)


def _name(number: int) -> str:
    return f"stream-{number:06d}"


def _packed(results: Sequence[LearnResult]) -> dict[str, Any]:
    """Return one list per attribute, because a file of many small tensors is slow to read."""
    columns: dict[str, Any] = {
        field.name: [getattr(result, field.name) for result in results]
        for field in fields(LearnResult)
    }
    columns["rejected"] = [[[r.event, r.reason] for r in row] for row in columns["rejected"]]
    columns["output"] = torch.cat([output.cpu() for output in columns["output"]])
    return columns


def _unpacked(columns: Mapping[str, Any]) -> list[LearnResult]:
    sizes = [len(rows) for rows in columns["rows"]]
    outputs = columns["output"].split(sizes)
    names = [field.name for field in fields(LearnResult)]
    results = []
    for values in zip(*({**columns, "output": outputs}[name] for name in names), strict=True):
        row = dict(zip(names, values, strict=True))
        row["rejected"] = tuple(Rejected(*bad) for bad in row["rejected"])
        results.append(
            LearnResult(**{**row, "rows": tuple(row["rows"]), "errors": tuple(row["errors"])})
        )
    return results

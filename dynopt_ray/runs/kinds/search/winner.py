"""The spec that repeats the winner of a search."""

from collections.abc import Mapping
from typing import Any

from dynopt_ray.cluster import Space
from dynopt_ray.runs.kinds.search.spec import OwnTrialSpec, SearchSpec
from dynopt_ray.runs.run import Run
from dynopt_ray.runs.spec import dump

WINNER_FILE = "model/winner.yaml"


def keep_winner(run: Run, spec: SearchSpec | OwnTrialSpec, config: Mapping[str, Any]) -> None:
    """Write the spec of a search that runs the winner alone: model/winner.yaml."""
    (run.directory.path / WINNER_FILE).parent.mkdir(exist_ok=True)
    text = dump(winner_spec(spec, config).model_dump(mode="json"))
    run.directory.write_text(WINNER_FILE, text)


def winner_spec(
    spec: SearchSpec | OwnTrialSpec, config: Mapping[str, Any]
) -> SearchSpec | OwnTrialSpec:
    """Return the spec of a search that runs one configuration alone.

    It gives the same figures and the same network. If a scheduler changed the trial while it ran,
    the configuration is the last one, and so the figures differ.
    """
    alone = {"num_trials": 1, "searcher": "grid", "scheduler": None, "max_concurrent": None}
    if isinstance(spec.search.pack, int):
        alone["pack"] = 1  # without a pack, figures would be rounded otherwise
    if isinstance(spec, SearchSpec):
        alone["find_rate"] = False
    search = spec.search.model_copy(update=alone)
    return spec.model_copy(update={"search": search, "space": Space.parse(_only(config))})


def _only(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a space with one configuration: each value is the only option of a choice."""
    return {
        name: _only(value) if isinstance(value, Mapping) else [value]
        for name, value in config.items()
    }

"""A search whose trials are the user's own."""

from functools import partial
from typing import Any, cast

from dynopt_ray.cluster import Trial, check_configurations, check_pack
from dynopt_ray.errors import SpecError, described
from dynopt_ray.plugins import import_attribute
from dynopt_ray.runs.kind import PreparedRun
from dynopt_ray.runs.kinds.search.searched import (
    check_plugins,
    check_warm_start,
    searched,
    write_tables,
)
from dynopt_ray.runs.kinds.search.spec import OwnTrialSpec
from dynopt_ray.runs.kinds.search.tables import trial_points
from dynopt_ray.runs.kinds.search.winner import keep_winner
from dynopt_ray.runs.origin import NETWORK_FILE, Curves
from dynopt_ray.runs.run import Run
from dynopt_ray.storage import replace_file


def prepare_own(spec: OwnTrialSpec) -> PreparedRun:
    """Prepare the search.

    Raises:
        SpecError: the trial refuses its arguments or a configuration of the space.
        PluginError: there is no such trial.
    """
    check_plugins(spec.search, spec.space)
    trial = make_trial(spec.trial)
    check_configurations(trial, spec.space)
    check_pack(trial, spec.space, spec.search.pack, order=spec.search.order)
    return partial(_run, spec, trial)


def make_trial(config: str | dict[str, Any]) -> Trial:
    """Import a trial, or make one from a mapping with the name of what makes it and its arguments.

    Raises:
        SpecError: it refuses its arguments, or is no function.
        PluginError: it cannot be imported.
    """
    if isinstance(config, str):
        made = import_attribute(config)
    else:
        arguments = {key: value for key, value in config.items() if key != "name"}
        try:
            made = import_attribute(config["name"])(**arguments)
        except Exception as error:  # the user's own code may raise anything
            raise SpecError(f"trial: {config['name']}: {described(error)}") from error
    if not callable(made) or isinstance(made, type):
        raise SpecError(
            f"trial: {config!r:.100} is {made!r:.100}; give a function of a configuration. Of a "
            "class, give a mapping with its name and its arguments"
        )
    return cast(Trial, made)


def _run(spec: OwnTrialSpec, trial: Trial, run: Run) -> None:
    check_warm_start(run, spec.search, spec.space, spec.cost_weight)
    result = searched(
        run,
        trial,
        spec.space,
        settings=spec.search,
        cost_weight=spec.cost_weight,
        seed=spec.seed,
    )
    write_tables(run, result)
    run.directory.write_table("pareto", trial_points(result.trials))
    curves = Curves()
    best = result.history[result.history["trial"] == result.best.trial]
    for _, row in best.iterrows():
        curves.add(f"trial {result.best.trial}", int(row["step"]), accuracy=float(row["accuracy"]))
    curves.write(run)
    if result.network is not None:
        network, path = result.network, run.directory.path / NETWORK_FILE
        path.parent.mkdir(exist_ok=True)
        replace_file(path, lambda temporary: temporary.write_bytes(network))
    keep_winner(run, spec, result.best.config)

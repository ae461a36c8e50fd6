"""`kind: demo`: train a policy, let it adapt a network, search from there, learn on a stream."""

import copy
from functools import partial
from typing import Any, TypedDict

import pandas as pd

from dynopt_ray.cluster import SearchResult, session
from dynopt_ray.online import ArrayStream
from dynopt_ray.policies import ENVIRONMENT, AdaptResult, CostConfig, DQNPolicy
from dynopt_ray.runs.kind import PreparedRun
from dynopt_ray.runs.kinds.adapt import add_curve, points, run_adaptation, widths
from dynopt_ray.runs.kinds.demo.spec import DemoSpec
from dynopt_ray.runs.kinds.policy import check_environment, run_comparison, run_training
from dynopt_ray.runs.kinds.search import (
    add_best_curve,
    check_packs,
    check_plugins,
    front,
    run_search,
    trial_points,
)
from dynopt_ray.runs.kinds.stream import check_learner, make_stream, run_stream
from dynopt_ray.runs.origin import (
    Curves,
    Origin,
    figures,
    keep_network,
    prepare_origin,
    with_utility,
)
from dynopt_ray.runs.run import Run
from dynopt_ray.training import loaded_network


def prepare(spec: DemoSpec) -> PreparedRun:
    """Prepare all parts of the demo.

    Raises:
        SpecError: a plugin refuses its arguments, or the stream does not suit the task.
        DynoptError: the task or the starting network is missing or wrong.
    """
    check_plugins(spec.search, spec.space)
    check_learner(spec.learner)
    check_environment(ENVIRONMENT, _environment(spec))
    origin = prepare_origin(spec)
    check_packs(spec.search, spec.space, origin.task, spec.optimizer)
    return partial(_run, spec, origin, make_stream(origin.task, spec.stream, seed=spec.seed))


def _environment(spec: DemoSpec) -> dict[str, Any]:
    """Return options of an environment whose episodes are like the adaptation.

    They have the same task, λ, cost, decisions and training between decisions.
    """
    return {
        "task": spec.task,
        "device": spec.device,
        "cost_weight": spec.cost_weight,
        "cost": spec.cost,
        "horizon": spec.adapt.horizon,
        "train_steps": spec.adapt.train_steps,
        "actions": list(spec.adapt.actions),
    }


def _run(spec: DemoSpec, origin: Origin, stream: ArrayStream, run: Run) -> None:
    task, curves = origin.task, Curves()
    start = origin.model(run, curves)
    utility: _Utility = {"cost_weight": spec.cost_weight, "cost": spec.cost}
    with session(run.address):
        policy = _policy(spec, run)
        model = copy.deepcopy(start)
        adaptation = run_adaptation(
            run,
            task,
            model,
            policy,
            settings=spec.adapt,
            optimizer=spec.optimizer,
            seed=spec.seed,
            **utility,
        )
        found = run_search(
            run,
            task,
            model,
            settings=spec.search,
            space=spec.space,
            optimizer=spec.optimizer,
            seed=spec.seed,
            device=spec.device,
            start=adaptation.before.cost,
            **utility,
        )
        assert found.network is not None  # every finished pruning trial has one
        winner = loaded_network(task, found.network)
        networks = {"before": start, "after policy": model, "after search": winner}
        rows = [figures(name, task, network) for name, network in networks.items()]
        _write(run, spec, curves, adaptation, found)
        keep_network(run, winner, task=spec.task, config=found.best.config)
        run_stream(
            run,
            task,
            winner,
            stream,
            settings=spec.stream,
            learner=spec.learner,
            seed=spec.seed,
            device=spec.device,
        )
    summary = pd.DataFrame(with_utility(rows, **utility))
    run.outcome("summary", f"Networks, utility at λ = {spec.cost_weight:g}", summary)


def _policy(spec: DemoSpec, run: Run) -> DQNPolicy:
    """Train a policy, compare it with a random one, and return it."""
    env = _environment(spec)
    policy = run_training(run, spec.policy, env_id=ENVIRONMENT, env=env, seed=spec.seed)
    run_comparison(
        run,
        policy,
        env_id=ENVIRONMENT,
        env=env,
        num_episodes=spec.num_episodes,
        seed=spec.seed,
    )
    return policy


def _write(
    run: Run, spec: DemoSpec, curves: Curves, adaptation: AdaptResult, found: SearchResult
) -> None:
    run.directory.write_results(found.trials)
    run.directory.write_table("widths", widths(adaptation))
    decisions = points(adaptation, spec.cost).drop(columns="name")
    run.directory.write_table("pareto", pd.concat([decisions, trial_points(found.trials)]))
    run.directory.write_table("front", front(found))
    add_curve(curves, adaptation, spec.adapt)
    add_best_curve(curves, found)
    curves.write(run)


class _Utility(TypedDict):
    """The parameters of utility, which are the same in all parts of the run."""

    cost_weight: float
    cost: CostConfig

"""`kind: policy`: train a structure policy, and compare it with a random one."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import pandas as pd

from dynopt_ray.cluster import PolicyProgress, train_policy
from dynopt_ray.errors import DynoptError, SpecError
from dynopt_ray.policies import (
    DEFAULT_ACTIONS,
    ENVIRONMENT,
    ActionSet,
    DQNPolicy,
    DQNSettings,
    Policy,
    RandomPolicy,
    evaluate_policy,
)
from dynopt_ray.runs.kind import PreparedRun
from dynopt_ray.runs.kinds.policy.spec import PolicySpec, environment
from dynopt_ray.runs.progress import Stage
from dynopt_ray.runs.run import Run

POLICY_FILE = "policy/policy.safetensors"
_TRAINING, _COMPARISON = "policy", "comparison"
_RETURN = "return"
# Gives the evaluation other starting networks, episodes and batches than the training, whose seeds
# are small.
_EVALUATION_SEED = 1_000_000
_MOST_POINTS = 300
_FIGURES = ["utility", "smooth_utility", "metric", "relative_cost"]
_COLUMNS = ["returns", *_FIGURES, "num_steps", "gradient_steps"]


def prepare(spec: PolicySpec) -> PreparedRun:
    """Prepare the training of a policy.

    Raises:
        SpecError: there is no such environment, or it refuses its arguments.
        DynoptError: the environment's task is missing or wrong.
    """
    check_environment(spec.env_id or ENVIRONMENT, environment(spec))
    return partial(_run, spec)


def check_environment(env_id: str, env: Mapping[str, Any]) -> None:
    """Make an environment once, to check its id and its arguments.

    Raises:
        SpecError: there is no such environment, or it refuses its arguments.
    """
    try:
        gymnasium.make_vec(
            env_id, num_envs=1, vectorization_mode="vector_entry_point", **env
        ).close()
    except DynoptError as error:
        raise SpecError(f"env: {error}") from error
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise SpecError(f"env: {env_id} cannot be made: {error}") from error


def _run(spec: PolicySpec, run: Run) -> None:
    env_id, env = spec.env_id or ENVIRONMENT, environment(spec)
    policy = run_training(run, spec.policy, env_id=env_id, env=env, seed=spec.seed)
    episodes = run_comparison(
        run,
        policy,
        env_id=env_id,
        env=env,
        num_episodes=spec.num_episodes,
        seed=spec.seed,
    )
    run.directory.write_results(episodes)
    points = episodes.rename(
        columns={"policy": "series", "relative_cost": "cost", "metric": "accuracy"}
    )
    run.directory.write_table("pareto", points[["series", "cost", "accuracy"]].dropna())


def run_training(
    run: Run, settings: DQNSettings, *, env_id: str, env: Mapping[str, Any], seed: int
) -> DQNPolicy:
    """Train a policy, show the progress, and save the policy in the run directory.

    Args:
        run: the run that the training is part of.
        settings: how the policy is trained.
        env_id: Gymnasium id of the environment.
        env: arguments of the environment.
        seed: seed of all random choices.
    """
    directory = run.directory.path / "policy"
    if run.parts.result(_TRAINING) is not None:
        return DQNPolicy.load(run.directory.path / POLICY_FILE)
    journal = run.directory.journal
    # A training that continues begins at its last saved state, so later returns come again.
    returns = {r["steps"]: r["episode_return"] for r in journal.records if r.kind == _RETURN}
    with run.progress.stage("train a policy", settings.num_steps) as stage:
        shown = 0

        def on_progress(progress: PolicyProgress) -> None:
            nonlocal shown
            note = ""
            if progress.mean_return is not None:
                note = f"return {progress.mean_return:.3f}"
            stage.advance(progress.num_steps - shown, note=note)
            shown = progress.num_steps
            returns[shown] = progress.mean_return
            journal.append(_RETURN, steps=shown, episode_return=progress.mean_return)

        policy = train_policy(
            replace(settings, env_id=env_id, env_kwargs=dict(env), seed=seed),
            directory=directory,
            on_progress=on_progress,
            address=run.address,
        )
        last = returns[max(returns)] if returns else None
        stage.result(
            f"{settings.num_steps:,} steps"
            + (f", mean return {last:.3f} while exploring" if last is not None else "")
        )
    curve = pd.DataFrame(sorted(returns.items()), columns=["steps", "episode_return"]).dropna()
    run.directory.write_table("policy", curve.iloc[:: max(1, len(curve) // _MOST_POINTS)])
    run.parts.finish(_TRAINING, {"steps": settings.num_steps})
    # The replay buffer and optimizer state, with which an interrupted training would resume. This
    # training is complete.
    (directory / "training.safetensors").unlink(missing_ok=True)
    return policy


def run_comparison(
    run: Run,
    policy: Policy,
    *,
    env_id: str,
    env: Mapping[str, Any],
    num_episodes: int,
    seed: int,
) -> pd.DataFrame:
    """Compare a policy with a random one on the same starts, and show their means.

    In dynopt_ray's own environment, the starting networks are not in the training pool. The random
    policy trains each network for as many gradient steps as the learned policy does.

    Returns:
        One row per policy and episode.
    """
    kept = run.parts.result(_COMPARISON)
    with run.progress.stage("compare policies", 2) as stage:
        if kept is None:
            policies = {"learned": policy, "random": RandomPolicy(seed, _endings(env_id, env))}
            episodes = _compared(stage, policies, env_id, env, num_episodes=num_episodes, seed=seed)
            run.parts.finish(_COMPARISON, {"episodes": episodes.to_dict("list")})
        else:
            episodes = pd.DataFrame(kept["episodes"])
        means = episodes.groupby("policy", sort=False)[[*_FIGURES, "gradient_steps"]]
        table = means.mean().reset_index()
        table.insert(2, "utility_sd", means.std()["utility"].to_numpy())
        table["episodes"] = num_episodes
        shown = ", ".join(f"{row.policy} {row.utility:.4f}" for row in table.itertuples())
        stage.result(f"utility {shown}")
    own = env_id == ENVIRONMENT
    run.outcome("policies", "Policies on unseen networks" if own else "Policies", table)
    return episodes


def _compared(
    stage: Stage,
    policies: Mapping[str, Policy],
    env_id: str,
    env: Mapping[str, Any],
    *,
    num_episodes: int,
    seed: int,
) -> pd.DataFrame:
    """Return one row per policy and episode; the first policy sets the effort of all."""
    parts = []
    unseen = with_unseen_networks(env_id, env)
    effort = None
    for name, policy in policies.items():
        reached = evaluate_policy(
            policy,
            env_id,
            unseen,
            num_episodes=num_episodes,
            seed=_EVALUATION_SEED + seed,
            effort=effort,
        )
        effort = reached.effort
        columns = {field: getattr(reached, field) for field in _COLUMNS}
        parts.append(pd.DataFrame({"policy": name, "episode": range(num_episodes), **columns}))
        stage.advance(note=f"{name}: utility {reached.mean:.4f}")
    return pd.concat(parts, ignore_index=True)


def with_unseen_networks(env_id: str, env: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an environment whose pool shares no network with the training pool.

    Environments of other packages are returned as they are, since only they know their starts.
    """
    if env_id != ENVIRONMENT:
        return dict(env)
    return {**env, "first_start": env.get("first_start", 0) + _EVALUATION_SEED}


def _endings(env_id: str, env: Mapping[str, Any]) -> frozenset[int]:
    """Return the places of the actions that end an episode, if the environment's are known."""
    if env_id != ENVIRONMENT:
        return frozenset()
    actions = ActionSet(env["actions"]) if "actions" in env else DEFAULT_ACTIONS
    return frozenset(place for place, action in enumerate(actions) if action.ends)

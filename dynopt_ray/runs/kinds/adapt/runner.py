"""`kind: adapt`: a policy changes one trained network."""

from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError, did_you_mean
from dynopt_ray.plugins import build
from dynopt_ray.policies import (
    CUT_POLICIES,
    ActionSet,
    AdaptResult,
    CostConfig,
    CostMixture,
    CutPolicy,
    DQNPolicy,
    Policy,
    adapt,
    as_adaptation,
    cut_once,
    make_cut_policy,
)
from dynopt_ray.runs.kind import PreparedRun
from dynopt_ray.runs.kinds.adapt.spec import AdaptSettings, AdaptSpec
from dynopt_ray.runs.kinds.policy import POLICY_FILE
from dynopt_ray.runs.origin import (
    Curves,
    Origin,
    as_budget,
    figures,
    keep_network,
    prepare_origin,
    with_utility,
)
from dynopt_ray.runs.run import Run
from dynopt_ray.tasks import Task
from dynopt_ray.training import make_optimizer


def prepare(spec: AdaptSpec) -> PreparedRun:
    """Prepare an adaptation.

    Raises:
        SpecError: there is no such policy, or the rule refuses its arguments.
        DynoptError: the task, the starting network or the policy's file is missing or wrong.
    """
    return partial(_run, spec, prepare_origin(spec), _policy(spec))


def _policy(spec: AdaptSpec) -> Policy | CutPolicy:
    name = spec.policy if isinstance(spec.policy, str) else spec.policy["name"]
    if name in CUT_POLICIES:
        if spec.adapt.budget is not None:
            raise SpecError(
                f"adapt.budget: {name!r} decides by utility alone and keeps to no budget; leave "
                "the budget out, or use a rule or a learned policy"
            )
        return make_cut_policy(spec.policy)
    rules = plugins.names("rules")
    if not isinstance(spec.policy, str) or spec.policy in rules or ":" in spec.policy:
        rule: Policy = build("rules", spec.policy)
        return rule
    path = Path(spec.policy)
    path = path / POLICY_FILE if path.is_dir() else path
    if not path.is_file():
        raise SpecError(
            f"policy: {spec.policy!r} is neither a rule ({', '.join(rules)}), nor a policy that "
            f"cuts once ({', '.join(CUT_POLICIES)}), nor the run directory or file of a learned "
            f"policy: there is no {path}.{did_you_mean(spec.policy, [*rules, *CUT_POLICIES])}"
        )
    return DQNPolicy.load(path)


def _run(spec: AdaptSpec, origin: Origin, policy: Policy | CutPolicy, run: Run) -> None:
    curves = Curves()
    model = origin.model(run, curves)
    before = figures("before", origin.task, model)
    result = run_adaptation(
        run,
        origin.task,
        model,
        policy,
        settings=spec.adapt,
        cost_weight=spec.cost_weight,
        cost=spec.cost,
        optimizer=spec.optimizer,
        seed=spec.seed,
    )
    after = figures("after", origin.task, model)
    rows = with_utility([before, after], spec.cost_weight, spec.cost)
    run.outcome("summary", "Before and after adaptation", pd.DataFrame(rows))
    run.directory.write_results(result.history)
    run.directory.write_table("widths", widths(result))
    run.directory.write_table("pareto", points(result, spec.cost))
    add_curve(curves, result, spec.adapt)
    curves.write(run)
    keep_network(run, model, task=spec.task)


def run_adaptation(
    run: Run,
    task: Task,
    model: nn.Module,
    policy: Policy | CutPolicy,
    *,
    settings: AdaptSettings,
    cost_weight: float,
    cost: CostConfig,
    optimizer: str | dict[str, object],
    seed: int,
) -> AdaptResult:
    """Let a policy change a network in place, and show the progress.

    Args:
        run: the run that the adaptation is part of.
        task: the task that the network has learned.
        model: the network.
        policy: makes the decisions, or the only one.
        settings: how the policy changes the network.
        cost_weight: λ of utility.
        cost: the cost that utility charges for: its kind, or a mapping of kinds to weights.
        optimizer: the optimizer of the training between decisions.
        seed: seed of all random choices.
    """
    with run.progress.stage("adapt") as stage:
        stepper = make_optimizer(optimizer, model, lr=settings.lr)
        if isinstance(policy, CutPolicy):
            cut = cut_once(
                model,
                task,
                policy,
                cost_weight=cost_weight,
                cost=cost,
                num_steps=settings.horizon * settings.train_steps,
                optimizer=stepper,
                seed=seed,
            )
            run.directory.write_table("cuts", cut.table)
            result = as_adaptation(cut, step=settings.horizon)
        else:
            result = adapt(
                model,
                task,
                policy,
                cost_weight=cost_weight,
                cost=cost,
                budget=as_budget(settings.budget),
                horizon=settings.horizon,
                train_steps=settings.train_steps,
                actions=ActionSet(settings.actions),
                optimizer=stepper,
                seed=seed,
            )
        relative = CostMixture.of(cost).relative(result.after.cost, result.before.cost)
        stage.result(
            f"utility {result.utility_before:.4f} → {result.utility_after:.4f} (smooth utility "
            f"{result.smooth_utility_before:.4f} → {result.smooth_utility_after:.4f}), accuracy "
            f"{result.before.validation.metric:.4f} → {result.after.validation.metric:.4f} at "
            f"{relative:.3f} of the starting cost"
        )
    return result


def add_curve(curves: Curves, result: AdaptResult, settings: AdaptSettings) -> None:
    """Add the loss and accuracy of the network after each decision."""
    for _, row in result.history.iloc[1:].iterrows():
        step = int(row["step"]) * settings.train_steps
        figures = {"loss": row["train_loss"], "accuracy": row["metric"]}
        curves.add("adapt", step, lr=settings.lr, **figures)


def widths(result: AdaptResult) -> pd.DataFrame:
    """Return the widths of the network after each decision that was kept, up to the best one."""
    kept = result.history[result.history["kept"] & (result.history["step"] <= result.best_step)]
    table = kept.filter(like="width/").rename(columns=lambda name: name.removeprefix("width/"))
    table.insert(0, "decision", kept["step"])
    return table


def points(result: AdaptResult, cost: CostConfig) -> pd.DataFrame:
    """Return accuracy and relative cost after each decision, as points of a chart."""
    history = result.history
    return pd.DataFrame(
        {
            "series": ["start", *["decisions"] * (len(history) - 1)],
            "name": history["step"].astype(str),
            "cost": CostMixture.of(cost).mean(lambda kind: history[kind] / history[kind].iloc[0]),
            "accuracy": history["metric"],
        }
    )

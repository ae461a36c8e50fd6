"""Run a search whose parts are made: its board, its loop, and the slots of its trials."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dynopt_ray.cluster.searching.choice import Winner
from dynopt_ray.cluster.searching.earlier import EarlierTrial, learn_from
from dynopt_ray.cluster.searching.log import TrialLog
from dynopt_ray.cluster.searching.objectives import Objectives
from dynopt_ray.cluster.searching.pack_size import PackSize, measured_rates, why_not
from dynopt_ray.cluster.searching.space import Space
from dynopt_ray.cluster.searching.storage import SearchStorage
from dynopt_ray.cluster.sessions import ClusterNeed
from dynopt_ray.cluster.tracking import Tracker, TrackerSink
from dynopt_ray.cluster.trials import (
    ActorPool,
    KeptNetworks,
    LocalPool,
    LoopConfig,
    PackableTrial,
    RecordSink,
    SearchRecords,
    SlotPool,
    Trial,
    TrialBoard,
    TrialFiles,
    TrialLoop,
    WorkerConfig,
    replay,
)
from dynopt_ray.journals import RunRecord, store_at

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

_log = logging.getLogger("dynopt_ray.search")


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """The parts of a search, which are made and checked before any trial starts."""

    trial: Trial
    space: Space
    num_trials: int
    seed: int
    cost_weight: float
    searcher: "Searcher"
    scheduler: "TrialScheduler"
    objectives: Objectives
    loop: LoopConfig
    slot: ClusterNeed
    max_concurrent: int | None
    deterministic: bool
    choice: Winner
    address: str | None
    pack: PackSize
    trackers: Sequence[Tracker] = ()


def run_plan(
    plan: SearchPlan,
    place: SearchStorage | None,
    records: Sequence[RunRecord],
    known: Sequence[EarlierTrial],
    log: TrialLog,
    on_end: Callable[[TrialLog], None],
) -> tuple[bytes | None, str]:
    """Run a search, or the rest of it.

    Returns:
        The network of the best trial, and what the search chose by itself, as a sentence.
    """
    from dynopt_ray.cluster.searching.domains import tune_space

    metric: Any = plan.objectives.metric
    mode: Any = plan.objectives.mode
    plan.searcher.set_search_properties(metric, mode, tune_space(plan.space))
    learn_from(known, plan.searcher, plan.objectives)
    plan.scheduler.set_search_properties("utility", "max")
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        files = place.files if place else TrialFiles(store_at(_temporary(stack)))
        board = TrialBoard(
            plan.searcher,
            plan.scheduler,
            num_trials=plan.num_trials,
            seed=plan.seed,
            copy_state=lambda trial, source: files.copy_state(
                source.number, source.report, trial.number, trial.report
            ),
            in_order=plan.loop.in_order,
        )
        kept = KeptNetworks(forget=files.forget_network, costs=plan.objectives.costs)
        sinks: list[RecordSink] = [place.journal, log] if place else [log]
        for tracker in plan.trackers:
            sinks.append(stack.enter_context(closing(TrackerSink(tracker))))
        writer = SearchRecords(sinks, kept, lambda: on_end(log))
        for record in records:
            log.append(record.kind, **record.fields)
        finished = replay(records, board, kept)
        if records:
            writer.continued()
        plan, note = _with_recorded_pack(plan, records)
        if board.num_left or finished:
            stack.enter_context(_cluster(plan))
            if plan.pack == "auto":
                plan, note = _with_measured_pack(plan, writer)
            pool = stack.enter_context(_pool(plan, place, files))
            loop = TrialLoop(
                board,
                pool,
                writer,
                files,
                plan.space.decode,
                _loop_config(plan),
            )
            loop.finish(finished)
            loop.run()
        files.clear(writer.keeps)
        winner = log.winner(plan.choice)
        return None if winner is None else files.network(winner), note


def _with_recorded_pack(plan: SearchPlan, records: Sequence[RunRecord]) -> tuple[SearchPlan, str]:
    """Take the size of packs that was measured before the search was interrupted, if any."""
    for record in records:
        if record.kind == "pack":
            return _with_pack(plan, record["size"]), record["note"]
    return plan, ""


def _with_measured_pack(plan: SearchPlan, writer: SearchRecords) -> tuple[SearchPlan, str]:
    """Choose the size of packs, and record it."""
    reason = why_not(plan.trial, plan.space)
    if reason is not None or not isinstance(plan.trial, PackableTrial):
        size, note = None, f"no packs: {reason}"
    else:
        slots = 1 if plan.address is None else plan.max_concurrent or _room(plan)
        rates = measured_rates(
            plan.trial,
            plan.space,
            most=max(1, -(-plan.num_trials // max(1, slots))),
            reserve=None if plan.address is None else plan.slot.actor_options,
        )
        size, note = rates.best, str(rates)
    _log.info("search: %s", note)
    writer.packed(size, note)
    return _with_pack(plan, size), note


def _with_pack(plan: SearchPlan, size: int | None) -> SearchPlan:
    return replace(plan, pack=size, loop=replace(plan.loop, per_slot=size or 1))


def _loop_config(plan: SearchPlan) -> LoopConfig:
    """Return how to run trials, once the cluster is there."""
    from dynopt_ray.cluster.searching.schedulers import draws_ahead

    config = replace(plan.loop, draw_ahead=draws_ahead(plan.scheduler))
    if not config.in_order:
        return config
    if plan.address is None:  # one slot, in which as many trials take turns as would on a cluster
        return replace(config, per_slot=config.per_slot * (plan.max_concurrent or 1))
    return replace(config, num_slots=plan.max_concurrent or _room(plan))


def _room(plan: SearchPlan) -> int:
    """Return the number of slots for which the cluster has room."""
    from dynopt_ray.cluster.sessions import alive_nodes

    return sum(map(plan.slot.room, alive_nodes()))


@contextmanager
def _cluster(plan: SearchPlan) -> Iterator[None]:
    """Join or start the cluster, if the search needs one."""
    from dynopt_ray.cluster.sessions import session

    if plan.address is None:
        yield
        return
    with session(plan.address or None, **plan.slot.session_options):
        yield


@contextmanager
def _pool(plan: SearchPlan, place: SearchStorage | None, files: TrialFiles) -> Iterator[SlotPool]:
    """Provide the slots in which trials run."""
    from dynopt_ray.cluster.searching.schedulers import pauses

    with ExitStack() as stack:
        config = WorkerConfig(
            cost_weight=plan.cost_weight,
            files=files,
            probe=stack.enter_context(place.probe()) if place else None,
            every_state=pauses(plan.scheduler),
            time_limit_s=plan.loop.time_limit_s,
            cpus=plan.slot.cpus,
            gpus=plan.slot.gpus,
            deterministic=plan.deterministic,
            figures=plan.objectives.costs,
            together=plan.pack is not None,
        )
        if plan.address is None:
            # As many threads as on a cluster, because another number of threads rounds differently.
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(max(1, int(plan.slot.cpus)))
            yield LocalPool(plan.trial, config)
            return
        pool = ActorPool(
            plan.trial,
            config,
            plan.slot.actor_options,
            lambda: plan.max_concurrent or _room(plan),
        )
        stack.callback(pool.close)
        yield pool


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune's schedulers from telling every decision."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # ASHA takes quantiles of nothing but NaN if the first trials of a rung have failed.
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            # PB2 fits Gaussian processes to a handful of points.
            warnings.filterwarnings("ignore", module="sklearn.gaussian_process")
            yield
    finally:
        logger.setLevel(level)


def _temporary(stack: ExitStack) -> str:
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="dynopt-search-"))

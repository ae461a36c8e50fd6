"""Run the trials of a search in this process, so that small searches need no cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from dynopt_ray.cluster.searching.domains import tune_space
from dynopt_ray.cluster.searching.result import BestNetwork
from dynopt_ray.cluster.searching.search_setup import SearchSetup
from dynopt_ray.cluster.searching.trial import UNFINISHED, failure, measured


def run_locally(setup: SearchSetup) -> tuple[str, bytes] | None:
    """Run trials one at a time with the searcher and scheduler that Tune would use; see `search`.

    If a trial fails, its error is recorded and the next trial starts.

    Returns:
        The id and the network of the best trial, or None if no trial gave a network.
    """
    keeper = BestNetwork()
    setup.searcher.set_search_properties("utility", "max", tune_space(setup.space))
    if setup.scheduler is not None:
        setup.scheduler.set_search_properties("utility", "max")
    with _one_thread():
        for number in range(setup.num_trials):
            point: Any = setup.searcher.suggest(f"{number:05d}")
            if point is None or point == Searcher.FINISHED:
                break
            _run_trial(setup, keeper, number, setup.space.decode(point))
    return keeper.kept()


def _run_trial(
    setup: SearchSetup, keeper: BestNetwork, number: int, config: dict[str, Any]
) -> None:
    trial_id, log, scheduler = f"{number:05d}", setup.log, setup.scheduler
    log.start(trial_id, number, config)
    stand_in: Any = SimpleNamespace(trial_id=trial_id)  # schedulers read only the id of a trial
    if scheduler is not None:
        scheduler.on_trial_add(None, stand_in)  # type: ignore[arg-type]

    def keep(utility: float, cost: float, network: Callable[[], bytes]) -> None:
        if keeper.wants(utility, cost):
            keeper.offer(trial_id, utility, cost, network())

    last: dict[str, Any] = {}
    note = ""
    try:
        rows = measured(setup.trial, config, setup.cost_weight, keep)
        for count, row in enumerate(rows, start=1):
            log.measure(trial_id, row)
            last = {**row, "training_iteration": count}
            setup.searcher.on_trial_result(trial_id, last)
            if scheduler is not None and _stops(scheduler, stand_in, last):
                break
        else:
            note = "" if last["final"] else UNFINISHED
    except Exception as error:
        # An error ends only its own trial.
        log.end(trial_id, error=failure(error))
        setup.searcher.on_trial_complete(trial_id, error=True)
    else:
        log.end(trial_id, note=note)
        setup.searcher.on_trial_complete(trial_id, last)
        if scheduler is not None:
            scheduler.on_trial_complete(None, stand_in, last)  # type: ignore[arg-type]
    setup.on_end(log)


def _stops(scheduler: TrialScheduler, trial: Any, row: dict[str, Any]) -> bool:
    decision = scheduler.on_trial_result(None, trial, row)  # type: ignore[arg-type]
    return decision != TrialScheduler.CONTINUE


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread, as in a worker: the same seed then gives the same figures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

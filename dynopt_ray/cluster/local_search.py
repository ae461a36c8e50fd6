"""Trials one after the other in this process: small jobs need no cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from dynopt_ray.cluster.space import Space
from dynopt_ray.cluster.trials import BestNetwork, Config, Trial, TrialLog, measured


def run_locally(
    trial: Trial,
    space: Space,
    *,
    num_trials: int,
    cost_weight: float,
    searcher: Searcher,
    scheduler: TrialScheduler | None,
    log: TrialLog,
    keeper: BestNetwork,
    on_end: Callable[[TrialLog], None],
) -> None:
    """Run trials with the searcher and scheduler that Tune would use; see `search`.

    A failing trial is recorded and the next one begins.
    """
    with _one_thread():
        for number in range(num_trials):
            trial_id = f"{number:05d}"
            flat = searcher.suggest(trial_id) or {}
            config = space.decode(flat)
            log.start(trial_id, number, config)
            # Schedulers know a trial by its id alone.
            stand_in: Any = SimpleNamespace(trial_id=trial_id)
            if scheduler is not None:
                scheduler.on_trial_add(None, stand_in)  # type: ignore[arg-type]
            last: dict[str, Any] = {}
            try:
                for row in _rows(trial, config, trial_id, cost_weight, keeper):
                    log.measure(trial_id, row)
                    last = {**row, "training_iteration": last.get("training_iteration", 0) + 1}
                    searcher.on_trial_result(trial_id, last)
                    if scheduler is not None and _stops(scheduler, stand_in, last):
                        break
            except Exception as error:
                # Whatever a trial raises ends that trial alone.
                log.end(trial_id, error=f"{type(error).__name__}: {error}")
                searcher.on_trial_complete(trial_id, error=True)
            else:
                log.end(trial_id)
                searcher.on_trial_complete(trial_id, last)
                if scheduler is not None:
                    scheduler.on_trial_complete(None, stand_in, last)  # type: ignore[arg-type]
            on_end(log)


def _rows(
    trial: Trial, config: Config, trial_id: str, cost_weight: float, keeper: BestNetwork
) -> Iterator[dict[str, Any]]:
    def keep(utility: float, cost: float, network: Callable[[], bytes]) -> None:
        if keeper.wants(utility, cost):
            keeper.offer(trial_id, utility, cost, network())

    yield from measured(trial, config, cost_weight, keep)


def _stops(scheduler: TrialScheduler, trial: Any, row: dict[str, Any]) -> bool:
    decision = scheduler.on_trial_result(None, trial, row)  # type: ignore[arg-type]
    return decision != TrialScheduler.CONTINUE


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker, so that the same seed gives the same figures there and here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""Population based training against the best fixed rate, where the best rate changes.

The task is a quadratic with curvatures from 0.03 to 1, whose gradients are noisy. Far from the
minimum, a large learning rate is best; near it, a small one, whose steps average the noise away. So
no fixed rate is best for long.
"""

import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from dynopt_ray.cluster import Measurement, TrialLog, search
from tests.cluster.drivers import records_of, run_killed

SEEDS = (0, 1, 2, 3, 4)
NUM_TRIALS, NUM_REPORTS, STEPS_PER_REPORT = 8, 20, 50
LOW, HIGH, NUM_FIXED = 1e-3, 1.0, 25
SPACE: dict[str, Any] = {"lr": {"low": LOW, "high": HIGH, "log": True}}
CURVATURE = np.geomspace(0.03, 1.0, 10)


@dataclass(frozen=True)
class NoisyQuadratic:
    """A trial that descends a quadratic; its accuracy is minus the logarithm of the loss.

    Attributes:
        seed: seed of the noise.
    """

    seed: int

    def __call__(
        self, config: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> Iterator[Measurement]:
        """Descend, from the start or from a state."""
        done, at = (0, np.full(10, 10.0))
        if state is not None:
            done, at = state["done"], np.array(state["at"])
        for report in range(done + 1, NUM_REPORTS + 1):
            noise = np.random.default_rng([self.seed, report]).normal(size=(STEPS_PER_REPORT, 10))
            losses = []
            for step in range(STEPS_PER_REPORT):
                at = at - config["lr"] * (CURVATURE * at + noise[step])
                losses.append(float((CURVATURE * at**2).sum() / 2))
            yield Measurement(
                step=report * STEPS_PER_REPORT,
                accuracy=-float(np.log10(np.mean(losses[-25:]))),
                cost=0.0,
                final=report == NUM_REPORTS,
                details={"lr": config["lr"]},
                state=partial(_state, report, at),
            )


def _state(done: int, at: np.ndarray) -> dict[str, Any]:
    return {"done": done, "at": at.tolist()}


def quadratic(folder: Path, *, seed: int) -> NoisyQuadratic:
    """Return the trial, for a driver in a process of its own."""
    del folder
    return NoisyQuadratic(seed)


def pbt() -> Table:
    """Compare the losses at the end, and kill the driver of the first population twice."""
    table = Table(
        title=f"Loss of a noisy quadratic after {NUM_REPORTS * STEPS_PER_REPORT} steps",
        caption=f"{NUM_TRIALS} trials in a population, {NUM_FIXED} fixed rates; the rates of the "
        "best trial at a quarter, half and the end",
    )
    columns = ("seed", "best fixed rate", "its loss", "population: loss", "ratio", "its rates")
    for column in columns:
        table.add_column(column)
    ratios = []
    for seed in SEEDS:
        fixed = search(
            NoisyQuadratic(seed),
            {"lr": [float(rate) for rate in np.geomspace(LOW, HIGH, NUM_FIXED)]},
            searcher="grid",
            local=True,
        )
        trials, history = _population(seed)
        best = int(trials["utility"].idxmax())
        rates = history[history["trial"] == best]["lr"].tolist()
        losses = [10 ** -float(u) for u in (fixed.best.utility, trials["utility"].max())]
        ratios.append(losses[1] / losses[0])
        shown = ", ".join(f"{rates[i]:.3f}" for i in (NUM_REPORTS // 4, NUM_REPORTS // 2, -1))
        table.add_row(
            str(seed),
            f"{fixed.best.config['lr']:.3f}",
            *(f"{loss:.4f}" for loss in losses),
            f"{ratios[-1]:.2f}",
            shown,
        )
    table.add_row("mean", "", "", "", f"{statistics.mean(ratios):.2f}", "")
    return table


def _population(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train a population; the first one a second time with kills, which must change nothing."""
    settings = {
        **{"num_trials": NUM_TRIALS, "num_reports": NUM_REPORTS, "searcher": "random"},
        **{"scheduler": "pbt", "order": "drawn", "max_concurrent": 2, "seed": seed},
    }
    result = search(NoisyQuadratic(seed), SPACE, local=True, **settings)
    if seed == SEEDS[0]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            killed = run_killed(
                folder,
                {**settings, "space": SPACE},
                kills=(40, 100),
                make="experiments.benchmarks.cluster_pbt:quadratic",
                seed=seed,
            )
            log = TrialLog()
            for record in records_of(folder / "run"):
                log.append(record.kind, **record.fields)
        assert killed == 2
        pd.testing.assert_frame_equal(log.table(), result.trials, check_exact=True)
    return result.trials, result.history

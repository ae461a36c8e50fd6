"""Kill processes, nodes and the driver of a search of real pruning trials, and compare its table.

The comparison is the same search in one process that nobody disturbs. The trials prune and retrain
a multilayer perceptron on handwritten digits. Dead nodes are replaced, and the driver is started
again.
"""

import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from dynopt_ray.cluster import TrialLog, search
from tests.cluster.drivers import records_of
from tests.cluster.nodes import running_nodes
from tests.cluster.soak import SPACE, Victim, pruning, soak

NUM_TRIALS, STEPS, NUM_REPORTS = 200, 1_000, 10
KILLS: dict[Victim, int] = {"process": 12, "node": 3, "driver": 5}


def large(num_trials: int = NUM_TRIALS) -> Table:
    """Run the search twice, once with kills, and return what that cost."""
    size = {"retrain_steps": STEPS, "num_reports": NUM_REPORTS}
    settings = {"num_trials": num_trials, "searcher": "random", "num_reports": NUM_REPORTS}
    victims = [kind for kind, number in KILLS.items() for _ in range(number)]
    random.Random(0).shuffle(victims)
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "here", Path(folder) / "there"
        here.mkdir()
        there.mkdir()
        begun = time.monotonic()
        undisturbed = search(pruning(here, **size), SPACE, local=True, **settings)
        alone_s = time.monotonic() - begun
        with running_nodes(2) as nodes:
            result = soak(
                there,
                nodes,
                {**settings, "gpus_per_trial": 0.5, "max_failures": 20},
                victims=victims,
                num_measurements=num_trials * NUM_REPORTS,
                timeout_s=3600,
                **size,
            )
        records = records_of(there / "run")
    log = TrialLog()
    for record in records:
        log.append(record.kind, **record.fields)
    pd.testing.assert_frame_equal(log.table(), undisturbed.trials, check_exact=True)
    ended = Counter(record["trial"] for record in records if record.kind == "ended")
    assert ended == dict.fromkeys(range(num_trials), 1), "a trial ended more than once or never"
    needed = num_trials * STEPS
    rows: dict[str, Any] = {
        "kills": ", ".join(f"{number} {kind}" for kind, number in result.kills.items()),
        "table": "equal",
        "steps needed": f"{needed:,}",
        "steps done twice": f"{result.num_steps / needed - 1:.1%}",
        "undisturbed, one process": f"{alone_s:.0f} s",
        "with kills, 8 slots": f"{result.wall_s:.0f} s",
    }
    table = Table(title=f"{num_trials} pruning trials of {STEPS} steps on 2 nodes of 2 GPUs")
    for column in rows:
        table.add_column(column)
    table.add_row(*rows.values())
    return table

"""How close Q-learning and DQN come to the exact optimum of `dynopt/TabularArchitecture-v0`.

The regret of a policy is the difference between the optimal return and its own, as a share of the
optimal return. Both are means over all starts and all λ, and so exact, except for the random
policy. The settings were chosen with other seeds than those of the table.
`python -m experiments.benchmarks.tabular [SEEDS]` runs it.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dynopt_envs.tabular_problem import ACTIONS, TabularConfig, TabularProblem
from dynopt_ray.cluster import train_policy
from dynopt_ray.policies import ActionSet, ConstantPolicy, Policy, RandomPolicy, train_qtable

ENVIRONMENT = "dynopt_envs:dynopt/TabularArchitecture-v0"
SEEDS = 5
GOAL = 0.01
QTABLE_STEPS = 60_000
DQN: dict[str, Any] = {
    "num_steps": 30_000,
    "discount": 1.0,
    "n_step": 1,
    "learning_rate": 2e-3,
    "target_rate": 0.01,
    "epsilon": 0.2,
}
"""Settings of DQN that differ from the defaults.

With `n_step` above 1, exploratory actions within the n steps count as if the policy had chosen
them, which biases all values.
"""
Row = dict[str, Any]


def main(num_seeds: int = SEEDS) -> None:
    """Learn with all seeds, and print the table."""
    problem = TabularProblem(TabularConfig())
    rows = []
    for seed in range(num_seeds):
        for row in measured(problem, seed):
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    Console(width=100).print(table_of(problem, rows))


def measured(problem: TabularProblem, seed: int) -> list[Row]:
    """Learn with one seed, and return the regret and time of each way to learn."""
    actions = ActionSet(ACTIONS)
    ways: dict[str, tuple[int, Callable[[], Policy]]] = {
        "random without stop": (
            0,
            lambda: RandomPolicy(seed, frozenset({actions.place("stop")})),
        ),
        "always shrink": (0, lambda: ConstantPolicy("shrink", actions)),
        "Q-table": (QTABLE_STEPS, lambda: _qtable(problem, seed)),
        "DQN": (
            DQN["num_steps"],
            lambda: train_policy({"env_id": ENVIRONMENT, "seed": seed, **DQN}),
        ),
    }
    rows = []
    for way, (num_steps, learned) in ways.items():
        start = time.perf_counter()
        policy = learned()
        seconds = time.perf_counter() - start
        regret = 1 - problem.policy_return(policy) / problem.optimal_return
        rows.append({"way": way, "steps": num_steps, "regret": regret, "seconds": seconds})
    return rows


def table_of(problem: TabularProblem, rows: Sequence[Row]) -> Table:
    """Return the table with one row per way to learn."""
    num_seeds = sum(row["way"] == "DQN" for row in rows)
    running = int((~problem.over).sum())
    table = Table(
        title=f"Regret on the tabular environment, % of the optimal return ({num_seeds} seeds)",
        caption=f"optimal return {problem.optimal_return:.4f}, {running} states; "
        f"goal: at most {GOAL:.0%}",
    )
    for column in ("policy", "environment steps", "regret, mean ± sd", "worst seed", "seconds"):
        table.add_column(column)
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        regrets = [100 * row["regret"] for row in mine]
        sd = statistics.stdev(regrets) if len(regrets) > 1 else float("nan")
        table.add_row(
            way,
            f"{mine[0]['steps']:,}",
            f"{statistics.mean(regrets):.2f} ± {sd:.2f}",
            f"{max(regrets):.2f}",
            f"{statistics.mean(row['seconds'] for row in mine):.0f}",
        )
    return table


def _qtable(problem: TabularProblem, seed: int) -> Policy:
    return train_qtable(
        ENVIRONMENT,
        num_steps=QTABLE_STEPS,
        edges=problem.cell_edges(),
        discount=1.0,
        seed=seed,
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

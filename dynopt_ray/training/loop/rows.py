"""History tables of pruning and growing: a DataFrame with one row per round."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynopt_ray.training.loop.costs_and_metrics import CostAndMetrics

if TYPE_CHECKING:
    import pandas as pd


def row(after: CostAndMetrics, *, duration_s: float, **facts: Any) -> dict[str, Any]:
    """Return one row of a history: the facts of a round, then the network's cost and metrics.

    Args:
        after: the network at the end of the round.
        duration_s: duration of the round in seconds.
        **facts: column -> value for the events of the round; None if a column does not apply.
    """
    cost, validation = after.cost, after.validation
    latency = {} if cost.latency_ms is None else {"latency_ms": cost.latency_ms}
    return {
        **facts,
        "params": cost.params,
        "nonzero": cost.nonzero,
        "flops": cost.flops,
        "bytes": cost.bytes,
        **latency,
        "loss": validation.loss,
        "metric": validation.metric,
        "confidence": validation.confidence,
        "duration_s": duration_s,
        **{f"width/{name}": width for name, width in after.widths.items()},
    }


def history_table(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Return rows as a DataFrame with the columns of the longest row; missing values are NaN."""
    import pandas as pd  # slow to import, and not needed to use the library

    columns = max((list(facts) for facts in rows), key=len)
    return pd.DataFrame(list(rows), columns=columns)

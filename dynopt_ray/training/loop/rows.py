"""Histories: one row per round, as a DataFrame."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynopt_ray.training.loop.costs_and_metrics import CostAndMetrics

if TYPE_CHECKING:
    import pandas as pd


def row(after: CostAndMetrics, *, duration_s: float, **facts: Any) -> dict[str, Any]:
    """One row: what happened, then what the network costs and how well it does.

    Args:
        after: the network at the end of the round.
        duration_s: seconds that the round took.
        **facts: what happened in it; None where it does not apply.
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
    """Rows as a DataFrame, with the columns of the fullest row; NaN where a row has nothing."""
    import pandas as pd  # slow to import, and not needed to use the library

    columns = max((list(facts) for facts in rows), key=len)
    return pd.DataFrame(list(rows), columns=columns)

"""How many slots of a search ran a trial, over time and by machine."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dynopt_ray.journals import RunRecord

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("seconds", "machine", "busy")
_PLACE = re.compile(r"(.+) \(process (\d+)\)$")


def slot_use(records: Iterable[RunRecord]) -> "pd.DataFrame":
    """Return how many slots of each machine run a trial, whenever this number changes.

    Args:
        records: the records of a search.

    Returns:
        A table with the columns `seconds` since the first trial started, `machine`, and `busy`,
        the number of its slots that run at least one trial from then on.
    """
    import pandas as pd

    rows: list[tuple[float, str, int]] = []
    slot_of: dict[int, tuple[str, str]] = {}
    begun: float | None = None
    for record in records:
        at = record.fields.get("at")
        if at is None:
            continue
        before = _busy(slot_of)
        if record.kind == "started":
            begun = at if begun is None else begun
            slot_of[record["trial"]] = _slot(record["where"])
        elif record.kind in ("lost", "ended") or _leaves(record):
            slot_of.pop(record["trial"], None)
        elif record.kind == "continued":
            slot_of.clear()
        now = _busy(slot_of)
        rows += [
            (at - (begun or at), machine, now[machine])
            for machine in sorted(before | now)
            if before[machine] != now[machine]
        ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def busy_share(use: "pd.DataFrame") -> float | None:
    """Return the mean share of slots that were busy, of the most that ever were; None without time.

    Args:
        use: the table that `slot_use` returns.
    """
    if use.empty:
        return None
    wide = use.pivot_table(index="seconds", columns="machine", values="busy", aggfunc="last")
    busy = wide.ffill().fillna(0).sum(axis=1)
    lengths = busy.index.to_series().diff().shift(-1).fillna(0)
    total = float(lengths.sum())
    return float((busy * lengths).sum() / total / busy.max()) if total else None


def _busy(slot_of: dict[int, tuple[str, str]]) -> Counter[str]:
    return Counter(machine for machine, _ in set(slot_of.values()))


def _leaves(record: RunRecord) -> bool:
    return record.kind == "measured" and record["decision"] == "pause"


def _slot(where: str) -> tuple[str, str]:
    """Return the machine and the process of a slot."""
    found = _PLACE.match(where)
    return (found[1], found[2]) if found else (where, "")

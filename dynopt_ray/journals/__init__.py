"""Run journals: the append-only, checksummed record of a run, and stores for its other files."""

from dynopt_ray.journals.lines import JournalLines, LocalLines, SegmentLines, lines_at
from dynopt_ray.journals.run_journal import RunJournal, RunRecord, read_journal
from dynopt_ray.journals.stores import LocalStore, Store, UriStore, store_at

__all__ = [
    "JournalLines",
    "LocalLines",
    "LocalStore",
    "RunJournal",
    "RunRecord",
    "SegmentLines",
    "Store",
    "UriStore",
    "lines_at",
    "read_journal",
    "store_at",
]

"""Where a search keeps its journal and the files of its trials."""

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dynopt_ray.cluster.searching.earlier import EarlierTrial
from dynopt_ray.cluster.trials import TrialFiles, to_json
from dynopt_ray.errors import RunError
from dynopt_ray.journals import RunJournal, RunRecord, Store, lines_at, store_at

Directory = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class SearchStorage:
    """An open journal, and the store of the files of the same run.

    Attributes:
        journal: gets the records of the search.
        store: gets states and networks.
    """

    journal: RunJournal
    store: Store

    @property
    def files(self) -> TrialFiles:
        """The states and the networks of the trials."""
        return TrialFiles(self.store)

    @property
    def is_new(self) -> bool:
        """Whether no search has begun here yet."""
        return not any(record.kind == "search" for record in self.journal.records)

    def begin(
        self, settings: Mapping[str, Any], known: Sequence[EarlierTrial] = ()
    ) -> tuple[RunRecord, ...]:
        """Begin a search, or take it up again.

        Args:
            settings: what makes the search the same: JSON-able values.
            known: the trials that a new search learns from first. They are recorded, because the
                runs that they come from may be gone when it is taken up again.

        Returns:
            The records of the search so far; none if it begins.

        Raises:
            RunError: the journal has another search.
        """
        records = self.journal.records
        begun = [record for record in records if record.kind == "search"]
        if not begun:
            self.journal.append("search", **settings)
            for trial in known:
                self.journal.append("known", **to_json({"point": trial.point, "row": trial.row}))
            return ()
        for name, value in settings.items():
            before = begun[0].fields.get(name)
            if before != value:
                raise RunError(
                    f"{self.store.name} has a search with {name} = {before!r:.200}, not "
                    f"{value!r:.200}; continue it as it began, or choose another place"
                )
        return records

    @contextmanager
    def probe(self) -> Iterator[str]:
        """Provide the name of a file by which workers find out whether they see the store.

        Raises:
            CheckpointError: nothing can be written there.
        """
        for left in self.store.names("probes"):  # by drivers that were killed
            self.store.delete(left)
        name = f"probes/{secrets.token_hex(8)}"
        self.store.put(name, b"")
        try:
            yield name
        finally:
            self.store.delete(name)


def local_directory(storage: "Directory | SearchStorage | None") -> str | None:
    """Return the directory of a search on this machine's disks, or None."""
    place = storage.store.name if isinstance(storage, SearchStorage) else storage
    return None if place is None or "://" in os.fspath(place) else os.fspath(place)


@contextmanager
def opened(storage: "Directory | SearchStorage | None") -> Iterator[SearchStorage | None]:
    """Provide the storage of a search; a directory or URI is opened, and closed at the end.

    Raises:
        RunError: another process has it open, or its journal is damaged.
    """
    if storage is None or isinstance(storage, SearchStorage):
        yield storage
        return
    directory = os.fspath(storage)
    if "://" not in directory:
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot create {directory}: {error.strerror or error}") from error
    with RunJournal(lines_at(directory)) as journal:
        yield SearchStorage(journal, store_at(directory))

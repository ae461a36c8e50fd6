"""What a run that is not finished holds: whether it goes on, and its tables so far."""

from dynopt_ray.errors import RunError
from dynopt_ray.plugins import import_attribute
from dynopt_ray.runs.directory import RunDirectory
from dynopt_ray.runs.kinds import KINDS


def status_of(directory: RunDirectory) -> str:
    """Return how a run ended, or whether it is running or has died without saying how.

    Raises:
        RunError: the manifest is damaged.
    """
    status = str(directory.manifest["status"])
    if status != "running" or _is_locked(directory):
        return status
    return "died"


def rebuild_tables(directory: RunDirectory) -> None:
    """Write the tables of a run that did not finish from its journal.

    Raises:
        RunError: the manifest or the journal is damaged.
    """
    about = directory.manifest
    kind = KINDS.get(about["kind"])
    if about["status"] != "finished" and kind is not None and kind.rebuild is not None:
        import_attribute(kind.rebuild)(directory)


def _is_locked(directory: RunDirectory) -> bool:
    """Whether a process on this machine has the run open."""
    try:
        directory.lock()
    except RunError:
        return True
    directory.close()
    return False

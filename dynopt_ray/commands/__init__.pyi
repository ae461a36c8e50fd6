from .doctor import Finding, examine
from .dry_run import show_dry_run
from .jobs import show_jobs, stop_job, submit_run
from .listing import make_report, show_plugins, show_runs, show_specs
from .saying import printable, raised_in

__all__ = [
    "Finding",
    "examine",
    "make_report",
    "printable",
    "raised_in",
    "show_dry_run",
    "show_jobs",
    "show_plugins",
    "show_runs",
    "show_specs",
    "stop_job",
    "submit_run",
]

"""Reports: the tables and charts of runs, on one HTML page without scripts."""

from dynopt_ray.runs.report.html import number
from dynopt_ray.runs.report.report import write_comparison, write_report
from dynopt_ray.runs.report.settings_table import by_setting

__all__ = [
    "by_setting",
    "number",
    "write_comparison",
    "write_report",
]

"""Write reports from the files of runs: one page per run, or one page that compares several."""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynopt_ray.errors import RunError, short, shortened
from dynopt_ray.runs.directory import RunDirectory, replace_text
from dynopt_ray.runs.report import html as page
from dynopt_ray.runs.report.charts import CHARTS, Chart, cut, drawable, figure
from dynopt_ray.runs.report.svg import to_svg
from dynopt_ray.runs.spec import parse
from dynopt_ray.storage import DAMAGE_ERRORS, replace_file

if TYPE_CHECKING:
    import pandas as pd

_LONGEST_LINE = 200
_OUTCOMES = (
    ("summary", "Networks"),
    ("settings", "Settings, mean over seeds"),
    ("policies", "Policies on unseen networks"),
    ("drift", "Accuracy on the stream"),
)
"""The tables with the outcomes of a run, each (name, heading)."""

Tables = Mapping[str, "pd.DataFrame"]


def write_report(directory: RunDirectory) -> Path:
    """Write plots/*.png and report.html of a run.

    Raises:
        RunError: a file of the run is damaged.
    """
    tables = _tables(directory)
    manifest = directory.manifest
    charts = []
    for name, chart in drawable(tables).items():
        plot = directory.writable(f"plots/{name}.png")
        with _damage_named(f"{directory.path / 'tables' / chart.table}.csv"):
            svg = _draw(chart, tables[chart.table], name, plot)
        charts.append((chart.title + cut(tables[chart.table]), svg))
    results = tables.get("results")
    best = _best_row(results) if results is not None else None
    body = [
        _header(directory.name, manifest),
        *(page.section(title, page.table(tables[n])) for n, title in _OUTCOMES if n in tables),
        page.section("Charts", page.charts_grid(charts)),
        page.section("Pareto front", page.table(tables["front"]) if "front" in tables else ""),
        page.section("Results", page.table(results, best=best) if results is not None else ""),
        page.section(
            "Spec and manifest",
            page.details("spec.yaml", directory.spec_text)
            + page.details("manifest.json", directory.manifest_text),
        ),
    ]
    directory.write_text("report.html", page.page(directory.name, body))
    return directory.path / "report.html"


def write_comparison(directories: Sequence[RunDirectory], path: Path) -> Path:
    """Write one page that compares runs: outcomes, charts and the differences of their specs.

    Raises:
        RunError: a file of a run is damaged.
    """
    import pandas as pd

    names = _unique_names(directories)
    about = pd.DataFrame(
        [
            {"run": name, **_headline(directory)}
            for name, directory in zip(names, directories, strict=True)
        ]
    )
    joined = _joined({name: _tables(d) for name, d in zip(names, directories, strict=True)})
    charts = []
    for name, chart in drawable(joined).items():
        with _damage_named(f"tables/{chart.table}.csv of one of the runs"):
            svg = _draw(chart, joined[chart.table], name)
        charts.append((chart.title + cut(joined[chart.table]), svg))
    body = [
        f"<h1>{len(names)} runs compared</h1>",
        page.section("Runs", page.table(about)),
        *(page.section(title, page.table(joined[n])) for n, title in _OUTCOMES if n in joined),
        page.section("Charts", page.charts_grid(charts)),
        page.section("Differences between the specs", _differences(names, directories)),
    ]
    text = page.page(", ".join(names), body)
    replace_text(path, text)
    return path


def _tables(directory: RunDirectory) -> dict[str, "pd.DataFrame"]:
    names = {"results", "front", *(name for name, _ in _OUTCOMES)} | {
        chart.table for chart in CHARTS.values()
    }
    found = {name: directory.table(name) for name in sorted(names)}
    return {name: frame for name, frame in found.items() if frame is not None}


@contextmanager
def _damage_named(table: str) -> Iterator[None]:
    """Report errors in drawing as damage of a table, such as text in a column of numbers."""
    try:
        yield
    except DAMAGE_ERRORS as error:
        raise RunError(f"{table} is damaged: {error}") from error


def _draw(chart: Chart, table: "pd.DataFrame", name: str, png: Path | None = None) -> str:
    with figure(chart, table) as drawn:
        if png is not None:
            replace_file(
                png, lambda path: drawn.savefig(path, format="png", dpi=160), private=False
            )
        return to_svg(drawn, name=name, label=chart.title)


def _header(name: str, manifest: Mapping[str, Any]) -> str:
    status = html.escape(manifest["status"])
    started = manifest["started"][:16].replace("T", " ")
    facts = [f"kind {manifest['kind']}", f"seed {short(manifest['seed'])}", f"{started} UTC"]
    if "duration_s" in manifest:
        facts.append(f"{manifest['duration_s']:,.0f} s")
    lines = [
        f"<h1>{html.escape(shortened(name, _LONGEST_LINE))}</h1>",
        f'<p class="about"><span class="status {status}">{status}</span> · '
        f"{html.escape(shortened(' · '.join(facts), _LONGEST_LINE))}</p>",
    ]
    if manifest.get("error"):
        lines.append(f'<p class="error">{html.escape(shortened(str(manifest["error"])))}</p>')
    return "\n".join(lines)


def _best_row(results: "pd.DataFrame") -> int | None:
    """Return the index of the finished trial with the highest utility; None without trials."""
    if "utility" not in results or "status" not in results:
        return None
    import pandas as pd

    utility = pd.to_numeric(results["utility"], errors="coerce")
    finished = utility.where(results["status"] == "finished").fillna(-np.inf).to_numpy()
    return int(finished.argmax()) if np.isfinite(finished).any() else None


def _headline(directory: RunDirectory) -> dict[str, Any]:
    manifest = directory.manifest
    keys = ("kind", "status", "seed", "duration_s")
    return {key: manifest.get(key) for key in keys}


def _unique_names(directories: Iterable[RunDirectory]) -> list[str]:
    """Return the names of runs, with as many parent directories as make them unique."""
    paths = [directory.path.absolute().parts for directory in directories]
    names: list[str] = []
    for depth in range(1, max(map(len, paths), default=0) + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _joined(tables: Mapping[str, Tables]) -> dict[str, "pd.DataFrame"]:
    """Concatenate the tables of runs, and add the run's name as a column or to the series."""
    import pandas as pd

    series = {"pareto": "series", "stream": "series", "curves": "phase", "policy": "series"}
    joined = {}
    outcomes = [name for name, _ in _OUTCOMES]
    for name in (*outcomes, *series):
        parts = []
        for run, own in tables.items():
            if name not in own:
                continue
            part = own[name].copy()
            if name in outcomes:
                part.insert(0, "run", run)
            elif name == "pareto":
                part[series[name]] = run  # one colour per run: more would be hard to read
            elif series[name] in part:
                part[series[name]] = run + ": " + part[series[name]].astype(str)
            else:
                part[series[name]] = run
            parts.append(part.drop(columns="name", errors="ignore") if name == "pareto" else part)
        if parts:
            joined[name] = pd.concat(parts, ignore_index=True)
    return joined


def _differences(names: Sequence[str], directories: Sequence[RunDirectory]) -> str:
    import pandas as pd

    flat = [_flat(parse(d.spec_text, source=str(d.path / "spec.yaml"))) for d in directories]
    keys = dict.fromkeys(key for spec in flat for key in spec)
    differing = [key for key in keys if len({repr(spec.get(key)) for spec in flat}) > 1]
    if not differing:
        return "<p>All runs have the same spec.</p>"
    rows = [
        {"key": k, **{n: _shown(s.get(k, "")) for n, s in zip(names, flat, strict=True)}}
        for k in differing
    ]
    return page.table(pd.DataFrame(rows), wrap=True)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else short(value)


def _flat(spec: Any, path: str = "") -> dict[str, Any]:
    if isinstance(spec, Mapping) and spec:
        return {
            key: value
            for name, inner in spec.items()
            for key, value in _flat(inner, f"{path}.{name}" if path else str(name)).items()
        }
    return {path: spec}

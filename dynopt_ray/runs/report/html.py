"""Make the HTML of a report: tables, charts and the page, without scripts or external files."""

import html
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_MOST_ROWS = 200


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole page, which contains its style sheet."""
    css = (files("dynopt_ray.runs.report") / "report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """Return a heading and its content, or an empty string if there is no content."""
    return f"<h2>{html.escape(title)}</h2>\n{content}" if content else ""


def charts_grid(charts: Sequence[tuple[str, str]]) -> str:
    """Return charts, given as (heading, svg), next to each other as far as there is room."""
    cards = [
        f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>"
        for title, svg in charts
    ]
    return f'<div class="charts">\n{"".join(cards)}\n</div>' if cards else ""


def table(frame: "pd.DataFrame", *, best: int | None = None, wrap: bool = False) -> str:
    """Return a table that scrolls by itself and shows at most the first 200 rows.

    Args:
        frame: the data.
        best: the index of a row to set in bold.
        wrap: whether to wrap long texts, for tables with few and wide columns.
    """
    classes = ["" if _is_number(frame[name]) else ' class="text"' for name in frame.columns]
    head = "".join(
        f"<th{css}>{html.escape(_heading(str(name)))}</th>"
        for name, css in zip(frame.columns, classes, strict=True)
    )
    rows = []
    for place, values in enumerate(frame.head(_MOST_ROWS).itertuples(index=False)):
        cells = "".join(
            f"<td{css}>{html.escape(number(value))}</td>"
            for value, css in zip(values, classes, strict=True)
        )
        rows.append(f'<tr class="best">{cells}</tr>' if place == best else f"<tr>{cells}</tr>")
    cut = ""
    if len(frame) > _MOST_ROWS:
        cut = f'<p class="about">The first {_MOST_ROWS} of {len(frame)} rows.</p>'
    css = "wide wrap" if wrap else "wide"
    return (
        f'<div class="{css}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{cut}"
    )


def details(title: str, text: str) -> str:
    """Return a text that is hidden until the reader opens it."""
    return (
        f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"
    )


def number(value: Any) -> str:
    """Format a value for people: separated thousands, four decimals, nothing for NaN and None.

    Values of 10 or more have one decimal. Values below 0.001 have three significant digits.
    """
    if isinstance(value, str | bool):
        return str(value)
    if value is None or value != value:
        return ""
    if float(value).is_integer():
        return f"{int(value):,}"
    size = abs(value)
    if size >= 10:
        return f"{value:,.1f}"
    return f"{value:.4f}" if size >= 1e-3 else f"{value:.3g}"


def _heading(name: str) -> str:
    return name.removeprefix("config.").replace("_", " ")


def _is_number(column: "pd.Series[Any]") -> bool:
    return column.dtype.kind in "iuf"

"""Make the HTML of a report: tables, charts and the page, without scripts or external files.

The tables and texts may come from a run that somebody else sent. So every text is escaped and
shortened, and the page forbids the browser everything but the styles that it contains itself.
"""

import base64
import hashlib
import html
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from dynopt_ray.errors import shortened

if TYPE_CHECKING:
    import pandas as pd

_MOST_ROWS = 200
_MOST_COLUMNS = 60
_LONGEST_CELL = 200
_LONGEST_TEXT = 100_000


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole page, which contains its style sheet and its security policy."""
    css = (files("dynopt_ray.runs.report") / "report.css").read_text("utf-8")
    styled = (
        f"<title>{html.escape(shortened(title, _LONGEST_CELL))}</title>\n<style>\n{css}</style>\n"
        "</head>\n<body>\n" + "\n".join(part for part in body if part) + "\n</body>\n</html>\n"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(styled)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n' + styled
    )


def _policy(page: str) -> str:
    """Return the security policy that allows the styles of a page, and nothing else."""
    styles = _Styles()
    styles.feed(page)
    styles.close()
    hashes = sorted({f"'sha256-{_hash(text)}'" for text in styles.found})
    return (
        f"default-src 'none'; style-src 'unsafe-hashes' {' '.join(hashes)}; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _Styles(HTMLParser):
    """Collects the style sheets and the style attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_sheet = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == "style" and value]
        self._in_sheet = tag == "style"
        if self._in_sheet:
            self.found.append("")

    def handle_data(self, data: str) -> None:
        if self._in_sheet:
            self.found[-1] += data

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._in_sheet = False


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
    """Return a table that scrolls by itself and shows at most 200 rows and 60 columns.

    Args:
        frame: the data.
        best: the index of a row to set in bold.
        wrap: whether to wrap long texts, for tables with few and wide columns.
    """
    shown = frame.iloc[:_MOST_ROWS, :_MOST_COLUMNS]
    classes = ["" if _is_number(shown[name]) else ' class="text"' for name in shown.columns]
    head = "".join(
        f"<th{css}>{_cell(_heading(str(name)))}</th>"
        for name, css in zip(shown.columns, classes, strict=True)
    )
    rows = []
    for place, values in enumerate(shown.itertuples(index=False)):
        cells = "".join(
            f"<td{css}>{_cell(number(value))}</td>"
            for value, css in zip(values, classes, strict=True)
        )
        rows.append(f'<tr class="best">{cells}</tr>' if place == best else f"<tr>{cells}</tr>")
    cut = "".join(
        f'<p class="about">The first {most} of {number} {what}.</p>'
        for most, number, what in (
            (_MOST_ROWS, len(frame), "rows"),
            (_MOST_COLUMNS, frame.shape[1], "columns"),
        )
        if number > most
    )
    css = "wide wrap" if wrap else "wide"
    return (
        f'<div class="{css}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{cut}"
    )


def details(title: str, text: str) -> str:
    """Return a text that is hidden until the reader opens it."""
    return (
        f"<details><summary>{html.escape(title)}</summary>"
        f"<pre>{html.escape(shortened(text, _LONGEST_TEXT))}</pre></details>"
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


def _cell(text: str) -> str:
    return html.escape(shortened(text, _LONGEST_CELL))


def _heading(name: str) -> str:
    return name.removeprefix("config.").replace("_", " ")


def _is_number(column: "pd.Series[Any]") -> bool:
    return column.dtype.kind in "iuf"

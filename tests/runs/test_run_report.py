"""Reports: one self-contained page with the tables and charts of a run."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dynopt_ray.errors import RunError
from dynopt_ray.runs.directory import RunDirectory
from dynopt_ray.runs.report.charts import CHARTS, COLOURS, figure
from dynopt_ray.runs.report.html import number, table
from dynopt_ray.runs.report.report import write_comparison, write_report
from dynopt_ray.runs.report.svg import to_svg

TABLES: dict[str, pd.DataFrame] = {
    "results": pd.DataFrame(
        {
            "trial": [0, 1, 2],
            "status": ["stopped", "finished", "finished"],
            "utility": [0.99, 0.7, 0.8],
            "error": ["<b>&", "", ""],
        }
    ),
    "summary": pd.DataFrame({"network": ["before", "after"], "accuracy": [0.9, 0.95]}),
    "settings": pd.DataFrame(
        {
            "criterion": ["magnitude", "taylor", "taylor"],
            "recovery": ["none", "none", "greedy"],
            "trials": [2, 2, 1],
            "accuracy": [0.8, 0.9, 0.7],
            "accuracy_sd": [0.1, 0.0, np.nan],
            "cost": [0.5, 0.5, 0.5],
            "utility": [0.75, 0.85, 0.65],
        }
    ),
    "policies": pd.DataFrame({"policy": ["learned"], "utility": [0.9]}),
    "drift": pd.DataFrame({"network": ["learning"], "after_drift": [0.7]}),
    "front": pd.DataFrame({"trial": [1], "accuracy": [0.9]}),
    "pareto": pd.DataFrame(
        {
            "series": ["start", "trials", "trials"],
            "name": ["start", "#1", "#2"],
            "cost": [1.0, 0.5, 0.2],
            "accuracy": [0.9, 0.95, 0.8],
        }
    ),
    "widths": pd.DataFrame({"decision": [0, 1, 2], "conv1": [8, 6, 6], "conv2": [16, 16, 4]}),
    "slots": pd.DataFrame(
        {"seconds": [0.0, 0.0, 4.5, 9.0], "machine": ["a", "b", "a", "b"], "busy": [2, 1, 1, 0]}
    ),
    "policy": pd.DataFrame({"steps": [100, 200], "episode_return": [0.1, 0.2]}),
    "stream": pd.DataFrame(
        {
            "event": [100, 200, 100, 200, 150, 180],
            "series": ["learning", "learning", "frozen", "frozen", "learning", "learning"],
            "accuracy": [0.9, 0.8, 0.9, 0.2, np.nan, np.nan],
            "mark": ["", "", "", "", "drift", "detected"],
        }
    ),
    "curves": pd.DataFrame(
        {
            "phase": ["train"] * 3 + ["trial 1"] * 3,
            "step": [1, 2, 3] * 2,
            "loss": [2.0, 0.5, 0.01, 0.3, 0.2, 0.1],
            "lr": [0.1, 0.05, 0.01] * 2,
            "accuracy": [0.2, 0.5, 0.9, 0.9, 0.91, 0.92],
        }
    ),
}


class Page(HTMLParser):
    """The tags, links, text and table rows that a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.best: list[int] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.loaded.append(value)
        if tag == "tr":
            self.rows.append([])
            if ("class", "best") in attrs:
                self.best.append(len(self.rows) - 1)
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with every table, and its report."""
    made = make(tmp_path_factory.mktemp("report") / "one")
    write_report(made)
    return made


def text_of(directory: RunDirectory) -> str:
    return (directory.path / "report.html").read_text()


def make(
    path: Path, *, seed: int = 0, lr: float = 0.1, tables: Iterable[str] = TABLES
) -> RunDirectory:
    """A run with some of the tables; each chart takes a moment to draw."""
    made = RunDirectory.create(
        path,
        spec_text=f"kind: demo\nseed: {seed}\ntrain:\n  lr: {lr}\n",
        about={"spec": "demo", "kind": "demo", "seed": seed},
    )
    made.write_results(TABLES["results"])
    for name in tables:
        if name != "results":
            made.write_table(name, TABLES[name])
    made.finish("finished")
    return made


def test_the_page_stands_alone(directory: RunDirectory) -> None:
    text = text_of(directory)
    page = Page(text)
    assert page.loaded == []
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    assert "script" not in page.tags
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert len(text) < 500_000


def test_the_page_shows_the_tables(directory: RunDirectory) -> None:
    page = Page(text_of(directory))
    assert ["before", "0.9000"] in page.rows
    assert ["after", "0.9500"] in page.rows
    assert ["learning", "0.7000"] in page.rows
    assert ["0", "stopped", "0.9900", "<b>&"] in page.rows
    # Only finished trials can be the best one.
    assert [page.rows[place] for place in page.best] == [["2", "finished", "0.8000", ""]]
    for words in ("finished", "kind demo", "seed 0", "Accuracy against cost", "kind: demo"):
        assert words in page.text


def test_every_chart_is_on_the_page_and_in_plots(directory: RunDirectory) -> None:
    text = text_of(directory)
    assert text.count("<svg") == len(CHARTS)
    drawn = {path.stem for path in (directory.path / "plots").glob("*.png")}
    assert drawn == set(CHARTS)
    for path in (directory.path / "plots").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_ids_on_the_page_are_unique(directory: RunDirectory) -> None:
    ids = re.findall(r'\bid="([^"]+)"', text_of(directory))
    assert len(ids) == len(set(ids))
    used = re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', text_of(directory))
    assert {a or b for a, b in used} <= set(ids)


def test_a_run_without_tables_has_no_charts(tmp_path: Path) -> None:
    bare = RunDirectory.create(
        tmp_path / "bare", spec_text="kind: x\n", about={"kind": "x", "seed": 1}
    )
    text = write_report(bare).read_text()
    assert "<svg" not in text
    assert "Charts" not in text
    assert "running" in text


def test_an_error_is_shown_as_text(tmp_path: Path) -> None:
    failed = RunDirectory.create(
        tmp_path / "failed", spec_text="kind: x\n", about={"kind": "x", "seed": 1}
    )
    failed.finish("failed", error="no <script>alert(1)</script>")
    text = write_report(failed).read_text()
    assert "<script" not in text
    assert "no <script>alert(1)</script>" in Page(text).text


def svg_of(name: str) -> ET.Element:
    chart = CHARTS[name]
    with figure(chart, TABLES[chart.table]) as drawn:
        text = to_svg(drawn, name=name, label=chart.title)
    return ET.fromstring(text.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" '))


def words(name: str) -> list[str]:
    return [element.text or "" for element in svg_of(name).iter() if element.tag.endswith("text")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pareto", ["cost relative to the start", "accuracy", "start", "trials", "front", "#2"]),
        ("widths", ["decision", "units", "group conv1", "group conv2"]),
        ("slots", ["seconds", "busy slots"]),
        ("policy", ["environment steps", "gain in smooth utility per episode"]),
        ("stream", ["event", "learning", "frozen", "drift", "detected"]),
        ("loss", ["training loss", "train", "trial 1"]),
        ("lr", ["learning rate", "train", "trial 1"]),
    ],
)
def test_charts_name_what_they_show(name: str, expected: list[str]) -> None:
    assert set(expected) <= set(words(name))


def test_charts_follow_light_and_dark_mode() -> None:
    root = svg_of("pareto")
    assert root.get("viewBox")
    assert root.get("width") is None
    assert root.get("aria-label") == "Accuracy against cost"
    styles = " ".join(element.get("style") or "" for element in root.iter())
    assert "var(--ink, #1b1f24)" in styles
    assert "var(--c0, #0072b2)" in styles
    assert not re.search(r"(fill|stroke): #", styles)


def test_a_drift_is_marked_where_it_is() -> None:
    chart = CHARTS["stream"]
    with figure(chart, TABLES["stream"]) as drawn:
        (axes,) = drawn.axes
        lines = {str(line.get_label()): line for line in axes.lines}
        assert list(np.asarray(lines["drift"].get_xdata())) == [150, 150]
        (triangles,) = axes.collections
        assert np.asarray(triangles.get_offsets())[0][0] == 180


def test_names_of_points_stay_inside_the_chart() -> None:
    frame = TABLES["pareto"].assign(accuracy=[0.9, 0.95, 0.8], cost=[1.0, 0.99, 0.2])
    with figure(CHARTS["pareto"], frame) as drawn:
        drawn.canvas.draw()
        (axes,) = drawn.axes
        inside = axes.get_window_extent()
        boxes = [text.get_window_extent() for text in axes.texts]
    assert boxes
    assert all(box.x1 <= inside.x1 and box.y1 <= inside.y1 for box in boxes)


def test_the_same_tables_give_the_same_page(directory: RunDirectory) -> None:
    before = text_of(directory)
    assert write_report(directory).read_text() == before


@pytest.mark.parametrize(("name", "column"), [("curves", "loss"), ("pareto", "accuracy")])
def test_a_table_that_cannot_be_drawn_is_named(name: str, column: str, tmp_path: Path) -> None:
    run = make(tmp_path / "one", tables=[])
    run.write_table(name, TABLES[name].assign(**{column: "abc"}))
    with pytest.raises(RunError, match=rf"one/tables/{name}\.csv is damaged: "):
        write_report(run)
    with pytest.raises(RunError, match=rf"tables/{name}\.csv of one of the runs is damaged: "):
        write_comparison([make(tmp_path / "two", tables=[name]), run], tmp_path / "comparison.html")


def test_damaged_results_have_no_best_row(tmp_path: Path) -> None:
    run = make(tmp_path / "one", tables=[])
    run.write_results(TABLES["results"].assign(utility="abc"))
    assert Page(write_report(run).read_text()).best == []


def test_runs_are_compared(tmp_path: Path) -> None:
    runs = [make(tmp_path / "one"), make(tmp_path / "two", seed=3, lr=0.2)]
    page = Page(write_comparison(runs, tmp_path / "comparison.html").read_text())
    assert page.text.count("2 runs compared") == 1
    assert ["one", "before", "0.9000"] in page.rows
    assert ["two", "before", "0.9000"] in page.rows
    assert ["seed", "0", "3"] in page.rows
    assert ["train.lr", "0.1", "0.2"] in page.rows
    assert not any(row[:1] == ["kind"] for row in page.rows)
    assert "one: train" in page.text
    assert "two: learning" in page.text


def test_runs_whose_points_have_no_names_are_compared(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, tables=["pareto"]) for name in ("one", "two")]
    points = runs[1].table("pareto")
    assert points is not None
    runs[1].write_table("pareto", points.drop(columns="name", errors="ignore"))
    assert "2 runs compared" in write_comparison(runs, tmp_path / "c.html").read_text()


def test_runs_with_the_same_name_are_distinguished_by_their_parents(tmp_path: Path) -> None:
    runs = [make(tmp_path / name / "x", tables=["summary", "pareto"]) for name in "ab"]
    page = Page(write_comparison(runs, tmp_path / "c.html").read_text())
    assert "a/x" in page.text
    assert "b/x" in page.text
    assert "All runs have the same spec." in page.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0.95, "0.9500"),
        (12.345, "12.3"),
        (1e-5, "1e-05"),
        (2.0, "2"),
        (float("nan"), ""),
        (None, ""),
        ("x", "x"),
        (True, "True"),
        (np.float64(0.5), "0.5000"),
    ],
)
def test_numbers_are_readable(value: Any, text: str) -> None:
    assert number(value) == text


def test_long_tables_are_cut() -> None:
    page = Page(table(pd.DataFrame({"x": range(500)})))
    assert len(page.rows) == 201
    assert "The first 200 of 500 rows." in page.text


def test_the_palette_is_okabe_and_itos() -> None:
    """From their "Color Universal Design" (2008), in RGB."""
    theirs = [
        *((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115)),
        *((240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
    ]
    ours = [tuple(bytes.fromhex(colour.removeprefix("#"))) for colour in COLOURS]
    assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("name", ["pareto", "widths", "stream", "loss"])
def test_no_legend_lies_over_what_is_drawn(name: str) -> None:
    corners = [(0.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0)]
    tables = {
        "pareto": pd.DataFrame(corners, columns=["cost", "accuracy"]).assign(
            series=[f"series {i}" for i in range(5)], name=None
        ),
        "widths": pd.DataFrame({"round": [0, 1], **{f"layer{i}": [9, i] for i in range(10)}}),
        "stream": pd.DataFrame(corners, columns=["event", "accuracy"]).assign(series="a", mark=""),
        "curves": pd.DataFrame(corners, columns=["step", "loss"]).assign(phase=list("aabbb")),
    }
    chart = CHARTS[name]
    with figure(chart, tables[chart.table]) as drawn:
        drawn.canvas.draw()
        (axes,) = drawn.axes
        legend = axes.get_legend()
        assert legend is not None
        box, inside = legend.get_window_extent(), axes.get_window_extent()
        assert box.y0 >= inside.y1 - 0.5
        assert box.x0 >= 0
        assert box.x1 <= drawn.bbox.x1
        assert inside.height > 0.4 * drawn.bbox.height

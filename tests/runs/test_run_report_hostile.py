"""Reports of runs that somebody else made: no script, no other file, no page without bounds."""

import json
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dynopt_ray.errors import RunError
from dynopt_ray.runs.directory import RunDirectory
from dynopt_ray.runs.report.html import page
from dynopt_ray.runs.report.report import write_comparison, write_report
from tests.runs.test_run_report import TABLES

# A script that runs changes the id of the page; the page quotes the script, but not this id.
SCRIPT = "document.documentElement.id='ow'+'ned'"
ATTACKS = (
    f"<script>{SCRIPT}</script>",
    f"<img src=x onerror={SCRIPT}>",
    f'"><svg onload={SCRIPT}>',
    f'\'><iframe src="javascript:parent.{SCRIPT}">',
    f"</style><script>{SCRIPT}</script>",
    f"</title></pre></details></text></svg>--> ]]><script>{SCRIPT}</script>",
    f"<a href=javascript:{SCRIPT}>&lt;script&gt;",
    r"$\undefined{x}$ \$ $$ $\frac$ _x",
    "\x01\x1b[2J\u202e\U0001f600\n",
)
ALLOWED_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "div", "pre"),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "details", "summary"),
    *("svg", "defs", "g", "path", "use", "text", "tspan", "clippath", "rect"),
}


def attacked(frame: pd.DataFrame, attack: str) -> pd.DataFrame:
    """Return a table whose texts and column names begin with an attack."""
    needed = {"status", "mark", "trial", "decision"}
    names = {n: n for n in frame if frame[n].dtype != object or n in needed}
    renamed = frame.rename(columns=lambda n: n if n in names else f"{n}")
    for name in renamed:
        if name not in names:
            renamed[name] = [f"{attack} {cell}" for cell in renamed[name]]
    return renamed.assign(**{attack: attack})


def hostile(path: Path, attack: str, **manifest: Any) -> RunDirectory:
    """Write a run directory in which every text is an attack."""
    (path / "tables").mkdir(parents=True)
    for name, frame in TABLES.items():
        table = frame if name == "widths" else attacked(frame, attack)
        if name == "widths":
            table = frame.rename(columns={"conv1": attack, "conv2": f"{attack} 2"})
        if name == "settings":
            table = table.rename(columns={"criterion": attack + " c"}).drop(columns=attack)
        place = "results.csv" if name == "results" else f"tables/{name}.csv"
        table.to_csv(path / place, index=False)
    about = {"kind": attack, "seed": 1, "status": "failed", "started": attack, "error": attack}
    (path / "manifest.json").write_text(json.dumps({**about, attack: attack, **manifest}))
    spec = {"kind": attack, attack: {attack: [attack]}}
    (path / "spec.yaml").write_text(json.dumps(spec, ensure_ascii=False))
    return RunDirectory.open(path)


class Strict(HTMLParser):
    """Fails at everything in a page that could run a script or load something."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED_TAGS
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "xlink:href", "src", "action", "data", "srcdoc"):
                assert (value or "").startswith("#")
            assert "url(" not in (value or "").replace("url(#", "")
            assert "javascript" not in (value or "")


def reports(tmp_path: Path, attack: str) -> list[Path]:
    """Write the report of a hostile run, and a comparison of it with another."""
    name = attack.replace("/", "").replace("\n", "")[:80]
    one, two = (hostile(tmp_path / f"{name}{number}", attack) for number in (1, 2))
    return [write_report(one), write_comparison([one, two], tmp_path / "comparison.html")]


@pytest.mark.parametrize(
    "attack",
    [ATTACKS[2], ATTACKS[7], *(pytest.param(a, marks=pytest.mark.slow) for a in ATTACKS)],
    ids=lambda attack: f"{ATTACKS.index(attack)}",
)
def test_a_page_of_hostile_texts_has_nothing_that_runs_or_loads(
    tmp_path: Path, attack: str
) -> None:
    for report in reports(tmp_path, attack):
        text = report.read_text("utf-8")
        parser = Strict()
        parser.feed(text)
        parser.close()
        policy = text.index('http-equiv="Content-Security-Policy" content="default-src \'none\'')
        assert policy < text.index("<title>")
        assert "script-src" not in text[policy : text.index("<title>")]
        assert text.count("<figure>") >= 6  # the charts were drawn all the same


def dom(path: Path, profile: Path) -> str:
    """Return a page as Chromium has it after loading it and letting its scripts run."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("Chromium is not installed")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    done = subprocess.run(
        [browser, *options, f"--user-data-dir={profile}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_no_script_of_a_hostile_run_runs_in_a_browser(tmp_path: Path) -> None:
    unsafe = tmp_path / "unsafe.html"
    unsafe.write_text(f"<!doctype html><html><body>{ATTACKS[0]}</body></html>")
    profile = tmp_path / "profile"
    assert 'id="owned"' in dom(unsafe, profile)  # so the check below can fail
    # The policy alone stops a script, if a text should ever get into a page as it is.
    unsafe.write_text(page("title", [*ATTACKS[:3]]))
    assert 'id="owned"' not in dom(unsafe, profile)
    attack = "".join(ATTACKS[:6])
    for report in reports(tmp_path, attack):
        shown = dom(report, profile)
        assert 'id="owned"' not in shown
        assert "Learning on the stream" in shown


@pytest.mark.slow
def test_a_browser_shows_the_styles_that_a_page_contains(tmp_path: Path) -> None:
    """The policy allows the style sheet and the style attributes, by their hashes."""
    (report, _) = reports(tmp_path, "plain")
    text = report.read_text("utf-8")
    # Only a page without a policy may run a script, so the script goes into a frame around it.
    probe = tmp_path / "probe.html"
    script = (
        "const page = document.querySelector('iframe').contentDocument;"
        "const look = (q) => getComputedStyle(page.querySelector(q));"
        "document.title = [look('h1').fontSize, look('.charts').display, "
        "look('path[style]').fill].join(' ')"
    )
    quoted = text.replace("&", "&amp;").replace('"', "&quot;")
    probe.write_text(
        f'<!doctype html><iframe srcdoc="{quoted}"></iframe>'
        f"<script>onload = () => {{{script}}}</script>"
    )
    shown = dom(probe, tmp_path / "profile")
    title = shown[shown.index("<title>") + 7 : shown.index("</title>")]
    size, display, fill = title.split(" ", 2)
    assert display == "grid"
    assert size != "32px"  # a browser's own
    assert fill == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": f'x"><script>{SCRIPT}</script>'}, "'status' is 'x\"><script>"),
        ({"status": "done"}, "which is none of running, finished, failed, interrupted"),
        ({"duration_s": -1}, "'duration_s' is -1"),
        ({"duration_s": 1e300}, r"'duration_s' is 1e\+300"),
        ({"duration_s": float("nan")}, "'duration_s' is nan"),
        ({"seed": "x" * 10**5}, r"'seed' is 'xxxx.*\.\.\.x*'$"),
    ],
)
def test_a_manifest_with_impossible_values_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        write_report(hostile(tmp_path / "run", "x", **change))


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "9" * 10**5, '"\ud83d"', "\0"])
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    run = hostile(tmp_path / "run", "x")
    (run.path / "manifest.json").write_text(text, "utf-8", errors="surrogatepass")
    with pytest.raises(RunError, match=r"manifest\.json") as caught:
        write_report(run)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("name", ["manifest.json", "spec.yaml", "results.csv", "tables/stream.csv"])
def test_files_outside_of_a_run_do_not_get_into_its_report(tmp_path: Path, name: str) -> None:
    run = hostile(tmp_path / "run", "x")
    secret = tmp_path / "secret"
    secret.write_bytes((run.path / name).read_bytes())
    (run.path / name).unlink()
    (run.path / name).symlink_to(secret)
    with pytest.raises(RunError, match="leads out of the run"):
        write_report(run)


def test_nothing_is_written_outside_of_a_run(tmp_path: Path) -> None:
    run = hostile(tmp_path / "run", "x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.path / "plots").symlink_to(outside)
    with pytest.raises(RunError, match="leads out of the run"):
        write_report(run)
    assert list(outside.iterdir()) == []


def test_a_link_to_the_run_itself_is_followed(tmp_path: Path) -> None:
    run = hostile(tmp_path / "run", "x")
    (tmp_path / "latest").symlink_to(run.path)
    assert write_report(RunDirectory.open(tmp_path / "latest")).stat().st_size > 10_000


def test_a_text_file_of_megabytes_is_refused(tmp_path: Path) -> None:
    run = hostile(tmp_path / "run", "x")
    (run.path / "spec.yaml").write_text("#" * (2**20 + 1))
    with pytest.raises(RunError, match="at most 1,048,576 are read"):
        write_report(run)


@pytest.mark.slow
def test_a_page_of_huge_tables_stays_small(tmp_path: Path) -> None:
    run = hostile(tmp_path / "run", "x")
    rows = np.arange(200_000)
    huge: dict[str, Any] = {
        "stream": {"event": rows, "accuracy": rows / 1e6, "series": rows % 500, "mark": ""},
        "pareto": {"cost": rows / 1e6, "accuracy": rows / 1e6, "series": rows},
        "curves": {"step": rows, "loss": rows + 1.0, "lr": rows, "accuracy": 0.5, "phase": rows},
        "widths": {"round": [1, 2], **{f"group {i}": [3, 4] for i in range(20_000)}},
        "summary": {"network": ["x" * 10**6] * 50, **{f"c{i}": 1 for i in range(500)}},
        "policies": {"policy": [f"{'y' * 1_000}{i}" for i in range(50_000)]},
    }
    for name, columns in huge.items():
        pd.DataFrame(columns).to_csv(run.path / "tables" / f"{name}.csv", index=False)
    start = time.perf_counter()
    report = write_report(run)
    assert time.perf_counter() - start < 120
    assert report.stat().st_size < 20 * 2**20
    text = report.read_text("utf-8")
    assert "The first 60 of 501 columns." in text
    assert "Learning on the stream (a part of the table)" in text

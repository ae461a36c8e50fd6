"""Draw docs/after_the_cut.png from docs/benchmarks.md.

Run `python -m experiments.plot_after_the_cut`.
"""

import re
from itertools import dropwhile, takewhile
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
SECTION = "## Pruning units of a CNN"
COLOURS = {"Torch-Pruning": "#999999", "dynopt_ray": "#0072b2"}


def main() -> None:
    """Draw test accuracy right after the cut, at each fraction of the FLOPs."""
    rows = table((DOCS / "benchmarks.md").read_text("utf-8"))
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    parts = list(dict.fromkeys(row["FLOPs left"] for row in rows))
    for offset, (method, colour) in zip((0.2, -0.2), COLOURS.items(), strict=True):
        chosen = {row["FLOPs left"]: row for row in rows if row["method"] == method}
        measured = [mean_and_sd(chosen[part]["after the cut"]) for part in parts]
        means, sds = zip(*measured, strict=True)
        places = [place + offset for place in range(len(parts))]
        bars = axes.barh(places, means, 0.38, xerr=sds, color=colour, label=method, capsize=3)
        axes.bar_label(bars, [f" {mean:.1f} %" for mean in means], padding=4)
    before, _ = mean_and_sd(rows[0]["before"])
    axes.axvline(before, color="black", linewidth=1, linestyle=":")
    axes.text(before + 1, -0.62, f"before: {before:.1f} %", va="center")
    axes.set_yticks(range(len(parts)), [f"{part} of the FLOPs" for part in parts])
    axes.set_xlabel("test accuracy right after the cut, without retraining (%)")
    axes.set_xlim(0, 115)
    axes.set_ylim(len(parts) - 0.4, -0.75)
    axes.legend(loc="lower left", ncols=2, frameon=False, bbox_to_anchor=(0.0, 0.97))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "after_the_cut.png", dpi=150)


def table(page: str) -> list[dict[str, str]]:
    """Read the first table of the section."""
    section = page.split(SECTION, 1)[1]
    lines = dropwhile(lambda line: not line.startswith("|"), section.splitlines())
    rows = takewhile(lambda line: line.startswith("|"), lines)
    head, _, *body = [[cell.strip(" *") for cell in row.strip("|").split("|")] for row in rows]
    return [dict(zip(head, row, strict=True)) for row in body]


def mean_and_sd(cell: str) -> tuple[float, float]:
    """Read `mean ± sd`."""
    mean, sd = re.findall(r"[\d.]+", cell)
    return float(mean), float(sd)


if __name__ == "__main__":
    main()

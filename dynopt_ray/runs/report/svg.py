"""Figures as SVG for a page: its fonts, and colours that follow light and dark mode."""

import html
import io
import re
from typing import TYPE_CHECKING

from dynopt_ray.runs.report.charts import COLOURS, GRID, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VARIABLES = {
    **{colour: f"--c{i}" for i, colour in enumerate(COLOURS)},
    INK: "--ink",
    GRID: "--grid",
    MUTED: "--muted",
}
_COLOUR = re.compile("|".join(_VARIABLES))
_FONT = re.compile(r"(?<=px )'DejaVu Sans'[^;\"]*")
_SIZE = re.compile(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', re.DOTALL)
# matplotlib numbers its groups; several figures on one page would have the same ids.
_GROUP_ID = re.compile(r'<g id="[A-Za-z0-9.]+_\d+"')


def to_svg(figure: "Figure", *, name: str, label: str) -> str:
    """A figure as an `<svg>` element to put into a page.

    The page has to define the CSS variables --c0 … --c7, --ink, --grid and --muted; without them
    the figure's own colours show.

    Args:
        figure: what was drawn.
        name: unique on the page; the ids within depend on it.
        label: what a screen reader says.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = _SIZE.sub(
        rf'<svg viewBox="\1" role="img" aria-label="{html.escape(label, quote=True)}">', text, 1
    )
    text = _GROUP_ID.sub("<g", text)
    text = _FONT.sub("system-ui, sans-serif", text)
    return _COLOUR.sub(lambda found: f"var({_VARIABLES[found[0]]}, {found[0]})", text)

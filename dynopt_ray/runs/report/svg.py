"""Convert figures to SVG with the fonts of a page and with colours for light and dark mode."""

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
# matplotlib numbers its groups, so several figures on one page would have the same ids.
_GROUP_ID = re.compile(r'<g id="[A-Za-z0-9.]+_\d+"')


def to_svg(figure: "Figure", *, name: str, label: str) -> str:
    """Return a figure as an `<svg>` element for an HTML page.

    The page should define the CSS variables --c0 … --c7, --ink, --grid and --muted. Without them
    the figure keeps its own colours.

    Args:
        figure: the figure.
        name: a name that is unique on the page, from which the ids in the element are made.
        label: the text for screen readers.
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

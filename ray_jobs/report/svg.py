"""A matplotlib figure as inline SVG that takes its colours and fonts from the page around it."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Each stands for a CSS variable of the page, so that one drawing serves light, dark and print.
INK, MUTED, RULE, BAND = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010201", "#010202", "#010203", "#010204", "#010205", "#010206")
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    BAND: "--band",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
WIDTH, HEIGHT = 4.9, 3.5  # inches: a phone's width at about 1:1, so that the text stays readable


@contextmanager
def styled() -> Iterator[None]:
    """Figures are made and turned into SVG inside this."""
    with mpl.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: found by search, read aloud
            "text.parse_math": False,  # a $ in a name is a $
            "font.family": "DejaVu Sans",  # for the layout; the page sets its own, narrower one
            "font.size": 11.5,
            "axes.labelsize": 11.5,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 10.5,
            "axes.edgecolor": RULE,
            "axes.labelcolor": MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": RULE,
            "grid.linewidth": 0.6,
            "xtick.color": RULE,
            "ytick.color": RULE,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
            "text.color": INK,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
        }
    ):
        yield


def new_figure(height: float = HEIGHT, width: float = WIDTH) -> Figure:
    """An empty figure, sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def to_svg(figure: Figure, key: str, alt: str) -> Markup:
    """Inline SVG; `key` keeps the ids of several drawings on a page apart.

    The same figure gives the same bytes.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key}), warnings.catch_warnings():
        # the browser draws the text, and has fonts for any script
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    box = re.search(r'viewBox="[^"]*"', drawing)
    assert box is not None
    body = drawing[drawing.index(">", box.end()) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", body)
    body = body.replace("font-family: 'DejaVu Sans'; ", "")
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return Markup('<svg role="img" aria-label="{}" {}>').format(alt, Markup(box.group())) + Markup(
        body
    )

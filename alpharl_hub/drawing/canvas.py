"""Empty figures in the project's manner, and their bytes; matplotlib is loaded on the first use.

The same answer gives the same bytes: no date goes in, and neither a user's matplotlibrc nor the
seed of Python's hashes has a say.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alpharl_hub.drawing.palette import FONT_PT, LIGHT, SHADES, SMALL_FONT_PT, STYLES
from alpharl_hub.drawing.words import magnitude
from alpharl_hub.errors import AlphaRLError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
CREATOR = "alpharl-hub"
_DOTS_PER_INCH = 300

_MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "plus": "P",
    "cross": "X",
    "ring": "o",
    "dot": ".",
}
_SETTINGS: Any = {  # newer versions type every key, older ones none
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": FONT_PT,
    "axes.labelsize": FONT_PT,
    "axes.titlesize": FONT_PT,
    "xtick.labelsize": SMALL_FONT_PT,
    "ytick.labelsize": SMALL_FONT_PT,
    "legend.fontsize": SMALL_FONT_PT,
    "text.parse_math": False,  # a name with dollar signs is a name
    "text.color": LIGHT.ink,
    "axes.labelcolor": LIGHT.ink,
    "axes.edgecolor": LIGHT.faint_ink,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 3.0,
    "axes.labelpad": 2.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "grid.color": LIGHT.grid,
    "grid.linewidth": 0.4,
    "xtick.color": LIGHT.faint_ink,
    "ytick.color": LIGHT.faint_ink,
    "xtick.labelcolor": LIGHT.ink,
    "ytick.labelcolor": LIGHT.ink,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.0,
    "hatch.linewidth": 0.4,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "figure.facecolor": LIGHT.paper,
    "figure.constrained_layout.use": False,
    "savefig.facecolor": LIGHT.paper,
    "pdf.fonttype": 42,  # whole TrueType outlines: publishers refuse Type 3
    "svg.fonttype": "path",  # letters as shapes: right wherever it is shown
    "svg.hashsalt": CREATOR,
}


def require_matplotlib() -> None:
    """Make sure that figures can be drawn, before work is done for them.

    Raises:
        AlphaRLError: matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise AlphaRLError(
            "--plot: matplotlib is missing, which draws it; pip install 'alpharl-hub[plot]'"
        ) from error


@contextmanager
def manner() -> Iterator[None]:
    """Draw and save in the project's manner inside of this block; the caller's settings return."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in letters that the font lacks is shown with boxes; that is no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph ")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty figure that lays itself out; for use inside of `manner`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.03, h_pad=0.03)  # type: ignore[call-arg]  # of the constrained engine
    return figure


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """Return a figure as a file of one of `FORMATS`; for use inside of `manner`."""
    undated: dict[str, dict[str, Any]] = {
        "png": {"Software": CREATOR},
        "svg": {"Creator": CREATOR, "Date": None},
        "pdf": {"Creator": CREATOR, "Producer": None, "CreationDate": None},
    }
    stream = io.BytesIO()
    figure.savefig(stream, format=file_format, dpi=_DOTS_PER_INCH, metadata=undated[file_format])
    return stream.getvalue()


def colour_map() -> Colormap:
    """Return the shades of the palette, from 0 to 1."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("alpharl", SHADES)


def line_look(number: int, num_points: int) -> dict[str, Any]:
    """Return what matplotlib takes to draw line `number`: colour, dash and sparse markers."""
    style = STYLES[number % len(STYLES)]
    is_hollow = style.marker == "ring"
    return {
        "color": style.light,
        "linestyle": (0, style.dash) if style.dash else "-",
        "marker": _MARKERS[style.marker],
        "markerfacecolor": LIGHT.paper if is_hollow else style.light,
        "markeredgewidth": 0.6 if is_hollow else 0.0,
        "markevery": max(1, num_points // 8),
    }


def whole_steps(axes: Axes) -> None:
    """Put ticks of the x axis at whole numbers only: there is no half step and no half layer."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))


def short_numbers(*axes: Axis) -> None:
    """Write each tick out, such as 2e-4: a common factor would stand where the title is."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: magnitude(value))

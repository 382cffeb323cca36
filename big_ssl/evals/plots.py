"""Figures of the report, and images as data: URIs.

Every figure is made with matplotlib's object API, so that nothing here changes a global state, and every
one is returned as a Figure: `figure_uri` turns it into text that a page can carry.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from PIL import Image

# Okabe and Ito's palette, in an order that colour-blind readers can distinguish.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0568c")
INK, MUTED, RULE, RIGHT, WRONG = "#1f2430", "#646b7a", "#e3e1da", "#009e73", "#d55e00"
_DPI = 160
_THUMBNAIL_PIXELS = 96


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve: points are (step, value) in order of step.

    dashed: tells a second kind of the same colour. noisy: a value of one batch, drawn pale behind its
    running mean.
    """

    label: str
    points: Sequence[tuple[int, float]]
    colour: str = COLOURS[0]
    dashed: bool = False
    noisy: bool = False


def image_uri(image: np.ndarray) -> str:
    """Encodes uint8[H, W, 3] as a PNG data: URI, shrunk to at most 96 pixels a side, never enlarged."""
    thumbnail = Image.fromarray(np.asarray(image, np.uint8))
    thumbnail.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    return data_uri(png(np.asarray(thumbnail)))


def png(image: np.ndarray) -> bytes:
    """Encodes uint8[H, W, 3], or uint8 or uint16 [H, W], as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def figure_uri(figure: Figure, tight: bool = False) -> str:
    """Draws a figure into a PNG data: URI; see figure_png."""
    return data_uri(figure_png(figure, tight))


def figure_png(figure: Figure, tight: bool = False) -> bytes:
    """Draws a figure into a PNG; tight cuts off the empty margins."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight" if tight else None)
    return buffer.getvalue()


def panel(
    title: str,
    lines: Sequence[Line],
    caption: str,
    references: dict[str, float] | None = None,
    percent: bool = False,
) -> dict[str, Any] | None:
    """The template's input for `curves`: png, alt and caption; None if there is no line to draw."""
    if not lines:
        return None
    figure = curves(title, lines, references or {}, percent)
    return {"png": figure_png(figure), "alt": title, "caption": caption}


def curves(title: str, lines: Sequence[Line], references: dict[str, float], percent: bool = False) -> Figure:
    """Lines over training steps, with horizontal dotted references such as a baseline's accuracy."""
    figure = Figure(figsize=(4.0, 2.9), layout="constrained", facecolor="white")
    draw_curves(figure, title, lines, references, percent)
    return figure


def draw_curves(
    figure: FigureBase,
    title: str,
    lines: Sequence[Line],
    references: dict[str, float],
    percent: bool = False,
    over: str = "training step",
) -> None:
    """`curves` in a figure, or in a part of a larger one. over: the label of the horizontal axis."""
    axes = figure.add_subplot()
    _dress(axes, title, percent, over)
    for line in lines:
        _draw_line(axes, line)
    for (label, value), style in zip(references.items(), (":", "-.", "--"), strict=False):
        axes.axhline(value, color=MUTED, linestyle=style, linewidth=1.3, label=label)
    if percent:
        axes.set_ylim(bottom=0)
    if len(lines) + len(references) > 1:
        # Below the axes, where it can hide no curve.
        figure.legend(
            frameon=False,
            fontsize=8,
            labelcolor=INK,
            loc="outside lower center",
            ncols=2,
            handlelength=3,
            columnspacing=1,
        )


@dataclasses.dataclass(frozen=True)
class Tile:
    """A cell of `tiles`. image: uint8[H, W, 3], or float[H, W], drawn as a map of its own range; colour: of
    the frame and the caption, "" for no frame."""

    image: np.ndarray
    caption: str = ""
    colour: str = ""


def tiles(rows: Sequence[Sequence[Tile]], titles: Sequence[str] = (), apart: bool = False) -> Figure:
    """Images in rows of equal length, a title over each column; apart: a gap after the first of each row."""
    columns, line = len(rows[0]), 0.32 if any(tile.caption for tile in rows[0]) else 0.08
    widths = [1.0, 0.12, *[1.0] * (columns - 1)] if apart else [1.0] * columns
    side = min(1.6, 9.6 / sum(widths))
    figure = Figure(figsize=(side * sum(widths), (side + line) * len(rows) + 0.3), facecolor="white")
    # No margins: only titles and captions are outside the tiles.
    around = dict(left=0, right=1, bottom=0, top=1, wspace=0.1, hspace=line / side)
    grid = figure.add_gridspec(len(rows), len(widths), width_ratios=widths, **around)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            axes = figure.add_subplot(grid[i, j + int(apart and j > 0)])
            _draw_tile(axes, tile)
            if titles and i == 0:
                axes.set_title(titles[j], fontsize=9, color=INK, pad=5)
    return figure


def _draw_tile(axes, tile: Tile) -> None:
    axes.imshow(tile.image, cmap="inferno", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=bool(tile.colour), color=tile.colour or RULE, linewidth=2)
    if tile.caption:
        # A caption may hold a dollar sign, which is no formula here.
        axes.set_xlabel(tile.caption, fontsize=6.3, color=tile.colour or INK, labelpad=3, parse_math=False)


def heat_map(
    images: np.ndarray, names: Sequence[str], similarities: np.ndarray, unseen: Sequence[bool]
) -> Figure:
    """Cosine similarities of K images (rows) with their K names (columns), the best of each row outlined.

    images: uint8[K, H, W, 3]; similarities: float32[K, K], row i belongs to image i and column i to its name;
    unseen: bool[K]. The outline is green on the diagonal, where it belongs, and orange elsewhere.
    """
    count = len(names)
    figure = Figure(figsize=(8.6, 8.2), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    mesh = axes.imshow(similarities, cmap="Purples", interpolation="nearest")
    for row, column in enumerate(np.argmax(similarities, axis=1)):
        corner, colour = (column - 0.45, row - 0.45), RIGHT if row == column else WRONG
        axes.add_patch(Rectangle(corner, 0.9, 0.9, fill=False, edgecolor=colour, linewidth=2))
    for row, image in enumerate(images):
        # Outside the axes, in its units: a cell and its thumbnail are then of one size whatever the figure's.
        axes.imshow(_square(image), extent=(-1.62, -0.68, row + 0.47, row - 0.47), clip_on=False)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), yticks=[])
    labels = [_shorten(name) + " *" * bool(hidden) for name, hidden in zip(names, unseen, strict=True)]
    # A name may hold a dollar sign, which is no formula here.
    axes.set_xticks(range(count), labels, rotation=50, ha="right", rotation_mode="anchor", parse_math=False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.5, aspect=28, pad=0.02)
    bar.set_label("cosine similarity", fontsize=9, color=MUTED)
    bar.ax.tick_params(labelsize=8, labelcolor=MUTED, length=0)
    bar.outline.set_visible(False)
    return figure


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of float[T] over `window` values around each (fewer at both ends), as float64[T].

    Centred, since a mean of past values would draw every curve later than it was. At the start, where curves
    are steep, it reaches equally far to both sides; at the end, where they are flat, only the right side is
    cut, or the last value drawn would be a single noisy one.
    """
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    places = np.arange(len(values))
    reach = np.minimum(window // 2, places)
    starts, ends = places - reach, np.minimum(places + reach + 1, len(values))
    return (total[ends] - total[starts]) / (ends - starts)


def _draw_line(axes, line: Line) -> None:
    steps, values = np.array(line.points, np.float64).T
    if line.noisy and len(values) >= 50:
        axes.plot(steps, values, color=line.colour, linewidth=0.6, alpha=0.3)
        values = running_mean(values, len(values) // 25)
    # A dot marks each measurement; a single point would draw no line.
    marker = "o" if len(values) <= 25 else None
    dashes = (0, (4, 2)) if line.dashed else "-"
    axes.plot(
        steps,
        values,
        color=line.colour,
        linestyle=dashes,
        linewidth=1.8,
        marker=marker,
        markersize=3,
        label=line.label,
    )


def _dress(axes, title: str, percent: bool, over: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=8)
    axes.set_xlabel(over, fontsize=8.5, color=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def _square(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.asarray(image, np.uint8)).resize((64, 64), Image.Resampling.LANCZOS))


def _shorten(name: str, length: int = 26) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def data_uri(png: bytes) -> str:
    """A PNG as text that a page can carry."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")

"""Predictions drawn on images: boxes, class maps and depth maps. All images are uint8[H, W, 3]."""

import colorsys
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont

from big_ssl.data import bands
from big_ssl.evals import plots

_DEPTHS, _UNKNOWN = matplotlib.colormaps["turbo_r"], (128, 128, 128)  # near is red
# The golden ratio's fraction of the circle of hues: neighbouring classes get distant colours.
_HUE_STEP = 0.618034
# A legend has at most so many lines.
_LEGEND = 16


def class_colour(label: int) -> tuple[int, int, int]:
    """The colour of a class, the same in all drawings; neighbouring numbers differ in hue."""
    hue = (0.02 + label * _HUE_STEP) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, (0.95, 0.7)[label // 8 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    names: Sequence[str],
    scores: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """The image with boxes, each with its class's name and its score.

    Args:
      image: uint8[H, W, 3].
      boxes: float[N, 4], (left, top, right, bottom) in pixels.
      labels: N classes.
      names: of the classes; a class without a name is its number.
      scores: N numbers in 0..1; None draws none, as for annotations.

    Returns:
      uint8[H, W, 3].
    """
    drawing = Image.fromarray(image)
    draw, size = ImageDraw.Draw(drawing), _text_size(image)
    width = max(1, size // 7)
    # The best score is drawn last, on top.
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    for i in order:
        left, top, right, bottom = (float(x) for x in boxes[i])
        colour = class_colour(int(labels[i]))
        corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        draw.rectangle(corners, outline=colour, width=width)
        score = "" if scores is None else f" {float(scores[i]):.2f}"
        _label(draw, (left, top), _name(names, int(labels[i])) + score, colour, size, drawing.size)
    return np.asarray(drawing)


def draw_classes(
    image: np.ndarray, classes: np.ndarray, names: Sequence[str], opacity: float = 0.6, ignore: int = 255
) -> np.ndarray:
    """The image under its class map, with a legend to its right of the classes that occur, largest first.

    Args:
      image: uint8[H, W, 3].
      classes: int[H, W].
      names: of the classes; a class without a name is its number.
      opacity: of the colours, 0..1.
      ignore: the number for no class, which is not coloured.

    Returns:
      uint8[H, W', 3], W' >= W.
    """
    blended, largest = _blended(image, classes, opacity, ignore), _largest(classes, ignore)
    rows = [(class_colour(number), _name(names, number)) for number in largest[:_LEGEND]]
    if len(largest) > _LEGEND:
        rows.append(((255, 255, 255), f"{len(largest) - _LEGEND} more"))
    return _beside(blended, _legend(rows, len(image), _text_size(image)))


def _largest(classes, ignore) -> list[int]:
    """The classes that occur, the most frequent first."""
    numbers, counts = np.unique(classes[classes != ignore], return_counts=True)
    return [int(number) for number in numbers[np.argsort(-counts, kind="stable")]]


def _blended(image, classes, opacity, ignore):
    """uint8[H, W, 3]: the image under the colours of its classes."""
    blended = image.astype(np.float32)
    for number in np.unique(classes[classes != ignore]):
        where = classes == number
        colour = np.array(class_colour(int(number)), np.float32)
        blended[where] = (1 - opacity) * blended[where] + opacity * colour
    return np.round(blended).astype(np.uint8)


def class_figure(
    rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], names: Sequence[str], ignore: int = 255
) -> Figure:
    """Rows of an image, the image under its classes and under the predicted ones, over a legend.

    rows: (uint8[H, W, C], int[H, W], int[H, W]); names, ignore: as in draw_classes.
    """

    def tile(image, classes):
        return plots.Tile(_blended(bands.visible(image), classes, 0.7, ignore))

    tiles = [
        [plots.Tile(bands.visible(image)), tile(image, truth), tile(image, predicted)]
        for image, truth, predicted in rows
    ]
    figure = plots.tiles(tiles, ("image", "classes", "predicted"))
    largest = _largest(np.concatenate([x.ravel() for _, *maps in rows for x in maps]), ignore)[:_LEGEND]
    handles = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*class_colour(number)), label=_name(names, number))
        for number in largest
    ]
    figure.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize=8, frameon=False
    )
    return figure


def depth_colours(depth: np.ndarray, nearest: float, farthest: float) -> np.ndarray:
    """float[H, W] -> uint8[H, W, 3]: near depths are red, far ones blue, unknown ones (0) grey."""
    scaled = (depth - nearest) / max(farthest - nearest, 1e-6)
    colours = np.round(255 * np.asarray(_DEPTHS(np.clip(scaled, 0, 1)))[..., :3]).astype(np.uint8)
    colours[~(depth > 0)] = _UNKNOWN
    return colours


def draw_depth(image: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The image, its depth map to the right, and a colour bar with the depths at its ends and between.

    Args:
      image: uint8[H, W, 3].
      depth: float[H, W], 0 where it is unknown.

    Returns:
      uint8[H, W', 3].
    """
    nearest, farthest = depth_range([depth])
    bar = _colour_bar(nearest, farthest, len(image), _text_size(image))
    return _beside(_beside(image, depth_colours(depth, nearest, farthest)), bar)


def depth_range(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """(nearest, farthest) known depth of maps, (0, 1) if none is known."""
    known = [depth[depth > 0] for depth in maps]
    known = [x for x in known if x.size]
    if not known:
        return 0.0, 1.0
    return float(min(x.min() for x in known)), float(max(x.max() for x in known))


def depth_figure(rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Rows of an image, its depth and the prediction, with one scale of colours, and its bar.

    rows: (uint8[H, W, C], float[h, w], 0 where unknown, float[h, w]).
    """
    nearest, farthest = depth_range([depth for _, *maps in rows for depth in maps])

    def tile(depth):
        return plots.Tile(depth_colours(depth, nearest, farthest))

    tiles = [[plots.Tile(bands.visible(image)), tile(truth), tile(depth)] for image, truth, depth in rows]
    figure = plots.tiles(tiles, ("image", "depth", "prediction"))
    axes = figure.add_axes((1.03, 0.0, 0.03, 1.0))
    bar = figure.colorbar(ScalarMappable(Normalize(nearest, farthest), _DEPTHS), cax=axes)
    bar.set_label("depth, of truth and prediction alike", fontsize=8, color=plots.MUTED)
    bar.ax.tick_params(labelsize=8, labelcolor=plots.MUTED, length=0)
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)
    return figure


def _colour_bar(nearest, farthest, height, size):
    """uint8[height, w, 3]: a bar, the nearest depth at the top, with depths beside it."""
    bar_width, steps = max(4, size), max(2, min(6, height // (2 * size)))
    column = depth_colours(np.linspace(nearest, farthest, height)[:, None], nearest, farthest)
    if nearest <= 0:
        column[0] = column[min(1, height - 1)]
    gap = size // 2
    drawing = Image.new("RGB", (bar_width + 5 * size, height), "white")
    drawing.paste(Image.fromarray(np.repeat(column, bar_width, 1)), (gap, 0))
    draw = ImageDraw.Draw(drawing)
    for i in range(steps):
        fraction = i / (steps - 1)
        text = f"{nearest + fraction * (farthest - nearest):.3g}"
        top = fraction * (height - size - 2)
        draw.text((bar_width + 2 * gap, top), text, fill=plots.INK, font=ImageFont.load_default(size))
    return np.asarray(drawing)


def _legend(rows, height, size):
    """uint8[height, w, 3]: a line for each (colour, text), as many as fit."""
    font, line = ImageFont.load_default(size), size + size // 2
    fitting = rows[: max(1, height // line)]
    widest = max((font.getlength(text) for _, text in fitting), default=0)
    drawing = Image.new("RGB", (int(widest) + 3 * size, height), "white")
    draw = ImageDraw.Draw(drawing)
    for i, (colour, text) in enumerate(fitting):
        top = i * line + size // 4
        draw.rectangle((size // 2, top, size // 2 + size, top + size), fill=colour, outline=plots.RULE)
        draw.text((2 * size, top), text, fill=plots.INK, font=font)
    return np.asarray(drawing)


def _label(draw, corner, text, colour, size, sides):
    """Text on a rectangle of this colour above a box's left top corner, moved into the image."""
    font = ImageFont.load_default(size)
    width, height = font.getlength(text) + size // 2, size + size // 3
    left = min(max(corner[0], 0), max(sides[0] - width, 0))
    top = corner[1] - height if corner[1] >= height else max(corner[1], 0)
    draw.rectangle((left, top, left + width, top + height), fill=colour)
    light = sum(weight * x for weight, x in zip((0.299, 0.587, 0.114), colour, strict=True)) > 140
    draw.text((left + size // 4, top), text, fill="black" if light else "white", font=font)


def _beside(left, right):
    """Two images of one height as one."""
    return np.concatenate([left, right], axis=1)


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def _text_size(image):
    """Pixels; readable on a large photograph, and no larger than a small image can hold."""
    return int(np.clip(min(image.shape[:2]) / 28, 9, 40))

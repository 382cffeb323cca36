"""The largest differences that the parity tests measure, as the table of docs/weights.md.

A parity test adds one line, with the two arrays that it compares:

    parity_figure("hf_clip", "architecture", found, expected)

`make parity-table` runs all parity tests and writes the table.
"""

import importlib.metadata
import pathlib
import re

import numpy as np

from big_ssl.weights.formats import FORMATS, WRITABLE

COLUMNS = ("architecture", "preprocessing", "tokenizer", "other sizes", "heads", "export")
# What a figure can be measured against: a distribution, whose version the table gives, or PyTorch code of
# ours that follows the published one (clip_reference.py, dino_reference.py).
REFERENCE = "reference"
LIBRARIES = ("transformers", "timm", "open_clip_torch", REFERENCE)

_TOWERS = {"timm_dinov2", "hf_dinov2", "dinov3", "hf_dinov3", "timm_dinov3", "hf_tipsv2", "ibot", "hf_vit"}
_TOWERS |= {"swin", "hf_swin", "hf_swinv2"}
_IMAGE_ONLY = _TOWERS | {"dinov2", "timm_pe", "timm_vit"}
# Backbones that are published without heads.
_HEADLESS = _TOWERS | {"hf_bert"}
_TEXT_ONLY = {"hf_bert"}

_BEGIN, _END = "<!-- parity table: begin -->", "<!-- parity table: end -->"

# {(format, column, library): the largest difference}.
_figures: dict[tuple[str, str, str], float] = {}


def parity_figure(format_: str, column: str, found, expected, library: str = "transformers") -> None:
    """Records the largest difference of two arrays.

    Args:
      format_: a format in FORMATS.
      column: in COLUMNS.
      found: our array, of any shape; ids of tokens, too.
      expected: the other library's array, of the same shape.
      library: in LIBRARIES, what gave it.

    Raises:
      ValueError: for another column or library, for arrays that cannot be compared.
    """
    if format_ not in FORMATS:
        raise ValueError(f"{format_} is no format; there are {', '.join(FORMATS)}")
    if column not in COLUMNS:
        raise ValueError(f"{column} is no column of the table; there are {', '.join(COLUMNS)}")
    if library not in LIBRARIES:
        raise ValueError(f"{library} is no library of the table; there are {', '.join(LIBRARIES)}")
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or not found.size:
        raise ValueError(f"found has the shape {list(found.shape)}, expected {list(expected.shape)}")
    difference = float(np.abs(found - expected).max())
    if not np.isfinite(difference):
        raise ValueError(f"the difference of {format_}'s {column} is not finite")
    key = format_, column, library
    _figures[key] = max(_figures.get(key, 0.0), difference)


def table(figures: dict[tuple[str, str, str], float]) -> str:
    """Returns figures as lines of Markdown: a table with a row for each format, and the versions."""
    formats = [name for name in FORMATS if name != "big_ssl"]
    lines = [f"| format | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in formats:
        cells = (_cell(figures, name, column) for column in COLUMNS)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    used = sorted({library for _, _, library in figures} - {REFERENCE})
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", *used)]
    return "\n".join([*lines, "", f"Measured with {', '.join(versions)}."])


def _cell(figures, name, column):
    """The figures of one cell, "–" where the format has no such thing, nothing where no test measures it."""
    measured = [(library, figures.get((name, column, library))) for library in LIBRARIES]
    texts = [f"{_number(value)} {library}" for library, value in measured if value is not None]
    if texts:
        return ", ".join(texts)
    absent = dict.fromkeys(("preprocessing", "other sizes"), name in _TEXT_ONLY)
    absent |= {"tokenizer": name in _IMAGE_ONLY, "heads": name in _HEADLESS, "export": name not in WRITABLE}
    return "–" if absent.get(column) else ""


def _number(value):
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def write(path: pathlib.Path) -> None:
    """Replaces the table between the two marks of a Markdown file by the recorded figures.

    Raises:
      ValueError: if the file does not have the two marks, once each and in this order.
    """
    page = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    if page.count(_BEGIN) != 1 or page.count(_END) != 1 or not pattern.search(page):
        raise ValueError(f"{path} must have the lines {_BEGIN} and {_END}, once each")
    between = f"{_BEGIN}\n{table(_figures)}\n{_END}"
    path.write_text(pattern.sub(lambda _: between, page), encoding="utf-8")

"""The table of parity figures."""

import numpy as np
import pytest

from big_ssl.weights.formats import FORMATS
from tests.parity import figures


@pytest.fixture
def recorded(monkeypatch):
    """An empty store in place of the session's."""
    store = {}
    monkeypatch.setattr(figures, "_figures", store)
    return store


def test_a_cell_is_the_largest_difference(recorded):
    for value in (1.5, 1.0, 1.25):
        figures.parity_figure("hf_clip", "heads", np.full(3, value, np.float32), np.ones(3))
    assert recorded == {("hf_clip", "heads", "transformers"): 0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hf_clop", "heads", [1], [1]), "hf_clop is no format"),
        (("hf_clip", "head", [1], [1]), "head is no column of the table; there are architecture, "),
        (("hf_clip", "heads", [1], [1], "torchvision"), "torchvision is no library of the table"),
        (("hf_clip", "heads", [1, 2], [1]), r"found has the shape \[2\], expected \[1\]"),
        (("hf_clip", "heads", [], []), r"found has the shape \[0\]"),
        (("hf_clip", "heads", [np.nan], [1]), "the difference of hf_clip's heads is not finite"),
    ],
)
def test_what_no_cell_can_hold_is_refused(arguments, message, recorded):
    with pytest.raises(ValueError, match=message):
        figures.parity_figure(*arguments)
    assert not recorded


def test_the_table(recorded, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", dict(torch="2.0", transformers="5.0", timm="1.0").get)
    figures.parity_figure("hf_clip", "tokenizer", [1, 2], [1, 2])
    figures.parity_figure("hf_clip", "architecture", [1.00002], [1.0])
    figures.parity_figure("hf_clip", "architecture", [1.25], [1.0], figures.REFERENCE)
    figures.parity_figure("timm_dinov2", "architecture", [1.003], [1.0], "timm")
    lines = figures.table(recorded).splitlines()
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines[2:-2]}
    assert list(cells) == [f"`{name}`" for name in FORMATS if name != "big_ssl"]
    assert cells["`hf_clip`"] == ["2e-5 transformers, 2e-1 reference", "", "0 transformers", "", "", ""]
    assert cells["`timm_dinov2`"] == ["3e-3 timm", "", "–", "", "–", "–"]
    assert lines[-1] == "Measured with torch 2.0, timm 1.0, transformers 5.0."


def test_only_what_is_between_the_marks_changes(recorded, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- parity table: begin -->\nold\n<!-- parity table: end -->\nafter\n")
    for _ in range(2):
        figures.write(page)
        first, *middle, last = page.read_text().splitlines()
        assert (first, last) == ("before", "after")
        assert "old" not in middle
        assert middle[1].startswith("| format | architecture |")


@pytest.mark.parametrize(
    "text", ["", "<!-- parity table: begin -->", "<!-- parity table: end --><!-- parity table: begin -->"]
)
def test_a_page_without_the_marks_is_refused(text, recorded, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must have the lines"):
        figures.write(page)
    assert page.read_text() == text

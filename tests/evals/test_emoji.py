"""The evaluation sets, and what plain pixels know about them."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from big_ssl.data import preprocessing, sources
from big_ssl.evals import emoji

SMALL = functools.partial(preprocessing.resize, size=16, how="crop 18")
PIXELS = functools.partial(preprocessing.resize, size=16, how="crop")


@pytest.fixture(scope="module")
def twemoji():
    return emoji.load("twemoji", SMALL)


def test_every_image_has_one_name(twemoji):
    rows = sources.EmojiPairs(["twemoji"]).rows
    assert twemoji.images.shape == (len(rows), 16, 16, 3)
    assert [twemoji.names[i] for i in twemoji.labels] == [row["label"] for row in rows]
    assert (twemoji.unseen.sum(), len(twemoji.names)) == (370, 1911)


def test_another_style_shares_the_names(twemoji):
    other = emoji.load("fxemoji", SMALL)
    rows = sources.EmojiPairs(["fxemoji"]).rows
    assert list(other.names) == list(twemoji.names)
    assert [other.names[i] for i in other.labels] == [row["label"] for row in rows]
    assert len(other.labels) < len(other.names)


@pytest.fixture
def small():
    """Names 0 to 3, of which 1 and 3 are unseen, 2 and 3 flags; five pictures."""
    return emoji.NamedImages(
        images=np.zeros((5, 16, 16, 3), np.uint8),
        names=["a", "b", "c", "d"],
        labels=np.array([0, 0, 1, 2, 3]),
        unseen=np.array([False, True, False, True]),
        flag=np.array([False, False, True, True]),
    )


def test_subsets(small):
    found = {suffix: (images.tolist(), names.tolist()) for suffix, images, names in emoji.subsets(small)}
    yes, no = True, False
    assert found == {
        "": ([yes] * 5, [yes] * 4),
        "_no_flags": ([yes, yes, yes, no, no], [yes, yes, no, no]),
        "_unseen": ([no, no, yes, no, yes], [yes] * 4),
        "_unseen_no_flags": ([no, no, yes, no, no], [yes, yes, no, no]),
    }


def test_positives(small):
    images, names = np.array([1, 0, 1, 0, 1], bool), np.array([1, 1, 0, 1], bool)
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(small.positives(images, names), np.array(expected, bool))


def test_an_identical_image_is_the_nearest_by_pixels():
    # The training pictures themselves, asked at the baseline's own size: distance zero.
    data = emoji.load("fxemoji", PIXELS)
    scores = emoji.pixel_scores("fxemoji", ["fxemoji"])
    seen = ~data.unseen[data.labels]
    assert (scores[seen].argmax(1) == data.labels[seen]).mean() > 0.995  # a few drawings are alike
    np.testing.assert_allclose(scores[seen, data.labels[seen]], 0, atol=1e-3)
    assert np.isneginf(scores[:, data.unseen]).all()


def test_pixels_are_the_nearest_of_a_concepts_drawings():
    styles, chosen = ["fxemoji", "noto"], 7
    asked = emoji.load("twemoji", PIXELS).images[chosen]
    scores = emoji.pixel_scores("twemoji", styles)
    source = sources.EmojiPairs(styles, "seen")
    concept = source.rows[3]["unified"]
    column = [row["unified"] for row in sources.EmojiPairs(["twemoji"]).rows].index(concept)

    def pixels(image):
        small = Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)
        flat = np.asarray(small, np.float64).ravel() / 255
        return flat - flat.mean()

    drawings = [i for i, row in enumerate(source.rows) if row["unified"] == concept]
    assert len(drawings) == 2
    distances = []
    for i in drawings:
        image = emoji.load_images([source[i]], PIXELS)[0]
        assert Image.open(io.BytesIO(source[i]["image"])).size[0] >= 16
        distances.append(((pixels(image) - pixels(asked)) ** 2).sum())
    assert scores[chosen, column] == pytest.approx(-min(distances), rel=1e-3)

"""Retrieval with several captions an image, against sorting one query at a time."""

import numpy as np
import pytest

from big_ssl.evals import ranking, reading, retrieval
from big_ssl.evals.retrieval import Retrieval, recalls


def _features(levels=None, images=40, seed=0):
    """Images, captions (one to three each) and their owners; a few levels make many ties."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(images), rng.integers(1, 4, images))
    images, texts = rng.normal(size=(images, 6)), rng.normal(size=(len(owners), 6))
    texts += images[owners]
    if levels:
        images, texts = np.round(images * levels) / levels, np.round(texts * levels) / levels
    return images.astype(np.float32), texts.astype(np.float32), owners


def _hits(scores, right, k):
    """One query at a time: is any right answer among the first k, wrong ones first where scores tie?"""
    hits = []
    for row, answers in zip(scores, right, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i in answers))
        hits.append(bool(set(order[:k]) & answers))
    return np.mean(hits)


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("queries", [7, 1024])
def test_recalls_agree_with_sorting(levels, queries, monkeypatch):
    monkeypatch.setattr(ranking, "_QUERIES", queries)
    images, texts, owners = _features(levels)
    found = recalls(images, texts, owners)
    scores = images @ texts.T
    assert (len(np.unique(scores)) < scores.size / 4) == bool(levels)
    captions = [set(np.flatnonzero(owners == i)) for i in range(len(images))]
    for k in (1, 5, 10):
        assert found[f"image_to_text_r{k}"] == pytest.approx(_hits(scores, captions, k))
        assert found[f"text_to_image_r{k}"] == pytest.approx(_hits(scores.T, [{i} for i in owners], k))
    assert 0.1 < found["image_to_text_r1"] < found["image_to_text_r10"] < 1


def test_without_ties_any_sort_gives_the_same():
    """As public evaluations have it: the first k of a descending sort, a hit where one is right."""
    images, texts, owners = _features()
    order = np.argsort(-(images @ texts.T), axis=1)
    expected = (owners[order[:, :5]] == np.arange(len(images))[:, None]).any(1).mean()
    assert recalls(images, texts, owners)["image_to_text_r5"] == pytest.approx(expected)


def test_a_caption_that_two_images_share_is_a_tie_against_both():
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], np.float32)
    found = recalls(images, texts, np.arange(3))
    assert found["image_to_text_r1"] == pytest.approx(1 / 3)
    assert found["text_to_image_r1"] == pytest.approx(1 / 3)
    assert found["image_to_text_r5"] == 1


@pytest.fixture
def captioned(folder, monkeypatch):
    """Sets the captions of a folder's pictures: {colour: its captions}."""
    from big_ssl.data import sources

    def make(texts, **options):
        path = folder({f"{i:02}": [colour] for i, colour in enumerate(texts)})

        class Source(sources.ImageFolder):
            def __getitem__(self, index):
                return super().__getitem__(index) | dict(text=list(texts.values())[index])

        monkeypatch.setitem(sources.SOURCES, "captioned", Source)
        return Retrieval(dict(kind="captioned", path=path), **options, name="x")

    return make


CAPTIONS = {
    "red": ["something", "a red one"],
    "green": ["a green one"],
    "blue": ["a red one, no: blue", "blue"],
}


def test_a_whole_set(captioned, predictor, monkeypatch):
    monkeypatch.setattr(retrieval, "_TEXTS", 2)
    predictor.split = reading.over_mesh(predictor._mesh, 2)
    seen = []
    encode_text = predictor.encode_text
    monkeypatch.setattr(predictor, "encode_text", lambda texts: seen.extend(texts) or encode_text(texts))
    found = captioned(CAPTIONS).metrics(predictor)
    assert seen == ["something", "a red one", "a green one", "a red one, no: blue", "blue"]
    # Red ties with the caption that names it wrongly, and "something" is nearest to who knows what.
    assert found["retrieval/x/image_to_text_r1"] == pytest.approx(2 / 3)
    assert found["retrieval/x/image_to_text_r5"] == 1
    assert found["retrieval/x/text_to_image_r1"] in (pytest.approx(3 / 5), pytest.approx(4 / 5))


def test_prefix_and_number_of_captions(captioned, predictor, monkeypatch):
    seen = []
    encode_text = predictor.encode_text
    monkeypatch.setattr(predictor, "encode_text", lambda texts: seen.extend(texts) or encode_text(texts))
    captioned(CAPTIONS, per_image=1, prefix="a photo of").metrics(predictor)
    assert seen == [f"a photo of {some[0]}" for some in CAPTIONS.values()]


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        ({"red": []}, {}, r"captions: \[\] of a record are no captions"),
        ({"red": ["a", None]}, {}, r"captions: \['a', None\] of a record"),
        ({"red": ["a"]}, dict(captions=["texts"]), "the records have no 'texts'; there are label, text"),
    ],
)
def test_records_without_captions_are_errors(captioned, captions, options, message):
    with pytest.raises(ValueError, match=message):
        captioned(captions, **options)


def test_records_in_groups_are_refused():
    with pytest.raises(ValueError, match="the source emoji_concepts groups its records"):
        Retrieval(dict(kind="emoji_concepts", styles=["fxemoji"]), name="x")

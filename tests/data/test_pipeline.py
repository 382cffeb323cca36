"""Batches as a function of (seed, step): whoever asks, however often, from wherever."""

import io
import itertools

import grain
import jax
import numpy as np
import pytest
from absl import logging
from PIL import Image

from big_ssl import retry
from big_ssl.data import decode, fields, pipeline
from big_ssl.data.cache import memory_bytes
from big_ssl.data.fields.text import draw_caption
from big_ssl.data.records import BadValue
from big_ssl.data.sources import EmojiPairs, ImageFolder
from big_ssl.data.tokenizers import WordPiece, vocabulary_path

TOKENIZER = WordPiece(vocabulary_path("emoji"), 8)
IMAGE = dict(kind="image", crop=dict(kind="random_crop", resize=18, size=16), mean=(0.5,), std=(0.5,))
CAPTIONS = dict(label=0.5, name=0.2, short_names=0.1, tags=0.2)


def _loader(source, captions=None, cache_mib=0, **more):
    """The loader of a source's images, of its texts if there are captions, and of other fields."""
    options = dict(image=IMAGE) | (dict(text=dict(kind="text", captions=captions)) if captions else {})
    made = fields.opened(fields.build(options | more, 8), source, TOKENIZER)
    return pipeline.LoadExample(source, made, cache_mib)


@pytest.fixture(scope="module")
def load():
    return _loader(EmojiPairs(["fxemoji"], "seen"), CAPTIONS)


def _take(load, steps, records=500, batch_size=16, seed=0, start=0, threads=2, rows=None):
    batches = pipeline.batches([pipeline.Part(load, records)], batch_size, seed, start, threads, rows)
    taken = list(itertools.islice(batches, steps))
    batches.close()
    return taken


def _assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.smoke
def test_the_same_seed_gives_the_same_batches(load):
    first = _take(load, 5)
    _assert_equal(first, _take(load, 5, threads=7))
    assert first[0]["image"].shape == (16, 16, 16, 3)
    assert first[0]["image"].dtype == np.uint8
    assert first[0]["text"]["ids"].shape == first[0]["text"]["mask"].shape == (16, 8)
    assert not _equal(first, _take(load, 5, seed=1))


@pytest.mark.parametrize("start", [1, 3, 40])
def test_a_resumed_run_gets_the_batches_it_would_have_had(start, load):
    # 40 batches of 16 lie beyond the first epoch of 500.
    _assert_equal(_take(load, 3, start=start), _take(load, start + 3)[start:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_global_batches(processes, load):
    whole = _take(load, 4, start=30)
    for rows in np.arange(16).reshape(processes, -1):
        for part, batch in zip(_take(load, 4, start=30, rows=rows), whole, strict=True):
            _assert_equal(part, jax.tree.map(lambda x, rows=rows: x[rows], batch))


def test_a_process_whose_devices_are_scattered_gets_its_rows(load):
    rows = np.array([2, 3, 12, 13])
    for part, batch in zip(_take(load, 3, start=30, rows=rows), _take(load, 3, start=30), strict=True):
        _assert_equal(part, jax.tree.map(lambda x: x[rows], batch))


class _Indices:
    """Stands in for LoadExample: each record is its own index."""

    def __new__(cls):
        class Load(grain.transforms.RandomMap):
            def random_map(self, index, rng):
                return dict(index=index, draw=rng.integers(0, 2**31))

        return Load()


def test_every_record_once_an_epoch_and_each_epoch_in_another_order():
    taken = _take(_Indices(), 30, records=40, batch_size=8)
    epochs = np.concatenate([batch["index"] for batch in taken]).reshape(6, 40)
    assert (np.sort(epochs) == np.arange(40)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert not (epochs[0] == np.arange(40)).all()


def test_a_batch_that_spans_epochs_is_full():
    taken = _take(_Indices(), 10, records=13, batch_size=8)
    indices = np.concatenate([batch["index"] for batch in taken])
    assert all(len(batch["index"]) == 8 for batch in taken)
    np.testing.assert_array_equal(np.bincount(indices[:78], minlength=13), 6)


def test_a_record_is_augmented_anew_each_epoch():
    taken = _take(_Indices(), 10, records=8, batch_size=8)
    draws = np.stack([batch["draw"][np.argsort(batch["index"])] for batch in taken])
    assert len(np.unique(draws)) == 80


# Bad records.


class _Source(list):
    """Records by index; `bad` maps some to what is wrong with them."""

    def __init__(self, bad, length=20):
        good = EmojiPairs(["fxemoji"], "seen")
        super().__init__(good[i] for i in range(length))
        for index, changes in bad.items():
            self[index] = self[index] | changes


NO_IMAGE, NO_TEXT = dict(image=b"nothing"), dict(label="")


def _load(bad, **options):
    return _loader(_Source(bad, **options), dict(label=1.0))


def _errors(example):
    return [name for name, there in example["data_errors"].items() if there]


def test_a_bad_record_is_replaced_by_the_next_good_one():
    load = _load({3: NO_IMAGE, 4: NO_TEXT, 7: dict(image=b"")})
    rng = np.random.default_rng
    good = load.random_map(5, rng(0))
    replaced = load.random_map(3, rng(0))
    np.testing.assert_array_equal(replaced["text"]["ids"], good["text"]["ids"])
    assert _errors(replaced) == ["replaced_images", "replaced_texts"]
    assert _errors(load.random_map(4, rng(0))) == ["replaced_texts"]
    assert _errors(load.random_map(7, rng(0))) == ["replaced_images"]
    assert _errors(good) == []
    _assert_equal(load.random_map(3, rng(0)), replaced)


def test_the_record_after_the_last_is_the_first():
    load = _load({19: NO_IMAGE})
    np.testing.assert_array_equal(
        load.random_map(19, np.random.default_rng(0))["text"]["ids"],
        load.random_map(0, np.random.default_rng(0))["text"]["ids"],
    )


def test_batches_with_bad_records_are_the_same_each_time():
    load = _load({3: NO_IMAGE, 4: NO_TEXT})
    first = _take(load, 5, records=20, batch_size=4)
    _assert_equal(first, _take(load, 5, records=20, batch_size=4))
    assert sum(batch["data_errors"]["replaced_images"].sum() for batch in first) == 1
    assert sum(batch["data_errors"]["replaced_texts"].sum() for batch in first) == 2


def test_nothing_but_bad_records_is_a_missing_example():
    """No error, which would end one host alone: the step sums the marks, and all hosts stop together."""
    load = _load(dict.fromkeys(range(20), NO_IMAGE))
    example = load.random_map(2, np.random.default_rng(0))
    assert _errors(example) == ["replaced_images", "missing_examples"]
    good = _load({}).random_map(2, np.random.default_rng(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), example["text"]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), good["text"]
    )
    assert example["image"].shape == good["image"].shape
    assert not example["image"].any()


# A storage that does not answer.


class _Unanswering(_Source):
    """Raises one of `errors` at each reading of the records `where`, until there are none left."""

    def __init__(self, errors, where):
        super().__init__({})
        self.errors, self.where, self.reads = list(errors), where, 0

    def __getitem__(self, index):
        self.reads += 1
        if index in self.where and self.errors:
            raise self.errors.pop(0)
        return super().__getitem__(index)


def _load_from(errors, where):
    source = _Unanswering(errors, where)
    return source, _loader(source, dict(label=1.0))


@pytest.fixture
def pauses(monkeypatch):
    slept = []
    monkeypatch.setattr(retry, "sleep", slept.append)
    return slept


def test_a_record_that_is_read_late_is_the_record(pauses):
    _, load = _load_from([ConnectionResetError(), TimeoutError(), OSError(5, "Input/output error")], {3})
    example = load.random_map(3, np.random.default_rng(0))
    assert _errors(example) == []
    assert len(pauses) == 3
    _assert_equal(example, _load({}).random_map(3, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("error", "waits"),
    [(ConnectionResetError(), 5), (FileNotFoundError(2, "none"), 0), (ValueError("cut"), 0)],
)
def test_a_record_that_is_never_read_is_replaced(error, waits, pauses):
    _, load = _load_from([error] * 100, {3})
    example = load.random_map(3, np.random.default_rng(0))
    assert _errors(example) == ["replaced_records"]
    assert len(pauses) == waits


def test_a_source_that_is_gone_is_not_asked_for_ever(pauses):
    source, load = _load_from([ConnectionResetError()] * 1000, range(20))
    example = load.random_map(3, np.random.default_rng(0))
    assert _errors(example) == ["replaced_records", "missing_examples"]
    assert (source.reads, len(pauses)) == (8, 5)  # the record six times, two neighbours once
    assert _errors(load.random_map(4, np.random.default_rng(0))) == ["missing_examples"]
    assert source.reads == 8


# The log.


def test_replaced_records_are_named(tmp_path, monkeypatch):
    for i in range(30):
        (tmp_path / f"{i:02}.jpg").write_bytes(b"no picture")
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    source = ImageFolder(str(tmp_path))
    load = _loader(source)
    load.random_map(3, np.random.default_rng(0))  # all hundred neighbours, round and round
    assert [line.split()[1] for line in lines[:10]] == [str(tmp_path / f"{i:02}.jpg") for i in range(3, 13)]
    assert all("is replaced: UnidentifiedImageError: " in line for line in lines[:10])
    (last,) = lines[10:]
    assert last.startswith(f"data: 100 records are replaced so far; the last: {tmp_path}/12.jpg: ")


# The cache.


class _Photos(list):
    """Pictures of 1,000 by 250 points, a megabyte in memory."""

    def __init__(self, count):
        draw = np.random.default_rng(0)
        for _ in range(count):
            buffer = io.BytesIO()
            pixels = draw.integers(0, 255, (5, 20, 3), np.uint8)
            Image.fromarray(pixels).resize((1000, 250)).save(buffer, "JPEG")
            self.append(dict(image=buffer.getvalue()))


def test_the_cache_is_bounded_in_bytes():
    crops = dict(
        image=IMAGE | dict(crop=dict(kind="random_resized_crop", size=8, scale=(0.5, 1.0))),
        small=IMAGE | dict(crop=dict(kind="random_resized_crop", size=8, scale=(0.1, 0.5))),
    )
    load = _loader(_Photos(6), cache_mib=3.5, **crops)
    for _ in range(2):
        for index in range(6):
            load.random_map(index, np.random.default_rng(0))
    kept = load._cache._entries
    # The fields share an image.
    assert list(kept) == [("image", record["image"]) for record in load.source[:3]]
    assert sum(map(memory_bytes, kept.values())) == 3 * 1000 * 250 * 4


def test_a_picture_in_the_cache_is_not_decoded_again(monkeypatch):
    decode_rgb, decoded = decode.decode_rgb, []
    monkeypatch.setattr(decode, "decode_rgb", lambda *given: decoded.append(1) or decode_rgb(*given))
    load = _loader(_Photos(2), cache_mib=1)
    examples = [load.random_map(index, np.random.default_rng(0)) for index in (0, 1, 0, 1)]
    assert len(decoded) == 2
    _assert_equal(examples[:2], examples[2:])


@pytest.mark.parametrize(
    "text", ["", "  ", "\n", "\x00", "\x07\x1b", "[PAD] [SEP]", None, 7, 1.5, b"\x07", ["list"], "\ud800"]
)
def test_what_is_no_caption_is_replaced(text):
    load = _load({3: dict(label=[text])})
    assert load.random_map(3, np.random.default_rng(0))["data_errors"]["replaced_texts"]


def test_labels_are_the_classes_of_the_records():
    source = EmojiPairs(["fxemoji"], "seen")
    names = source.label_names("category")
    load = _loader(source, label=dict(kind="label", key="category"))
    (batch,) = _take(load, 1)
    assert batch["label"].dtype == np.int32
    assert set(batch) == {"image", "label", "data_errors"}
    found = load.random_map(7, np.random.default_rng(0))["label"]
    assert names[found] == source.rows[7]["category"]


class _Kinds(_Source):
    def label_names(self, key):
        assert key == "kind"
        return ["a", "b"]


@pytest.mark.parametrize("kind", [None, [], "c", -1, 2, [None]])
def test_a_record_without_a_class_is_replaced(kind):
    """A number that is none of the classes is what TFDS gives a picture whose label is kept secret."""
    source = _Kinds({i: dict(kind=np.int64(i % 2)) for i in range(20)} | {3: dict(kind=kind)})
    load = _loader(source, label=dict(kind="label", key="kind"))
    found = load.random_map(3, np.random.default_rng(0))
    assert found["label"] == 0  # of the fourth
    assert _errors(found) == ["replaced_labels"]
    assert load.random_map(5, np.random.default_rng(0))["label"] == 1


@pytest.mark.parametrize("label", [None, []])
def test_a_record_without_captions_is_replaced(label):
    load = _load({3: dict(label=label)})
    assert load.random_map(3, np.random.default_rng(0))["data_errors"]["replaced_texts"]


def test_the_cache_changes_nothing():
    source = EmojiPairs(["fxemoji"], "seen")
    cached = _loader(source, CAPTIONS, cache_mib=1)
    plain = _loader(source, CAPTIONS)
    _assert_equal(_take(cached, 4, records=30), _take(plain, 4, records=30))


# Captions.


def _draw(texts, captions=CAPTIONS, times=4000):
    rng = np.random.default_rng(0)
    return [draw_caption(texts, captions, rng) for _ in range(times)]


def test_kinds_come_as_often_as_configured():
    drawn = _draw(dict(label=["l"], name=["n"], short_names=["s1", "s2"], tags=["t"]))
    for kinds, expected in ((("l",), 0.5), (("n",), 0.2), (("s1", "s2"), 0.1), (("t",), 0.2)):
        # Four standard deviations of a mean of 4,000.
        assert np.mean([text in kinds for text in drawn]) == pytest.approx(expected, abs=0.032)
    assert 0.3 < np.mean([text == "s1" for text in drawn if text in ("s1", "s2")]) < 0.7


def test_what_a_record_lacks_is_shared_among_the_rest():
    drawn = _draw(dict(label=["l"], name=["n"], tags=[], extra=["e"]))
    assert set(drawn) == {"l", "n"}
    assert np.mean([text == "l" for text in drawn]) == pytest.approx(5 / 7, abs=0.03)


def test_a_kind_of_weight_0_is_never_drawn():
    assert set(_draw(dict(label=["l"], name=["n"]), dict(label=0.0, name=0.5))) == {"n"}
    with pytest.raises(BadValue, match="no caption"):
        _draw(dict(label=["l"]), dict(label=0.0, name=0.5))


def test_tags_are_a_random_subset_in_random_order():
    drawn = _draw(dict(tags=["a", "b", "c"]), dict(tags=1.0))
    subsets = [order for n in (1, 2, 3) for order in itertools.permutations("abc", n)]
    assert set(drawn) == {" ".join(order) for order in subsets}
    # As many tags as a fair die of three says.
    for count in (1, 2, 3):
        assert np.mean([len(text.split()) == count for text in drawn]) == pytest.approx(1 / 3, abs=0.03)


def test_a_tag_that_is_no_string_is_a_bad_text():
    with pytest.raises(BadValue, match="type int"):
        _draw(dict(tags=[3]), dict(tags=1.0))
    with pytest.raises(BadValue, match="no caption"):
        draw_caption({}, CAPTIONS, np.random.default_rng(0))


# Mixtures.


def _numbered(first, count):
    """A source whose records are a label from `first` on."""

    class Load(grain.transforms.RandomMap):
        def random_map(self, index, rng):
            return dict(index=first + index, draw=rng.integers(0, 2**31))

    return pipeline.Part(Load(), count)


def _mixed(steps, start=0, seed=0, rows=None, weights=(0.75, 0.25), batch_size=16):
    parts = [_numbered(0, 40)._replace(weight=weights[0]), _numbered(1000, 13)._replace(weight=weights[1])]
    iterator = pipeline.batches(parts, batch_size, seed, start, 2, rows)
    taken = list(itertools.islice(iterator, steps))
    iterator.close()
    return taken


def test_every_batch_of_a_mixture_has_its_share_of_each_source():
    second = np.stack([batch["index"] >= 1000 for batch in _mixed(50)])
    np.testing.assert_array_equal(second.sum(1), 4)
    # In rows drawn at random, and not in a pattern: each row has each source at times.
    assert (second.mean(0) > 0.05).all()
    assert (second.mean(0) < 0.6).all()
    uneven = np.stack([batch["index"] >= 1000 for batch in _mixed(60, weights=(2, 1))])
    assert set(uneven.sum(1)) == {5, 6}
    assert uneven.mean() == pytest.approx(1 / 3, abs=0.002)


def test_a_mixture_shows_each_source_whole_before_it_repeats():
    indices = np.concatenate([batch["index"] for batch in _mixed(40)])
    for first, count in ((0, 40), (1000, 13)):
        seen = indices[(indices >= first) & (indices < first + count)] - first
        epochs = seen[: len(seen) // count * count].reshape(-1, count)
        # Rows of a batch come in another order, so an epoch's end is only found to a batch.
        assert (np.abs(np.bincount(epochs[:-1].ravel(), minlength=count) - (len(epochs) - 1)) <= 1).all()
    draws = np.concatenate([batch["draw"] for batch in _mixed(40)])
    assert len(np.unique(draws)) == len(draws)


@pytest.mark.parametrize("start", [1, 7, 30])
def test_a_mixture_resumes_with_the_batches_it_would_have_had(start):
    _assert_equal(_mixed(3, start), _mixed(start + 3)[start:])
    assert not _equal(_mixed(3, start), _mixed(3, start, seed=1))


def test_processes_share_the_batches_of_a_mixture():
    whole = _mixed(4, start=5)
    for rows in np.arange(16).reshape(4, -1):
        for part, batch in zip(_mixed(4, start=5, rows=rows), whole, strict=True):
            _assert_equal(part, jax.tree.map(lambda x, rows=rows: x[rows], batch))

"""Items of records, and the written dataset as training reads it."""

import io
import pathlib

import numpy as np
from PIL import Image

from big_ssl.curation import counting, records
from big_ssl.curation.limits import Limits
from big_ssl.data import fields, pipeline, sources, tokenizers
from big_ssl.data.records import values
from big_ssl.data.sources import ParquetPairs

SAMPLE = str(pathlib.Path(__file__).parents[1] / "data" / "openclipart_sample.parquet")
LIMITS = Limits(languages=(), min_side=32, max_unigrams=8, most_frequent=400)


def image(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_size_comes_from_the_images_header():
    source = [dict(image=image(30, 20), alt=["a"]), dict(image=image(30, 20)[:20]), dict(image=b"")]
    items = records.Items(source, ("alt",))
    assert [(item.id, item.width, item.height) for item in items] == [(0, 30, 20), (1, 0, 0), (2, 0, 0)]
    assert items[0].digest == records.Items(source * 2, ("alt",))[3].digest != items[1].digest


def test_the_size_comes_from_the_records_keys():
    texts = {"w": [640], "h": [np.int64(480)], "none": [], "word": ["wide"]}
    source = [dict(image=image(3, 2), **texts)]
    sides = [records.Items(source, (), pair)[0][2:4] for pair in (("w", "h"), ("w", "none"), ("word", "h"))]
    assert sides == [(640, 480), (640, 0), (0, 480)]


def test_captions_are_in_order_of_kinds_without_empty_ones():
    source = [dict(image=b"", alt=["b", " ", 3, None], title=["a"], other=["c"]), dict(image=b"")]
    items = records.Items(source, ("title", "alt"), duplicates=np.array([False, True]))
    assert [item.texts for item in items] == [("a", "b"), ()]
    assert [item.duplicate for item in items] == [False, True]


def test_training_reads_the_kept_records(tmp_path):
    source = ParquetPairs(SAMPLE, text_keys=("title", "description", "width", "height"))
    items = records.Items(source, ("title", "description"), ("width", "height"))
    decisions = list(counting.decisions(items, LIMITS))
    count = records.write(str(tmp_path), records.examples(source, decisions))
    written = sources.TfdsPairs(records.NAME, records.SPLIT, str(tmp_path))
    expected = {(source[v.id]["image"], v.kept) for v in decisions if v.kept}
    actual = [(record["image"], tuple(values(record, "text"))) for record in sources.records(written)]
    assert len(actual) == count == sum(bool(decision.kept) for decision in decisions) > 20
    assert set(actual) == expected
    again = counting.decisions(records.Items(written, ("text",)), LIMITS)
    assert [decision.image for decision in again] == ["small"] * count  # 32 pixels are below min_side
    tokenizer = tokenizers.WordPiece(tokenizers.vocabulary_path("emoji"), 8)
    crop = dict(kind="random_crop", resize=8, size=8)
    made = dict(
        image=dict(kind="image", crop=crop, mean=(0.5,), std=(0.5,)),
        text=dict(kind="text", captions=dict(text=1.0)),
    )
    load = pipeline.LoadExample(written, fields.opened(fields.build(made, 8), written, tokenizer))
    batch = next(pipeline.batches([pipeline.Part(load, len(written))], 4, 0, 0, 1))
    assert batch["image"].shape == (4, 8, 8, 3)
    assert not batch["data_errors"]["replaced_images"].any()
    assert not batch["data_errors"]["replaced_texts"].any()

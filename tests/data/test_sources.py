"""Sources: the embedded drawings and their held-out fifth, and TFDS datasets without TensorFlow."""

import io
import pathlib
import sys

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import big_ssl
from big_ssl.data import decode, emoji_drawings, fields, pipeline, sources, tokenizers
from big_ssl.data.records import values
from configs.emoji import TRAINING_STYLES


@pytest.fixture(scope="module")
def seen():
    return sources.EmojiPairs(TRAINING_STYLES, "seen")


def _texts(record):
    """{key: its texts} of a record, all but the image."""
    return {key: values(record, key) for key in record if key != "image"}


def _loader(source, tokenizer, captions):
    crop = dict(kind="random_crop", resize=8, size=8)
    options = dict(
        image=dict(kind="image", crop=crop, mean=(0.5,), std=(0.5,)),
        text=dict(kind="text", captions=captions),
    )
    return pipeline.LoadExample(source, fields.opened(fields.build(options, 8), source, tokenizer))


def _stem(row):
    return row["unified"].split("-")[0]


def test_the_training_set_is_the_one_that_is_documented(seen):
    assert len(seen) == 6803
    assert len({row["unified"] for row in seen.rows}) == 1541


def test_a_fifth_of_the_concepts_is_held_out():
    concepts = [row["unified"] for row in sources.EmojiPairs(["twemoji"]).rows]
    assert len(concepts) == len(set(concepts)) == 1911
    assert sum(map(emoji_drawings.is_held_out, concepts)) == 370


@pytest.mark.smoke
def test_no_stem_is_on_both_sides(seen):
    unseen = sources.EmojiPairs(emoji_drawings.emoji_styles(), "unseen")
    assert not {_stem(row) for row in seen.rows} & {_stem(row) for row in unseen.rows}
    every = sources.EmojiPairs(TRAINING_STYLES, "all")
    assert len(every) == len(seen) + len(sources.EmojiPairs(TRAINING_STYLES, "unseen"))


def test_a_name_of_training_is_never_that_of_a_held_out_concept(seen):
    held_out = sources.EmojiPairs(["twemoji"], "unseen")
    assert not {row["label"] for row in seen.rows} & {row["label"] for row in held_out.rows}


def test_a_record_is_a_picture_and_its_texts(seen):
    record = seen[0]
    assert set(_texts(record)) == {"label", "name", "category", "subcategory", "short_names", "tags"}
    assert all(isinstance(text, str) for texts in _texts(record).values() for text in texts)
    assert Image.open(io.BytesIO(record["image"])).format == "WEBP"
    row = seen.rows[0]
    assert _texts(record)["label"] == [row["label"]]
    assert not any("_" in name for name in _texts(record)["short_names"])


def test_pictures_stay_with_their_rows():
    # Filtering goes over two files and two conditions: the pictures must follow the rows.
    both = sources.EmojiPairs(["twemoji", "openmoji"], "unseen")
    alone = {style: sources.EmojiPairs([style]) for style in ("twemoji", "openmoji")}
    where = {s: {row["unified"]: i for i, row in enumerate(alone[s].rows)} for s in alone}
    for index in range(0, len(both), 50):
        row = both.rows[index]
        assert both[index]["image"] == alone[row["style"]][where[row["style"]][row["unified"]]]["image"]


def test_an_unknown_style_or_half_is_named():
    with pytest.raises(ValueError, match=r"no style 'notto'; there are .*noto"):
        sources.EmojiPairs(["twemoji", "notto"])
    with pytest.raises(ValueError, match=r"'sen'.*seen"):
        sources.EmojiPairs(["twemoji"], "sen")


def test_a_smaller_share_of_the_drawings_is_a_part_of_a_larger(seen):
    half, quarter = (sources.EmojiPairs(TRAINING_STYLES, "seen", share) for share in (0.5, 0.25))
    assert [len(half), len(quarter)] == [3402, 1701]
    drawings = [[(row["style"], row["unified"]) for row in part.rows] for part in (seen, half, quarter)]
    assert set(drawings[2]) < set(drawings[1]) < set(drawings[0])
    assert {style for style, _ in drawings[2]} == set(TRAINING_STYLES)
    for index in (0, 500, 1700):
        whole = drawings[0].index(drawings[2][index])
        assert quarter[index] == seen[whole]
    concepts = sources.EmojiConcepts(TRAINING_STYLES, "seen", 0.25)
    assert len(concepts) == len({unified for _, unified in drawings[2]})
    assert sum(len(concepts[i]) for i in range(len(concepts))) == 1701


def test_noisy_texts_are_tags_or_in_another_language():
    plain = sources.EmojiPairs(["fxemoji"], "seen")
    source = sources.EmojiPairs(["fxemoji"], "seen", languages=("de", "ja"))
    texts = [_texts(source[i]) for i in range(len(source))]
    assert all(
        {**found, "noisy": None} == {**_texts(plain[i]), "noisy": None} for i, found in enumerate(texts)
    )
    kinds = [0, 0]
    for found in texts:
        (noisy,) = found["noisy"]
        kinds[noisy == " ".join(found["tags"])] += 1
    assert 0.25 < kinds[1] / len(texts) < 0.45  # a third, and where a word is the same everywhere


def test_each_drawing_of_a_concept_has_a_noisy_text_of_its_own():
    source = sources.EmojiPairs(emoji_drawings.emoji_styles(), languages=("de",))
    found = {_texts(source[i])["noisy"][0] for i, row in enumerate(source.rows) if row["label"] == "hedgehog"}
    assert found == {"animal spiny", "Igel", "igel stachelig stacheln tier"}


def test_an_unknown_language_or_share_is_named():
    with pytest.raises(ValueError, match=r"emoji: no language 'dee'; there are de, es, fr"):
        sources.EmojiPairs(["fxemoji"], languages=("de", "dee"))
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=rf"share is {share}; it must lie in \(0, 1\]"):
            sources.EmojiPairs(["fxemoji"], share=share)


def test_every_concept_has_a_name_and_tags_in_every_language():
    concepts = {row["unified"] for row in sources.EmojiPairs(["twemoji"]).rows}
    assert len(emoji_drawings.emoji_languages()) == 10
    for language in emoji_drawings.emoji_languages():
        rows = emoji_drawings._read_language(language)
        assert rows.keys() == concepts
        assert all(row["label"] and row["tags"] for row in rows.values())


def test_the_data_lies_in_the_package():
    folder = pathlib.Path(big_ssl.__file__).parent / "data" / "embedded"
    for name in (
        "emoji_styles.parquet",
        "openmoji_eval.parquet",
        "emoji_languages.parquet",
        "emoji_wordpiece.txt",
    ):
        assert (folder / name).stat().st_size > 0
    assert tokenizers.vocabulary_path("emoji") == str(folder / "emoji_wordpiece.txt")


def test_the_labels_of_the_drawings(seen):
    assert len(seen.label_names("category")) == 10
    assert len(seen.label_names("subcategory")) == 99
    assert len(seen.label_names("label")) == 1911  # held out or not
    texts = _texts(seen[0])
    assert all(texts[kind][0] in seen.label_names(kind) for kind in ("label", "category", "subcategory"))
    with pytest.raises(ValueError, match="emoji: 'tags' is no label; there are label, category, subcategory"):
        seen.label_names("tags")


# Folders.


def _folder(path, names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(name.encode())
    return sources.ImageFolder(str(path))


def test_a_folder_of_classes(tmp_path):
    names = ["dog/b.JPG", "cat/2.png", "cat/1.jpeg", "cat/notes.txt", "dog/more/a.webp", ".cache/c.png"]
    found = _folder(tmp_path, names)
    assert found.label_names("label") == ["cat", "dog"]
    records = [found[i] for i in range(len(found))]
    assert [r["image"].decode() for r in records] == [
        "cat/1.jpeg",
        "cat/2.png",
        "dog/b.JPG",
        "dog/more/a.webp",
    ]
    assert [_texts(r)["label"] for r in records] == [["cat"], ["cat"], ["dog"], ["dog"]]


def test_what_a_folder_has_is_told(tmp_path):
    names = ["dog/b.JPG", "cat/2.png", "cat/notes.txt", "cat/.hidden.png", "list.csv"]
    found = _folder(tmp_path, names)
    assert found.summary() == "2 images in 2 subfolders; left out: 2 of other kinds, 1 hidden"
    assert found.record_name(1) == str(tmp_path / "dog" / "b.JPG")


def test_pictures_beside_subfolders_are_read_and_in_no_class(tmp_path):
    found = _folder(tmp_path, ["b.png", "a.jpg", "thumbs/c.png"])
    assert [found[i]["image"].decode() for i in range(3)] == ["thumbs/c.png", "a.jpg", "b.png"]
    assert [_texts(found[i]) for i in range(3)] == [{"label": ["thumbs"]}, {}, {}]
    assert found.summary() == "3 images in 1 subfolders, 2 of them beside these"
    with pytest.raises(ValueError, match=r"2 images beside the subfolders are in no class, such as .*/a.jpg"):
        found.label_names("label")


def test_a_folder_with_the_name_of_a_picture_is_a_folder(tmp_path):
    (tmp_path / "album.jpg").mkdir()
    assert len(_folder(tmp_path, ["a.jpg"])) == 1
    found = _folder(tmp_path / "classes", ["album.jpg/b.png", "c/d.png/e.png"])
    assert found.label_names("label") == ["album.jpg", "c"]
    assert len(found) == 2


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    assert _folder(tmp_path / "a", ["10/x.png", "2/x.png"]).label_names("label") == ["2", "10"]
    assert _folder(tmp_path / "b", ["10/x.png", "2/x.png", "n/x.png"]).label_names("label") == [
        "10",
        "2",
        "n",
    ]


def test_what_is_no_folder_of_classes(tmp_path):
    with pytest.raises(FileNotFoundError):
        sources.ImageFolder(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"has no images$"):
        _folder(tmp_path / "flat", ["a.txt"])
    with pytest.raises(ValueError, match="has no images in its subfolders"):
        _folder(tmp_path, ["a/notes.txt"])


def test_pictures_without_subfolders_have_no_label(tmp_path):
    """One's own pictures, to pre-train on."""
    found = _folder(tmp_path, ["b.png", "a.jpg", ".cache/c.png"])
    assert [found[i]["image"].decode() for i in range(len(found))] == ["a.jpg", "b.png"]
    assert _texts(found[0]) == {}
    with pytest.raises(ValueError, match="path is not set"):
        sources.ImageFolder("")
    with pytest.raises(ValueError, match="'label' is no label; there is none, without subfolders"):
        found.label_names("label")


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "gif"])
def test_every_suffix_in_any_case(tmp_path, suffix):
    found = _folder(tmp_path, [f"a.{suffix}", f"b.{suffix.upper()}", f"c.{suffix}.txt", f".d.{suffix}"])
    assert [found[i]["image"].decode() for i in range(len(found))] == [f"a.{suffix}", f"b.{suffix.upper()}"]


def test_links_in_a_circle_are_left_out(tmp_path):
    """Of two folders that link to each other, and of the root as a class; another link is followed."""
    _folder(tmp_path, ["a/1.png", "b/2.png", "c/d/3.png"])
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "c" / "root").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "dead").symlink_to(tmp_path / "dead")
    found = sources.ImageFolder(str(tmp_path))
    names = [(found[i]["image"].decode(), found[i]["label"]) for i in range(len(found))]
    assert names == [
        ("a/1.png", "a"),
        ("b/2.png", "a"),
        ("b/2.png", "b"),
        ("a/1.png", "b"),
        ("c/d/3.png", "c"),
    ]
    assert found.label_names("label") == ["a", "b", "c"]
    assert "4 links in a circle" in found.summary()


# TFDS.


def _png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Ten pictures in array_record files, known to TFDS by these files alone."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class ImageTextPairs(tfds.core.GeneratorBasedBuilder):
            """Grey squares."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                text = tfds.features.Text()
                features = dict(
                    image=tfds.features.Image(),
                    text=text,
                    tags=tfds.features.Sequence(text),
                    number=np.int64,
                    label=tfds.features.ClassLabel(names=["even", "odd"]),
                    captions=tfds.features.Sequence(dict(text=text, id=np.int64)),
                )
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return dict(train=self._generate_examples())

            def _generate_examples(self):
                for i in range(10):
                    # The fourth has no caption, the fifth no picture that can be read.
                    image = _png(20 * i) if i != 4 else _png(0)[:30]
                    text = f"grey {i} ÿ" if i != 3 else ""
                    captions = [dict(text=f"{i} {k}", id=k) for k in range(i % 2 + 1)]
                    rest = dict(number=i, label=i % 2, captions=captions)
                    yield i, dict(image=io.BytesIO(image), text=text, tags=["a", "b"][: i % 3], **rest)

    folder = tmp_path_factory.mktemp("tfds")
    ImageTextPairs(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def _pairs(data_dir, **options):
    defaults = dict(name="image_text_pairs", split="train", image_key="image", text_keys=("text", "tags"))
    return sources.TfdsPairs(data_dir=data_dir, **defaults | options)


def test_tfds_records_are_encoded_pictures_and_texts(data_dir):
    source = _pairs(data_dir)
    assert len(source) == 10
    records = sorted((source[i] for i in range(10)), key=lambda record: _texts(record)["text"])
    assert "tensorflow" not in sys.modules
    for record in records[1:]:
        number = int(_texts(record)["text"][0].split()[1])
        assert _texts(record)["text"] == [f"grey {number} ÿ"]
        assert _texts(record)["tags"] == ["a", "b"][: number % 3]
        if number != 4:
            assert record["image"] == _png(20 * number)


def test_labels_and_nested_texts(data_dir):
    source = sources.TfdsPairs("image_text_pairs", "train", data_dir)  # without keys: all there are
    for record in (source[i] for i in range(10)):
        assert set(_texts(record)) == {"text", "tags", "number", "label", "captions/text", "captions/id"}
        (number,) = _texts(record)["number"]
        assert _texts(record)["label"] == [number % 2]
        assert _texts(record)["captions/text"] == [f"{number} {k}" for k in range(number % 2 + 1)]
    assert source.label_names("label") == ["even", "odd"]
    with pytest.raises(
        ValueError, match="tfds: 'text' of 'image_text_pairs' is no class label; there is label"
    ):
        source.label_names("text")


def test_a_split_can_be_sliced(data_dir):
    source = _pairs(data_dir, split="train[20%:60%]")
    assert len(source) == 4
    assert source.summary() == "4 records of 'image_text_pairs' in 1 files"
    assert source.record_name(3) == "record 5 of image_text_pairs-train.array_record-00000-of-00001"
    assert _pairs(data_dir).record_name(9).startswith("record 9 of ")


def test_tfds_feeds_the_pipeline(data_dir):
    tokenizer = tokenizers.WordPiece(tokenizers.vocabulary_path("emoji"), 8)
    load = _loader(_pairs(data_dir), tokenizer, dict(text=1.0))
    batch = next(pipeline.batches([pipeline.Part(load, 10)], 10, 0, 0, 1))
    assert batch["image"].shape == (10, 8, 8, 3)
    assert batch["data_errors"]["replaced_images"].sum() == 1
    assert batch["data_errors"]["replaced_texts"].sum() == 1


def test_a_feature_that_is_no_text_is_a_bad_text_and_not_a_crash(data_dir):
    tokenizer = tokenizers.WordPiece(tokenizers.vocabulary_path("emoji"), 8)
    source = _pairs(data_dir, text_keys=("number",))
    assert not isinstance(_texts(source[0])["number"][0], str)
    load = _loader(source, tokenizer, dict(number=1.0))
    with pytest.raises(pipeline.BadRecord, match="a caption of type int"):
        load.load(0, np.random.default_rng(0))


def test_every_source_of_files_takes_the_options_of_decoding(data_dir, tmp_path):
    (tmp_path / "a.png").write_bytes(_png(0))
    pyarrow.parquet.write_table(pyarrow.table(dict(image=[_png(0)])), tmp_path / "a.parquet")
    options = dict(orientation="stored", alpha="drop")
    tfds = dict(name="image_text_pairs", split="train", data_dir=data_dir)
    configs = (
        dict(kind="image_folder", path=str(tmp_path)),
        dict(kind="parquet", path=str(tmp_path)),
        dict(kind="tfds", **tfds),
    )
    for config in configs:
        found = sources.decode_options(sources.build(config | options), decode.TRAINING)
        assert found == decode.Options("stored", "drop")
        assert sources.decode_options(sources.build(config), decode.TRAINING) == decode.TRAINING
        assert sources.decode_options(sources.build(config), decode.EVALUATION) == decode.EVALUATION
        with pytest.raises(ValueError, match="orientation is 'up'; use exif or stored"):
            sources.build(config | dict(orientation="up"))


def test_a_missing_dataset_is_named(data_dir):
    with pytest.raises(FileNotFoundError, match=r"no TFDS dataset 'image_pairs' in "):
        _pairs(data_dir, name="image_pairs")

"""big_ssl.load and what it gives: preprocessing, batches, texts, and errors of one line."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import big_ssl
from big_ssl import convert, inference
from big_ssl.data import preprocessing, sentence_piece
from big_ssl.weights.format import siglip_config
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from tests.parity import goldens

MERGES = pathlib.Path(__file__).parent / "data" / "tiny_merges.txt"
# Enough to learn 50 pieces from.
CAPTIONS = [
    "a photo of a cat",
    "two dogs running on green grass",
    "photos of big red hearts and flowers",
    "the quick brown fox jumps over the lazy dog",
    "grinning cat with smiling eyes",
    "a person running and another person walking",
]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted model, whose vocabulary of 50 is that of its weights."""
    where = tmp_path_factory.mktemp("loaded")
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", where / "in"))
    write_checkpoint("big_ssl", where / "out", config, ours)
    return where / "out"


@pytest.fixture(scope="module")
def model(folder):
    return big_ssl.load(folder)


def images(count=3, size=(24, 24)):
    return RNG.integers(0, 256, (count, *size, 3), np.uint8)


def test_features_are_numpy_float32_of_stated_shape(model):
    found = [
        model.encode_image(images()),
        model.patch_features(images()),
        model.encode_text(goldens.golden("hf_clip")[1]["ids"]),
    ]
    assert [x.shape for x in found] == [(3, 12), (3, 9, 24), (3, 12)]
    assert all(type(x) is np.ndarray and x.dtype == np.float32 for x in found)


def test_normalize(model):
    pictures, ids = images(), goldens.golden("hf_clip")[1]["ids"]
    for encode, inputs in ((model.encode_image, pictures), (model.encode_text, ids)):
        raw, unit = encode(inputs, normalize=False), encode(inputs)
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        assert np.abs(norms - 1).max() > 0.1
        np.testing.assert_allclose(unit, raw / norms, rtol=1e-5, atol=1e-6)


def test_images_of_any_size_are_resized_and_other_ones_not(model):
    pictures = images(size=(40, 31))
    small = preprocessing.resize(pictures, 24, "crop")
    np.testing.assert_array_equal(model.encode_image(pictures), model.encode_image(small))
    whole = model.patch_features(pictures, resize=False)
    assert whole.shape == (3, 5 * 3, 24)
    assert np.isfinite(whole).all()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_are_put_together(folder, batch_size, monkeypatch):
    """Never more than batch_size images at once on a device."""
    model = big_ssl.load(folder, batch_size=batch_size)
    whole, sizes = model.system.bound_encoder, []

    def bound_encoder(variables, call, inputs):
        sizes.append(len(inputs))
        return whole(variables, call, inputs)

    monkeypatch.setattr(type(model.system), "bound_encoder", lambda _, *options: bound_encoder(*options))
    pictures = images(model._mesh.size * batch_size + 1)
    tokens = model.image_tokens(pictures)
    assert sizes == [model._mesh.size * batch_size]
    apart = [model.image_tokens(pictures[[i]])["patches"] for i in (0, -1)]
    np.testing.assert_allclose(tokens["patches"][[0, -1]], np.concatenate(apart), rtol=1e-5, atol=1e-6)
    pictures = pictures[:7]
    together = model.encode_image(pictures)
    apart = np.concatenate([model.encode_image(pictures[[i, i, i]])[:1] for i in range(7)])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)
    assert len(np.unique(together.round(4), axis=0)) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dtype="float16"), "^dtype is 'float16'; use float32 or bfloat16$"),
        (dict(batch_size=0), "^batch_size is 0; it must be at least 1$"),
    ],
)
def test_options_of_load_that_are_errors(options, message, folder):
    with pytest.raises(ValueError, match=message):
        big_ssl.load(folder, **options)


def test_features_in_bfloat16_are_float32_and_close(folder, model):
    pictures = images()
    coarse, exact = big_ssl.load(folder, "bfloat16").encode_image(pictures), model.encode_image(pictures)
    assert coarse.dtype == np.float32
    assert 0 < np.abs(coarse - exact).max() < 0.05


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            np.zeros((1, 24, 24, 4), np.uint8),
            r"images are uint8\[1, 24, 24, 4\]; they must be uint8\[B, H, W, 3\]",
        ),
        (np.zeros((1, 24, 24, 3), np.float32), r"images are float32\[1, 24, 24, 3\]"),
        (np.zeros((24, 3), np.uint8), r"images are uint8\[24, 3\]"),
        (np.zeros((0, 24, 24, 3), np.uint8), r"images are uint8\[0, 24, 24, 3\]"),
        (np.zeros((1, 24, 24), np.uint8), r"images are uint8\[1, 24, 24\]"),
        (np.zeros((1, 24, 24, 3), np.uint16), r"images are uint16\[1, 24, 24, 3\]"),
        ([np.zeros((24, 24, 3), np.uint8), None], r"images are object\[1\]; they must be uint8"),
        ([], r"images are float64\[0\]"),
        (None, r"images are object\[\]"),
    ],
)
def test_images_of_another_shape_or_type_are_errors(bad, message, model):
    for encode in (model.encode_image, model.patch_features):
        with pytest.raises(ValueError, match=message):
            encode(bad)


def test_images_of_several_sizes_are_preprocessed_one_by_one(model, tmp_path):
    """As arrays, as images of Pillow, and by their paths; one alone is a batch of one."""
    arrays = [np.asarray(images(1, size)[0]) for size in ((40, 31), (24, 24), (25, 60))]
    expected = np.concatenate([model.encode_image(array[None]) for array in arrays])
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    pillow = [Image.open(path) for path in paths]
    for given in (
        arrays,
        tuple(arrays),
        paths,
        [str(path) for path in paths],
        pillow,
        [arrays[0], *paths[1:]],
    ):
        np.testing.assert_allclose(model.encode_image(given), expected, rtol=1e-5, atol=1e-6)
    for one in (arrays[2], paths[2], str(paths[2]), pillow[2]):
        np.testing.assert_allclose(model.encode_image(one), expected[2:], rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"images are not all of one shape; they must be uint8\[B, H, W, 3\]"
    ):
        model.encode_image(arrays, resize=False)


def test_an_image_that_cannot_be_read_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        model.encode_image(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"^the image .*text\.png can't be decoded: Unidentified"):
        model.encode_image([tmp_path / "text.png"])
    with pytest.raises(ValueError, match="it has floats, whose range is unknown"):
        model.encode_image(Image.fromarray(np.zeros((4, 4), np.float32)))


def test_an_image_of_one_pixel(model):
    pixel = np.full((1, 1, 1, 3), 7, np.uint8)
    same = np.full((1, 24, 24, 3), 7, np.uint8)
    np.testing.assert_array_equal(model.encode_image(pixel), model.encode_image(same))
    with pytest.raises(ValueError, match=r"vit: images are \[8, 1, 1, 3\]; .* at least 8"):
        model.encode_image(pixel, resize=False)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("a cat", "they must be a list of str or int32"),
        (["a cat", None], "they must be a list of str"),
        (["a cat", 3], "they must be a list of str"),
        ([], r"texts are float64\[0\]"),
        ([b"a cat"], r"texts are bytes40\[1\]"),
        (None, r"texts are object\[\]"),
        (
            [[1, 2, 49], [1, 49]],
            r"texts are not all of one shape; they must be a list of str or int32\[B, L\]",
        ),
        (np.zeros((2, 3)), r"texts are float64\[2, 3\]"),
        (np.zeros(3, int), r"texts are int64\[3\]"),
        (np.array([[1, 50, 49]]), "token id 50 is not in the vocabulary of 50"),
        (np.array([[1, -1, 49]]), "token id -1 is not in the vocabulary of 50"),
        (np.array([[1, 49], [2, 3]]), "text 1 has no end of text, token id 49"),
        (np.full((1, 10), 49), "10 tokens, but max_len is 9"),
    ],
)
def test_texts_of_another_shape_or_type_are_errors(bad, message, model):
    with pytest.raises(ValueError, match=message) as caught:
        model.encode_text(bad)
    assert "\n" not in str(caught.value)


def test_a_mask_of_another_shape(model):
    with pytest.raises(ValueError, match=r"mask is \[1, 2\]; it must be \[1, 3\], as the token ids are"):
        model.encode_text(np.array([[1, 2, 49]]), mask=np.ones((1, 2)))


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """A model with a vocabulary beside its weights."""
    return big_ssl.load(goldens.write_talking(tmp_path_factory.mktemp("talking")))


def test_texts_as_strings(talking):
    texts = ["a photo of a cat", "", "word " * 50]
    found = talking.encode_text(texts)
    np.testing.assert_array_equal(found, talking.encode_text(tuple(texts)))
    ids = inference.tokenizers.build(talking.config["tokenizer"])(texts)["ids"]
    np.testing.assert_array_equal(found, talking.encode_text(ids))


NAMES = ["cat", "a dog", "red"]


def test_zero_shot_is_the_softmax_of_scaled_cosines(talking):
    pictures, scale = images(5), np.exp(talking.variables["params"]["heads"]["contrastive"]["logit_scale"])
    found = talking.zero_shot(pictures, NAMES)
    logits = scale * talking.encode_image(pictures).astype(float) @ talking.encode_text(NAMES).T
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert (type(found), found.dtype, found.shape) == (np.ndarray, np.float32, (5, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.ptp(found) > 0.01


def test_zero_shot_with_several_templates(talking):
    pictures, forms = images(2), ("a {}", "the {}!")
    found = talking.zero_shot(pictures, NAMES, forms)
    mean = np.mean([talking.encode_text([form.replace("{}", n) for n in NAMES]) for form in forms], axis=0)
    classes = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    scale = np.exp(talking.variables["params"]["heads"]["contrastive"]["logit_scale"])
    logits = scale * talking.encode_image(pictures) @ classes.T
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert talking.zero_shot(pictures, NAMES, "openai").shape == (2, 3)


def test_zero_shot_of_a_model_with_a_logit_bias_is_a_sigmoid(tmp_path, monkeypatch):
    path = goldens.write_checkpoint("hf_siglip", tmp_path / "in")
    model = inference.Model(*inference.read(path, "hf_siglip"))
    texts = np.random.default_rng(1).normal(size=(len(NAMES), 24)).astype(np.float32)
    monkeypatch.setattr(model, "encode_text", lambda names: texts[: len(names)])
    pictures = images(2)
    found = model.zero_shot(pictures, NAMES)
    head = model.variables["params"]["heads"]["contrastive"]
    unit = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    logits = np.exp(head["logit_scale"]) * (model.encode_image(pictures) @ unit.T) + head["logit_bias"]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(class_names=[]), "class_names must be a list of str, at least one"),
        (dict(class_names="cat"), "class_names must be a list of str"),
        (dict(class_names=["cat", 3]), "class_names must be a list of str"),
        (dict(templates=["a"]), "templates: 'a' has no {}"),
        (dict(templates=[]), "templates: there are none"),
        (dict(images=np.zeros((1, 24, 24, 4), np.uint8)), r"images are uint8\[1, 24, 24, 4\]; they must be"),
        (dict(images=np.zeros((1, 24, 24, 3), np.float32)), r"images are float32\[1, 24, 24, 3\]"),
    ],
)
def test_zero_shot_inputs_that_are_errors(talking, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        talking.zero_shot(**dict(images=images(1), class_names=NAMES) | changes)
    assert "\n" not in str(caught.value)


def test_zero_shot_of_an_image_of_one_pixel(talking):
    assert talking.zero_shot(np.full((1, 1, 1, 3), 7, np.uint8), NAMES).sum() == pytest.approx(1)


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing(talking):
    pictures, ids = images(11), talking.tokenizer([f"text {i}" for i in range(11)])["ids"]
    expected = talking.encode_image(pictures), talking.encode_text(ids)
    assert talking._mesh.size == 8
    for devices in (1, 2):
        model = inference.Model(talking.config, talking.variables, devices=jax.devices()[:devices])
        found = model.encode_image(pictures), model.encode_text(ids)
        for few, many in zip(found, expected, strict=True):
            np.testing.assert_allclose(few, many, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(
            model.zero_shot(pictures, NAMES).argmax(1), talking.zero_shot(pictures, NAMES).argmax(1)
        )


def test_the_predictor_of_evaluators(talking):
    """The same embeddings, in batches of one size whatever their number."""
    predictor, pictures = talking.for_evaluation(), images(11, (30, 40))
    prepared = predictor.preprocess(pictures)
    np.testing.assert_array_equal(prepared, preprocessing.resize(pictures, 24, "crop"))
    close = dict(rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        predictor.encode_image(prepared, resize=False), talking.encode_image(pictures), **close
    )
    np.testing.assert_allclose(predictor.encode_text(NAMES), talking.encode_text(NAMES), **close)
    kernel = talking.variables["params"]["heads"]["contrastive"]["image_projection"]["kernel"]
    projected = predictor.pooled_features(prepared, resize=False) @ np.asarray(kernel)
    np.testing.assert_allclose(
        projected, talking.encode_image(pictures, normalize=False), rtol=1e-4, atol=1e-5
    )
    tokens, pooled = predictor.image_tokens(prepared), predictor.pooled_features(prepared)
    np.testing.assert_allclose(tokens["cls"], pooled, **close)


def test_a_size_that_is_not_the_vocabularys_is_named(folder, tmp_path):
    config, ours = read_checkpoint("big_ssl", folder)
    write_checkpoint("big_ssl", tmp_path, config, ours)
    (tmp_path / "merges.txt").write_bytes(MERGES.read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer\.size is 50; the vocabulary .* has \d+ words"):
        big_ssl.load(tmp_path).encode_text(["a cat"])


def test_siglip_texts_must_be_padded(tmp_path):
    config, ours = read_checkpoint("hf_siglip", goldens.write_checkpoint("hf_siglip", tmp_path / "in"))
    write_checkpoint("big_ssl", tmp_path / "out", config, ours)
    model = big_ssl.load(tmp_path / "out")
    with pytest.raises(ValueError, match="texts are 4 tokens long; this encoder reads the last of 9"):
        model.encode_text(np.zeros((2, 4), int))
    with pytest.raises(ValueError, match=r"without the sentencepiece vocabulary: put spiece\.model or tok"):
        model.encode_text(["a cat"])


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
def test_siglip_texts_as_strings(name, tmp_path):
    """The file of pieces beside the weights comes along; this one is of their 50 entries."""
    path = goldens.write_checkpoint("hf_siglip", tmp_path / "in")
    (path / name).write_bytes(sentence_piece.train(CAPTIONS * 20, 50, style=sentence_piece.SIGLIP))
    convert.convert("hf_siglip", path, "big_ssl", tmp_path / "out", {})
    model, texts = big_ssl.load(tmp_path / "out"), ["A photo, of a cat!", "", "hearts " * 50]
    ids = model.tokenizer(texts)["ids"]
    assert (ids.shape, model.tokenizer.vocab_size) == ((3, 9), 50)
    assert (ids[:, -1] == 1).all()
    found = model.encode_text(texts)
    np.testing.assert_array_equal(found, model.encode_text(ids))
    np.testing.assert_array_equal(found[:1], model.encode_text(["a photo of a cat"]))
    assert np.abs(found[0] - found[2]).max() > 0.01


@pytest.mark.parametrize(("size", "kind"), [(256_000, "sentencepiece_gemma"), (32_000, "sentencepiece")])
def test_siglips_vocabulary_tells_its_tokenizer(size, kind):
    config = siglip_config(dict(kind="vit", width=8), dict(vocab_size=size, max_len=64), 224)
    assert config["tokenizer"] == dict(kind=kind, vocabulary="", size=size, length=64)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has neither checkpoints of a run nor weights"):
        big_ssl.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(dict(name="x")))
    with pytest.raises(ValueError, match=r"config\.json .* seed is missing"):
        big_ssl.load(tmp_path)

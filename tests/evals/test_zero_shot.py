"""Zero-shot classification: prompts, the ranking of classes, and whole sets."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from big_ssl.data import prompt_templates
from big_ssl.data.preprocessing import Pixels
from big_ssl.evals import prompts, suite
from big_ssl.evals.predictor import Predictor
from big_ssl.evals.zero_shot import ZeroShot, class_ranks, scores
from big_ssl.parallel import mesh as mesh_lib
from tests.evals.conftest import colour_system

RNG = np.random.default_rng(0)


def _evaluate(predictor, path, **options):
    data = dict(kind="image_folder", path=path)
    found = ZeroShot(data, **options, name="x").metrics(predictor)
    assert all(key.startswith("zero_shot/x/") for key in found)
    return {key.removeprefix("zero_shot/x/"): value for key, value in found.items()}


def test_metrics_agree_with_scikit_learn():
    # Few pictures of some classes and many of others, so that the two means differ.
    labels = np.sort(RNG.integers(0, 30, 400) * RNG.integers(0, 2, 400))
    similarities = RNG.normal(size=(400, 30)).astype(np.float32)
    similarities[np.arange(400), labels] += 1.5
    found = scores(class_ranks(similarities, labels, [str(i) for i in range(30)]), labels, 30)
    every = dict(labels=np.arange(30))
    assert found["top1"] == pytest.approx(top_k_accuracy_score(labels, similarities, k=1, **every))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, similarities, k=5, **every))
    mean = balanced_accuracy_score(labels, similarities.argmax(1))
    assert found["mean_per_class"] == pytest.approx(mean)
    assert abs(mean - found["top1"]) > 0.01
    assert found["chance"] == pytest.approx(1 / 30)


def test_ties_count_against_the_image():
    similarities = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1]], np.float32)
    np.testing.assert_array_equal(class_ranks(similarities, np.array([0, 1]), "abc"), [1, 1])


def test_of_classes_of_one_name_the_first_wins_as_by_argmax():
    names = ["cat", "missile", "dog", "missile", "missile"]
    similarities = np.array([[0.1, 0.9, 0.2, 0.9, 0.9]] * 5, np.float32)
    # Behind "missile" the copies take their places, as they would in a sorted list.
    np.testing.assert_array_equal(class_ranks(similarities, np.arange(5), names), [4, 0, 3, 1, 2])
    assert similarities[0].argmax() == 1


def test_a_prompt_ensemble_is_the_normalised_mean_of_normalised_embeddings():
    vectors = {text: RNG.normal(size=6) for text in ("a x", "b x", "a y", "b y")}
    lengths = RNG.uniform(0.1, 9, 4)  # not to matter
    encode = lambda texts: np.array([vectors[t] * lengths[i % 4] for i, t in enumerate(texts)])  # noqa: E731
    found = prompts.class_embeddings(encode, ["x", "y"], ("a {}", "b {}"))
    for row, name in zip(found, "xy", strict=True):
        unit = [vectors[f"{form} {name}"] / np.linalg.norm(vectors[f"{form} {name}"]) for form in "ab"]
        mean = (unit[0] + unit[1]) / 2
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-5)


def test_more_classes_than_are_embedded_together():
    names = [f"name {i}" for i in range(3 * prompts._CLASSES + 5)]
    table = {f"{form} {name}": RNG.normal(size=4) for form in "ab" for name in names}
    calls = []

    def encode(texts):
        calls.append(len(texts))
        return np.array([table[text] for text in texts])

    found = prompts.class_embeddings(encode, names, ("a {}", "b {}"))
    alone = prompts.class_embeddings(encode, names[-1:], ("a {}", "b {}"))
    np.testing.assert_allclose(found[-1:], alone, rtol=1e-6)
    assert (len(found), max(calls)) == (len(names), 2 * prompts._CLASSES)


def test_canonical_texts():
    assert prompts.canonical("A photo of the {Cat's_paw},  big.") == "a photo of the cats paw big"
    seen = []
    encode = lambda texts: seen.extend(texts) or np.ones((len(texts), 2))  # noqa: E731
    prompts.class_embeddings(encode, ["St. Bernard"], ("A Photo of a {}.",), canonicalize=True)
    assert seen == ["a photo of a st bernard"]


def test_the_templates_are_openais(tmp_path):
    found = prompt_templates.templates("openai")
    assert (len(found), len(set(found))) == (80, 80)
    assert {"itap of a {}.", "a photo of a {}.", "a tattoo of the {}."} < set(found)
    (tmp_path / "own.txt").write_text("a {}\n\nthe {}!\n")
    assert prompt_templates.templates(str(tmp_path / "own.txt")) == ("a {}", "the {}!")
    assert prompt_templates.templates("one {}") == ("one {}",)


def test_unicls_templates_are_openais_and_the_bare_name():
    found = prompt_templates.templates("unicl")
    assert (len(found), len(set(found))) == (81, 81)
    assert found == ("{}.", *prompt_templates.templates("openai"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [(["a {}", "b"], "templates: 'b' has no {}"), ((), "there are none"), ([3], "templates: 3 has no")],
)
def test_bad_templates_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        prompt_templates.templates(spec)


def test_a_folder_of_images(predictor, folder):
    path = folder({"red": ["red", "red", "green"], "green": ["green"], "blue": ["blue"], "grey": ["red"]})
    found = _evaluate(predictor, path, templates="a {} thing")
    assert found == pytest.approx(dict(top1=4 / 6, top5=1, mean_per_class=(2 / 3 + 2) / 4, chance=1 / 4))


def test_other_class_names(predictor, folder, tmp_path):
    path = folder({"n1": ["red"], "n2": ["green", "red"]})
    (tmp_path / "names.txt").write_text("red\ngreen\n")
    for classes in (["red", "green"], str(tmp_path / "names.txt")):
        assert _evaluate(predictor, path, classes=classes)["top1"] == pytest.approx(2 / 3)
    assert _evaluate(predictor, path, classes=["green", "red"])["top1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes=["red"]), "classes: there are 1 names for the 2 labels of the data"),
        (dict(classes=["red", 3]), "classes: 3 is no text"),
        (dict(classes="imagenet"), r"none of the 2 labels .* such as 'green', is one of imagenet's"),
        (dict(classes="nowhere.txt"), "'nowhere.txt' is neither a file nor one of imagenet, imagenet_a"),
        (dict(label="category"), "image_folder: 'category' is no label; there is label"),
        (dict(templates="nowhere.txt"), r"nowhere\.txt"),
    ],
)
def test_options_that_do_not_fit_are_errors_before_any_embedding(options, message, folder):
    path = folder({"red": ["red"], "green": ["green"]})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ZeroShot(dict(kind="image_folder", path=path), **options, name="x")


def test_a_source_without_labels():
    with pytest.raises(ValueError, match="data: the source EmojiConcepts has no labels"):
        ZeroShot(dict(kind="emoji_concepts", styles=["fxemoji"]), name="x")


def test_emoji_by_category(predictor):
    data = dict(kind="emoji", styles=["fxemoji"], concepts="unseen")
    found = ZeroShot(data, label="category", name="x").metrics(predictor)
    assert found["zero_shot/x/chance"] == pytest.approx(1 / 10)
    assert 0 < found["zero_shot/x/top1"] < found["zero_shot/x/top5"] < 1


class Recorded(Predictor):
    """Records what it is called with, and computes nothing."""

    images: ClassVar[list] = []
    texts: ClassVar[list] = []

    def encode_image(self, images):
        self.images.append(np.asarray(images))
        return RNG.normal(size=(len(images), 4))

    def encode_text(self, texts):
        self.texts.extend(texts)
        return RNG.normal(size=(len(texts), 4))


@pytest.mark.parametrize(("size", "resize"), [(224, "crop 256 bicubic"), (384, "stretch 500 bilinear")])
def test_unicls_protocol(size, resize, tmp_path):
    """data/build.py of its code: Resize(int(256 / 224 * size)), bicubic, of the shorter side, then
    CenterCrop(size); data/imagenet/constants.py: 81 templates for each name."""
    system, variables = colour_system()
    system = dataclasses.replace(system, eval_pixels=Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    mesh = mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    predictor = Recorded(system, variables, mesh, dict(image_size=size, resize=resize), lambda: None, 2)
    image = Image.fromarray(RNG.integers(0, 256, (300, 401, 3), np.uint8))
    for wnid in ("n01440764", "n04356056"):
        (tmp_path / wnid).mkdir()
        image.save(tmp_path / wnid / "0.png")
    data = dict(kind="image_folder", path=str(tmp_path))
    (evaluator,) = suite.build(dict(val=dict(kind="unicl_zero_shot", data=data))).values()
    Recorded.images.clear()
    Recorded.texts.clear()
    suite.check("val", evaluator, predictor)
    assert evaluator.metrics(predictor).keys() == {
        f"unicl_zero_shot/val/{metric}" for metric in ("top1", "top5", "mean_per_class", "chance")
    }
    side = int(256 / 224 * size)
    assert side == {224: 256, 384: 438}[size]
    left, top = round((side * 401 // 300 - size) / 2), round((side - size) / 2)
    resized = image.resize((side * 401 // 300, side), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    np.testing.assert_array_equal(np.concatenate(Recorded.images), [expected, expected])
    templates = [template.replace("{}", "tench") for template in prompt_templates.templates("unicl")]
    assert Recorded.texts[:81] == templates
    assert (len(templates), templates[0]) == (81, "tench.")
    assert len(Recorded.texts) == 81 * 1000
    assert "a photo of the dark glasses." in Recorded.texts[837 * 81 : 838 * 81]
    assert predictor.image_config["resize"] == resize  # the model's own stays


def test_unicls_protocol_refuses_a_model_of_other_normalisation(predictor, folder):
    path = folder({"red": ["red"], "green": ["green"]})
    options = dict(kind="unicl_zero_shot", classes="", data=dict(kind="image_folder", path=path))
    (evaluator,) = suite.build(dict(x=options)).values()
    with pytest.raises(
        ValueError, match=r"^x: mean is \(0\.50.*\) in the model's evaluation; UniCL's .* \(0\.485, "
    ):
        suite.check("x", evaluator, predictor)
    assert suite.metric_prefixes(dict(x=options)) == ["unicl_zero_shot/x/"]

"""Classes of pixels of images of any size, and the evaluator against scikit-learn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from big_ssl.data import sources
from big_ssl.data.preprocessing import Pixels
from big_ssl.evals import segmentation as evaluator_module
from big_ssl.evals import suite
from big_ssl.evals.pixel_maps import resize_map
from big_ssl.evals.plots import figure_png, png
from big_ssl.evals.predictor import Predictor
from big_ssl.evals.segment_method import resized_sides, window_places
from big_ssl.evals.segmentation_metrics import confusion, segmentation_metrics
from big_ssl.models.encoder import Encoder
from big_ssl.objectives.segmentation import LinearSegmentation, Segmentation
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training.system import System, Term
from tests import compiling

CLASSES, IGNORE, SHORT = ("red", "green", "blue", "grey"), 255, 16


class Colours(Encoder):
    """The colour of each 2 x 2 pixels; it counts the shapes that it is traced for."""

    outputs = ("pooled", "pyramid")
    pyramid_strides = (2,)

    @nn.compact
    def __call__(self, images, train=False):
        SHAPES.append(images.shape[1:3])
        x = nn.avg_pool(images, (2, 2), (2, 2))
        return dict(pooled=x.mean((1, 2)), pyramid=(x,))


SHAPES: list = []


@pytest.fixture(scope="module")
def predictor():
    """The class is the strongest colour; grey never."""
    head = LinearSegmentation(len(CLASSES))
    system = System(
        encoders=dict(image=Colours()),
        fields={},
        terms=dict(parts=Term("s", Segmentation(head), lambda step: 1.0)),
        eval_pixels=Pixels(),
    )
    kernel = np.concatenate([np.eye(3), np.zeros((3, 1))], 1).astype(np.float32)
    bias = np.float32([0, 0, 0, -9])
    params = dict(
        norm=dict(scale=np.ones(3, np.float32), bias=np.zeros(3, np.float32)),
        classifier=dict(kernel=kernel, bias=bias),
    )
    variables = dict(
        params=dict(encoders=dict(image={}), heads=dict(parts=params)),
        encoders=dict(image={}),
        heads=dict(parts=dict(batch_stats=dict(norm=dict(mean=np.zeros(3), var=np.ones(3))))),
    )
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    config = dict(image_size=SHORT, resize="crop 20 bilinear")
    return Predictor(system, jax.tree.map(np.float32, variables), mesh, config, lambda: None, 4)


def blocks(height, width, seed=0):
    """(an image of 2 x 3 blocks of one colour each, the class of each pixel)."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, (2, 3))
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 3 // width
    truth = classes[rows[:, None], columns]
    return np.uint8(np.eye(3)[truth] * 255), truth


def test_images_of_any_size_are_read_in_windows_of_one_size(predictor):
    assert predictor.methods == ("encode_image", "patch_features", "segment")
    SHAPES.clear()
    images, truths = zip(
        *(blocks(*shape) for shape in ((40, 60), (64, 48), (16, 100), (33, 47))), strict=True
    )
    with compiling.quickly():
        maps = predictor.segment(list(images))
        whole = predictor.segment(list(images[:2]), window=0)
    assert set(SHAPES) == {(16, 16), (16, 24), (22, 16)}
    for found, truth in zip([*maps, *whole], [*truths, *truths[:2]], strict=True):
        assert (found.dtype, found.shape) == (np.int32, truth.shape)
        assert (found == truth).mean() > 0.85
    (alone,) = predictor.segment(images[3])
    np.testing.assert_array_equal(alone, maps[3])


def test_logits_of_windows_are_averaged(predictor):
    """An encoder that sees four pixels at once has the same logits in any window."""
    image = np.random.default_rng(0).integers(0, 256, (16, 40, 3)).astype(np.uint8)
    with compiling.quickly():
        (overlapping,) = predictor.segment(image, logits=True, stride=8)
    pixels = image.reshape(8, 2, 20, 2, 3).mean((1, 3)) / 255
    expected = np.concatenate([pixels, np.full((8, 20, 1), -9)], -1)
    assert (overlapping.shape, overlapping.dtype) == ((16, 40, 4), np.float32)
    # Between the windows' edges, where neighbours are unknown, pixels are interpolated as of the whole.
    np.testing.assert_allclose(overlapping[:, :7], resize_map(expected, (16, 40))[:, :7], atol=1e-3)


def test_scales_and_flips_average_probabilities(predictor):
    image, truth = blocks(32, 64, seed=3)
    with compiling.quickly():
        plain, mirrored = predictor.segment([image, image[:, ::-1]], logits=True)
        (larger,) = predictor.segment(image, logits=True, scales=(1.5,))
        (both,) = predictor.segment(image, logits=True, flip=True)
        (averaged,) = predictor.segment(image, logits=True, scales=(1.0, 1.5))
        (classes,) = predictor.segment(image, scales=(1.0, 1.5), flip=True)
    a, b, c = (np.asarray(jax.nn.softmax(x)) for x in (plain, mirrored[:, ::-1], larger))
    np.testing.assert_allclose(np.exp(both), (a + b) / 2, atol=1e-5)
    np.testing.assert_allclose(np.exp(averaged), (a + c) / 2, atol=1e-5)
    assert (classes == truth).mean() > 0.9


def test_windows_cover_the_image_as_in_mmsegmentation():
    assert window_places((512, 683), 512, 341) == [(0, 0), (0, 171)]
    assert [x for _, x in window_places((640, 1400), 640, 320)] == [0, 320, 640, 760]
    assert window_places((8, 8), 8, 3) == [(0, 0)]


@pytest.mark.parametrize(
    ("sides", "window", "expected"),
    [
        ((512, 683), 512, (512, 683)),
        ((3000, 2000), 512, (768, 512)),
        ((100, 1000), 512, (512, 2048)),
        ((375, 500), 0, (518, 700)),
    ],
)
def test_the_shorter_side_is_that_of_evaluation(sides, window, expected):
    assert resized_sides(sides, 512, 14, window) == expected


def test_logits_are_resized_as_by_jax_and_pytorch():
    x = np.random.default_rng(0).normal(size=(5, 7, 2)).astype(np.float32)
    for sides in ((5, 7), (10, 21), (3, 9), (1, 1)):
        expected = jax.image.resize(jnp.asarray(x), (*sides, 2), "linear", antialias=False)
        np.testing.assert_allclose(resize_map(x, sides), expected, atol=1e-5)


def test_arguments_that_do_not_fit_are_named(predictor):
    with pytest.raises(ValueError, match=r"^segment: window is 32, stride 21 and scales \(1.0,\); a window"):
        predictor.segment(blocks(20, 20)[0], window=32)
    other = predictor.for_evaluation()
    other.methods = ("encode_image",)
    with pytest.raises(ValueError, match=r"^this model has no segmentation head: none was trained; it has"):
        other.segment(blocks(20, 20)[0])


def random_maps(rng, absent=()):
    """Pairs of truth and prediction; one image has no pixel with a class."""
    present = [number for number in range(6) if number not in absent]
    for i in range(4):
        truth, predicted = rng.choice(present, (2, 9, 11 + i))
        predicted = np.where(rng.random(truth.shape) < 0.5, truth, predicted)
        truth[rng.random(truth.shape) < (1.0 if i == 2 else 0.2)] = IGNORE
        yield truth, predicted


def test_metrics_are_scikit_learns_on_the_pixels_of_the_whole_set():
    pairs = list(random_maps(np.random.default_rng(0), absent=(4,)))
    matrix = sum(confusion(truth, predicted, 6, IGNORE) for truth, predicted in pairs)
    truth, predicted = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    valid = truth != IGNORE
    np.testing.assert_array_equal(
        matrix, confusion_matrix(truth[valid], predicted[valid], labels=np.arange(6))
    )
    metrics, per_class = segmentation_metrics(matrix)
    labels = [0, 1, 2, 3, 5]
    expected = jaccard_score(truth[valid], predicted[valid], labels=labels, average=None)
    np.testing.assert_allclose(per_class[labels], expected)
    assert np.isnan(per_class[4])  # it is in no truth and in no prediction
    assert metrics["miou"] == pytest.approx(expected.mean())
    assert metrics["pixel_accuracy"] == pytest.approx(accuracy_score(truth[valid], predicted[valid]))
    # The mean of the images' own values is another number.
    own = [
        segmentation_metrics(confusion(*pair, 6, IGNORE))[0]["miou"]
        for pair in pairs
        if (pair[0] != IGNORE).any()
    ]
    assert abs(np.mean(own) - metrics["miou"]) > 1e-3


def test_a_class_that_is_only_predicted_has_an_iou_of_zero():
    metrics, per_class = segmentation_metrics(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(per_class, [0.75, 0.0, np.nan])
    assert metrics == dict(miou=0.375, pixel_accuracy=0.75, class_accuracy=0.75)


class Maps:
    """Images with the classes of their pixels, from 1 on, 0 for none; the last image has none."""

    def __init__(self):
        self.images, self.truths = zip(*(blocks(20, 30 + 6 * i, seed=i) for i in range(4)), strict=True)
        self.truths = [np.uint8(truth + 1) for truth in self.truths]
        self.truths[0][:9] = 0
        self.truths[1][:, :5] = IGNORE
        self.truths[3][:] = 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return dict(image=png(self.images[index]), mask=self.truths[index])


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(evaluator_module, "_BATCH", 3)
    source = Maps()
    monkeypatch.setitem(sources.SOURCES, "maps", lambda: source)

    def make(**options):
        config = dict(kind="segmentation", data=dict(kind="maps"), classes=CLASSES, reduce_zero_label=True)
        return suite.build(dict(parts=config | options))["parts"], source

    return make


def test_the_evaluator_counts_the_pixels_of_all_images(made, predictor):
    evaluator, source = made()
    suite.check("evals.parts", evaluator, predictor)
    with compiling.quickly():
        metrics = evaluator.metrics(predictor)
        predicted = predictor.segment(list(source.images))
        (section,) = evaluator.sections(predictor)
    pairs = zip(source.truths, predicted, strict=True)
    counted = [(t.astype(int)[(t != 0) & (t != IGNORE)] - 1, p[(t != 0) & (t != IGNORE)]) for t, p in pairs]
    truth, predicted = (np.concatenate([pair[i] for pair in counted]) for i in (0, 1))
    expected = jaccard_score(truth, predicted, labels=[0, 1, 2], average=None)
    assert metrics["segmentation/parts/miou"] == pytest.approx(expected.mean())
    assert [metrics[f"segmentation/parts/iou_{name}"] for name in CLASSES[:3]] == pytest.approx(expected)
    assert "segmentation/parts/iou_grey" not in metrics  # neither true nor predicted anywhere
    assert 0.5 < metrics["segmentation/parts/miou"] < 1
    assert len(figure_png(section.figure)) > 1_000


def test_data_that_does_not_fit_is_named(made, predictor):
    evaluator, source = made(classes=("red", "green"))
    with pytest.raises(ValueError, match=r"segmentation: the data has 2 classes, the head 4$"):
        evaluator.check(predictor)
    with pytest.raises(ValueError, match=r"^data: record \d: 'mask' has a pixel of class 3$"):
        evaluator.metrics(predictor)
    evaluator, source = made()
    source.truths[2] = source.truths[2][:-1]
    with pytest.raises(
        ValueError, match=r"^data: record 2: 'mask' has the shape \(19, 42\), its image \(20, 42\)"
    ):
        evaluator.metrics(predictor)
    source.truths = [np.zeros_like(x) for x in source.truths[:2]] * 2
    source.images = source.images[:2] * 2
    with pytest.raises(ValueError, match=r"^segmentation: no pixel of 'mask' has a class$"):
        evaluator.metrics(predictor)

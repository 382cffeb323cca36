"""Depths of images of any size, and the evaluator against a reference written from the definitions."""

import io

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from big_ssl.data import sources
from big_ssl.data.preprocessing import Pixels
from big_ssl.evals import depth_method, drawings, suite
from big_ssl.evals.depth_method import whole_image
from big_ssl.evals.depth_metrics import METRICS
from big_ssl.evals.pixel_maps import resize_map
from big_ssl.evals.predictor import Predictor
from big_ssl.models.encoder import Encoder
from big_ssl.objectives.depth import Depth, LinearDepth
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training.system import System, Term
from tests import compiling

RNG = np.random.default_rng(0)
STRIDE, FARTHEST = 2, 10.0


class Brightness(Encoder):
    """The mean of each 2 x 2 pixels, brighter by the square of its column."""

    outputs = ("pooled", "pyramid")
    pyramid_strides = (STRIDE,)

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.avg_pool(images, (2, 2), (2, 2)).mean(-1, keepdims=True)
        columns = (jnp.arange(x.shape[2])[:, None] + 0.5) / x.shape[2]
        return dict(pooled=x.mean((1, 2)), pyramid=(x + columns**2,))


@pytest.fixture(scope="module")
def predictor():
    """Predicts 5 x (brightness + square of the column in 0..1)."""
    head = LinearDepth(readout="", bins=0, upsample=1, max_depth=FARTHEST)
    system = System(
        encoders=dict(image=Brightness()),
        fields={},
        terms=dict(far=Term("s", Depth(head), lambda step: 1.0)),
        eval_pixels=Pixels(),
    )
    linear = dict(kernel=np.float32([[5.0]]), bias=np.zeros(1, np.float32))
    params = dict(encoders=dict(image={}), heads=dict(far=dict(linear=linear)))
    config = dict(image_size=16, resize="crop 20 bilinear")
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    return Predictor(system, dict(params=params, encoders=dict(image={})), mesh, config, lambda: None, 4)


def smooth(height, width):
    """An image whose brightness rises with rows and columns: uint8[H, W, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    grey = np.uint8(100 * (rows + 0.5) / height + 100 * (columns + 0.5) / width)
    return np.repeat(grey[..., None], 3, -1)


def by_hand(image):
    columns = (np.arange(image.shape[1]) + 0.5) / image.shape[1]
    return 5 * (image[..., 0] / 255 + columns**2)


def test_images_of_any_size(predictor):
    """The whole image is read, and each map has its image's size."""
    assert predictor.methods == ("encode_image", "patch_features", "depth")
    images = [smooth(20, 30), smooth(80, 40), smooth(20, 30)[:, ::-1], smooth(21, 33)]
    with compiling.quickly():
        maps = predictor.depth(images)
    for image, depth in zip(images, maps, strict=True):
        assert (depth.shape, depth.dtype) == (image.shape[:2], np.float32)
        inner = (slice(3, -3),) * 2
        np.testing.assert_allclose(depth[inner], by_hand(image)[inner], atol=0.1)
    # One image is a list of one map; each map is that of its image alone.
    (alone,) = predictor.depth(images[0])
    np.testing.assert_allclose(alone, maps[0], rtol=1e-6)


def test_flips_are_averaged(predictor):
    image = smooth(20, 30)
    with compiling.quickly():
        plain, mirrored = predictor.depth([image, image[:, ::-1]])
        (averaged,) = predictor.depth(image, flip=True)
    assert np.abs(plain - mirrored[:, ::-1]).max() > 1
    np.testing.assert_allclose(averaged, (plain + mirrored[:, ::-1]) / 2, rtol=1e-5)


def test_a_model_without_the_head_is_named(predictor):
    other = predictor.for_evaluation()
    other.methods = ("encode_image",)
    with pytest.raises(ValueError, match=r"^this model has no depth head: none was trained; it has encode_"):
        other.depth(smooth(8, 8))


@pytest.mark.parametrize(
    ("resize", "shape", "expected"),
    [
        ("crop 28", (56, 84), (28, 42)),
        ("crop 30", (300, 200), (42, 28)),
        ("stretch", (50, 20), (28, 28)),
        ("crop", (1, 1_000), (28, 448)),
        (None, (50, 20), (56, 14)),
    ],
)
def test_the_whole_image_is_resized_to_multiples_of_the_stride(resize, shape, expected):
    config = None if resize is None else dict(image_size=28, resize=resize)
    assert whole_image(np.zeros((*shape, 3), np.uint8), config, 14).shape == (*expected, 3)


def test_maps_are_resized_as_by_jax_and_pytorch():
    import jax

    depth = RNG.random((5, 7)).astype(np.float32)
    for shape in ((5, 7), (10, 21), (3, 9), (1, 1)):
        expected = jax.image.resize(depth, shape, "linear", antialias=False)
        np.testing.assert_allclose(resize_map(depth, shape), expected, atol=1e-5)
    np.testing.assert_array_equal(resize_map(depth[:1, :1], (3, 2)), np.full((3, 2), depth[0, 0]))


class Maps:
    """Images with their depths in millimetres, one without any, one of 480 x 640 pixels."""

    def __init__(self, eigen: bool = False):
        shapes = [(480, 640)] * 2 if eigen else [(20, 30), (18, 26), (20, 30), (40, 22)]
        self.images = [smooth(*shape) for shape in shapes]
        self.truths = [np.uint16(1000 * RNG.uniform(0, 12, shape)) for shape in shapes]
        for truth in self.truths:
            truth[RNG.random(truth.shape) < 0.2] = 0
        self.truths[1][:] = 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        files = {}
        for key, array in dict(image=self.images[index], depth=self.truths[index]).items():
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, format="PNG")
            files[key] = buffer.getvalue()
        return files


@pytest.fixture
def made(monkeypatch):
    """made(eigen, **options) -> (the evaluator, its source)."""
    monkeypatch.setattr(depth_method, "_IMAGES", 3)

    def make(eigen=False, **options):
        source = Maps(eigen)
        monkeypatch.setitem(sources.SOURCES, "maps", lambda: source)
        config = dict(kind="depth", data=dict(kind="maps"), scale=1e-3, **options)
        return suite.build(dict(scenes=config))["scenes"], source

    return make


def reference(depths, truths, crop=None):
    """{metric: value}: one pixel after the other, in Python's floats; crop: (rows, columns) that count."""
    images = []
    for depth, truth in zip(depths, truths, strict=True):
        pairs = [
            (min(max(float(depth[i, j]), 1e-3), 10.0), float(truth[i, j]))
            for i in range(truth.shape[0])
            for j in range(truth.shape[1])
            if 1e-3 < truth[i, j] < 10 and (crop is None or (i in crop[0] and j in crop[1]))
        ]
        if not pairs:
            continue
        n = len(pairs)
        logs = [np.log(p) - np.log(t) for p, t in pairs]
        ratios = [max(p / t, t / p) for p, t in pairs]
        images.append(
            dict(
                rmse=np.sqrt(sum((p - t) ** 2 for p, t in pairs) / n),
                rmse_log=np.sqrt(sum(x * x for x in logs) / n),
                abs_rel=sum(abs(p - t) / t for p, t in pairs) / n,
                sq_rel=sum((p - t) ** 2 / t for p, t in pairs) / n,
                log10=sum(abs(np.log10(p) - np.log10(t)) for p, t in pairs) / n,
                silog=100 * np.sqrt(sum(x * x for x in logs) / n - (sum(logs) / n) ** 2),
                delta1=sum(x < 1.25 for x in ratios) / n,
                delta2=sum(x < 1.25**2 for x in ratios) / n,
                delta3=sum(x < 1.25**3 for x in ratios) / n,
            )
        )
    return {metric: sum(image[metric] for image in images) / len(images) for metric in METRICS}


def check(evaluator, source, predictor, crop=None, **options):
    with compiling.quickly():
        metrics = evaluator.metrics(predictor)
        depths = predictor.depth(source.images, **options)
    truths = [np.float32(truth) * np.float32(1e-3) for truth in source.truths]
    expected = reference(depths, truths, crop)
    assert len(expected) == 9
    for metric, value in expected.items():
        np.testing.assert_allclose(metrics[f"depth/scenes/{metric}"], value, rtol=1e-6, err_msg=metric)
    return metrics


def test_metrics(made, predictor):
    evaluator, source = made(flip=True)
    suite.check("evals.scenes", evaluator, predictor)
    metrics = check(evaluator, source, predictor, flip=True)
    # The best constant's error is at most that of any: here of the mean of the images' means.
    known = [truth[(truth > 1) & (truth < 10_000)] / 1e3 for truth in source.truths]
    known = [x for x in known if len(x)]
    mean = np.mean([x.mean() for x in known])
    constant = np.mean([np.sqrt(((x - mean) ** 2).mean()) for x in known])
    best = metrics["depth/scenes/constant_rmse"]
    assert 0.99 * constant < best <= constant + 1e-3


def test_the_eigen_crop(made, predictor):
    evaluator, source = made(eigen=True, eigen_crop=True)
    check(evaluator, source, predictor, crop=(range(45, 471), range(41, 601)))


def test_what_does_not_fit_is_one_line(made, predictor):
    with pytest.raises(ValueError, match=r"^depth: min_depth is 0; it must be above 0 and below max_depth$"):
        made(min_depth=0)
    evaluator, source = made(eigen_crop=True)
    message = "^eigen_crop is of maps of 480 x 640 pixels; there is one of 20 x 30$"
    with pytest.raises(ValueError, match=message):
        evaluator.metrics(predictor)
    evaluator, source = made()
    source.truths = [truth * 0 for truth in source.truths]
    with pytest.raises(ValueError, match=r"^depth: no image has a depth between 0.001 and 10.0$"):
        evaluator.metrics(predictor)
    source.truths[2] = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"^data: record 2: 'depth' has the shape \(4, 4, 3\); it must have"):
        evaluator.metrics(predictor)


def test_the_report_shows_images_depths_and_predictions_in_one_scale(made, predictor):
    evaluator, source = made()
    with compiling.quickly():
        (section,) = evaluator.sections(predictor)
    assert section.name == "depth_scenes"
    shown = [axes.images[0].get_array() for axes in section.figure.axes if axes.images]
    assert len(shown) == 3 * len(source)
    depths = predictor.depth(source.images)
    truths = [np.float32(truth) * np.float32(1e-3) for truth in source.truths]
    scale = drawings.depth_range([*depths, *truths])
    np.testing.assert_array_equal(shown[1], drawings.depth_colours(truths[0], *scale))
    np.testing.assert_array_equal(shown[2], drawings.depth_colours(depths[0], *scale))


def test_evaluations_share_what_is_compiled(predictor):
    first, second = (predictor.for_evaluation().compiled_head("depth") for _ in range(2))
    assert first is second

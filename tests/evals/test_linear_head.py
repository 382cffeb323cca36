"""A linear head from a file: what it reads, what it says of a set, and what does not fit."""

import types

import jax
import numpy as np
import pytest

from big_ssl.data import label_sets
from big_ssl.evals.linear_head import LinearHead, head_input
from big_ssl.evals.linear_sweep import LinearSweep
from big_ssl.models import vit
from big_ssl.weights.linear_heads import write_head
from tests.evals.conftest import colour_system, make_predictor

WIDTH = 16
SHADES = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


@pytest.fixture(scope="module")
def four_layers():
    return make_predictor(*colour_system(depth=4))


@pytest.fixture
def predictor(four_layers):
    return four_layers.for_evaluation()


@pytest.fixture(scope="module")
def layers(four_layers):
    """(images, {layer: (its class tokens, its patches)}), requested in another order."""
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), np.uint8)
    order = (2, 0, 3, 1)
    variables = dict(params=four_layers.variables["params"]["encoders"]["image"])
    apply = jax.jit(lambda x: four_layers.encoder.apply(variables, x, intermediate=order)["layers"])
    outputs = apply(images / 64.0 - 2)
    return images, {
        layer: (np.asarray(outputs["cls"][i]), np.asarray(outputs["patches"][i]))
        for i, layer in enumerate(order)
    }


@pytest.fixture
def head(tmp_path):
    """head(classes, inputs) -> the file of a random one."""

    def write(classes, inputs, name="head"):
        rng, path = np.random.default_rng(0), tmp_path / f"{name}.safetensors"
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
        write_head(path, draw(classes, inputs), draw(classes))
        return str(path)

    return write


def _set(folder, name, classes):
    """Pictures of about these colours in folders of these classes."""
    rng = np.random.default_rng(len(name))
    pictures = {
        c: [tuple(map(int, SHADES[shade] + rng.integers(0, 50, 3))) for shade in shades]
        for c, shades in classes.items()
    }
    return dict(kind="image_folder", path=folder(pictures, name))


@pytest.mark.parametrize("blocks", [1, 4])
def test_the_order_in_which_it_reads(blocks, layers, predictor):
    """Against NumPy: class tokens, the last layer's last, and then the mean of the last layer's patches."""
    images, seen = layers
    tokens = {1: (3,), 4: (0, 1, 2, 3)}[blocks]
    expected = np.concatenate([*(seen[i][0] for i in tokens), seen[3][1].mean(1)], axis=1)
    assert expected.shape == (5, (blocks + 1) * WIDTH)
    found = predictor.apply(head_input, images, expected.shape[1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_sweep_and_then_its_head(folder, predictor, tmp_path):
    """What the sweep said of its best head on the test set, the file says again."""
    known = {shade: [shade] * 8 for shade in SHADES}
    train, test = (
        _set(folder, "train", known),
        _set(folder, "test", known | dict(red=["red"] * 5 + ["blue"] * 3)),
    )
    path = tmp_path / "new" / "best.safetensors"
    options = dict(rates=(0.5, 3.0), patches=(False,), steps=60, batch_size=16, augment=False)
    sweep = LinearSweep(train, test, validation_fraction=0.3, **options, save=str(path), name="x")
    expected = sweep.metrics(predictor)
    assert expected["linear_sweep/x/top1"] == 21 / 24
    found = LinearHead(str(path), test, name="x").metrics(predictor)
    assert found == {
        f"linear_head/x/{key}": expected[f"linear_sweep/x/{key}"]
        for key in ("top1", "mean_per_class", "chance")
    }


def test_top5_where_there_are_more_classes(folder, predictor, head):
    """A bias that names the sixth class first and the first last."""
    test = dict(kind="image_folder", path=folder({name: ["red"] for name in "abcdef"}))
    path = head(6, 2 * WIDTH)
    write_head(path, np.zeros((6, 2 * WIDTH), np.float32), np.arange(6, dtype=np.float32))
    found = LinearHead(path, test, name="x").metrics(predictor)
    metrics = dict(top1=1 / 6, top5=5 / 6, mean_per_class=1 / 6, chance=1 / 6)
    assert found == pytest.approx({f"linear_head/x/{key}": value for key, value in metrics.items()})


def test_of_1000_classes_imagenet_a_keeps_its_own(folder, predictor, head):
    """The acorn's logit is the largest but for the tench's, which is none of the 200; without a label set
    two folders are two classes."""
    wnids = [line.split("\t")[0] for line in label_sets.labels_file("imagenet.tsv").read_text().splitlines()]
    test = dict(kind="image_folder", path=folder({"n01498041": ["red"], "n12267677": ["red"] * 3}))
    path, bias = head(1000, 2 * WIDTH), np.zeros(1000, np.float32)
    bias[0], bias[wnids.index("n12267677")] = 2, 1
    write_head(path, np.zeros((1000, 2 * WIDTH), np.float32), bias)
    part = LinearHead(path, test, classes="imagenet_a", name="x").metrics(predictor)
    assert (part["linear_head/x/top1"], part["linear_head/x/chance"]) == (3 / 4, 1 / 200)
    whole = LinearHead(path, test, classes="imagenet", name="x").metrics(predictor)
    assert (whole["linear_head/x/top1"], whole["linear_head/x/chance"]) == (0, 1 / 1000)
    with pytest.raises(ValueError, match=r"^linear_head: the data has 2 classes, .*head\.safetensors 1000$"):
        LinearHead(path, test, name="x")


def test_an_encoder_of_another_size_is_an_error(folder, predictor, head):
    test = _set(folder, "test", {shade: [shade] for shade in SHADES})
    small = types.SimpleNamespace(encoder=vit.ViT(width=WIDTH, depth=2, heads=2))
    LinearHead(head(3, 2 * WIDTH), test, name="x").check(small)
    with pytest.raises(ValueError, match=r"^the last 4 layers are requested; the image encoder has 2$"):
        LinearHead(head(3, 5 * WIDTH), test, name="x").check(small)
    wrong = LinearHead(head(3, 3 * WIDTH), test, name="x")
    message = (
        r"^linear_head: the head reads 48 numbers; on this image encoder, of width 16, "
        r"it must read 32 \(blocks: 1\) or 80 \(blocks: 4\)"
    )
    for use in (lambda: wrong.check(small), lambda: wrong.metrics(predictor)):
        with pytest.raises(ValueError, match=message):
            use()

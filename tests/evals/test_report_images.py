"""What the report shows of a ViT: attention, principal components, nearest pictures."""

import functools

import jax
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from sklearn.decomposition import PCA

from big_ssl.evals import plots, report_images
from big_ssl.evals.knn import Knn
from big_ssl.models import vit

RNG = np.random.default_rng(0)


def test_colours_are_the_principal_components():
    """scikit-learn's, all pictures together, but for the sign; each from its first hundredth to its last."""
    features = (RNG.normal(size=(3, 50, 8)) * np.arange(1, 9) + 5).astype(np.float32)
    found, shares = report_images.principal_colours(features)
    rows = features.reshape(-1, 8)
    fit = PCA(3).fit(rows)
    np.testing.assert_allclose(shares, fit.explained_variance_ratio_, rtol=1e-4)
    assert (found.shape, found.dtype) == ((3, 50, 3), np.uint8)
    for i, expected in enumerate(fit.transform(rows).T):
        colour = found[..., i].ravel().astype(float)
        assert (colour == 0).sum() == (colour == 255).sum() == 2
        inner = (colour > 0) & (colour < 255)
        assert abs(np.corrcoef(colour[inner], expected[inner])[0, 1]) > 0.9999
    again, _ = report_images.principal_colours(features)
    np.testing.assert_array_equal(found, again)


def test_images_without_any_difference_have_a_colour():
    colours, shares = report_images.principal_colours(np.ones((2, 4, 3), np.float32))
    assert np.isfinite(shares).all()
    assert len(np.unique(colours)) == 1


def test_attention_is_that_of_the_class_token():
    """To the patches alone: neither to itself nor to registers."""
    model = vit.ViT(**vit.DINOV2, patch=4, width=8, depth=1, heads=2, image_size=8, registers=3)
    images = RNG.normal(size=(1, 8, 12, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)
    looks = (report_images.class_attention, vit.attention_maps)
    found, whole = (jax.jit(functools.partial(look, model))(variables, images) for look in looks)
    assert found.shape == (1, 2, 2, 3)
    np.testing.assert_allclose(found.sum((2, 3)), 1 - whole[:, :, 0, :4].sum(-1), rtol=1e-5)
    np.testing.assert_allclose(found[0, :, 0, 0], whole[0, :, 0, 4], rtol=1e-5)


def test_images_are_enlarged_for_finer_maps(predictor, monkeypatch):
    """Up to 24 patches a side, four times at most."""
    sizes = []

    def images(count, preprocess):
        sizes.append(preprocess(np.zeros((1, 8, 8, 3), np.uint8)).shape[1])
        return RNG.integers(0, 256, (count, sizes[-1], sizes[-1], 3), np.uint8)

    for fine, factor in ((24, 4), (2, 1)):
        monkeypatch.setattr(report_images, "_FINE", fine)
        sections = report_images.encoder_sections(predictor, images)
        assert sizes[-2:] == [4, 4 * factor]
        assert [section.name for section in sections] == ["attention", "patches"]
        assert ("times the side" in sections[0].text) == (factor > 1)
        assert [len(section.figure.axes) for section in sections] == [6 * (1 + 2), 6 + 6]
        for axes in (sections[0].figure.axes[1], sections[1].figure.axes[6]):
            assert axes.images[0].get_array().shape[:2] == (2 * factor, 2 * factor)


@pytest.fixture
def knn(folder):
    shades = dict(warm=["red", (240, 30, 20), (200, 10, 10)], cold=["blue", (20, 40, 240), (190, 60, 190)])
    queries = dict(warm=["red"], cold=[(230, 30, 60)])
    train, test = (folder(colours, name) for colours, name in ((shades, "train"), (queries, "test")))
    return Knn(*(dict(kind="image_folder", path=path) for path in (train, test)), ks=(1,), name="shades")


def test_neighbours_are_the_nearest(knn, predictor):
    """Both test images are near the warm ones; for one of them that is wrong."""
    nearest = knn.nearest(predictor, 2, 3)
    assert (nearest.labels, nearest.candidates) == (["cold", "warm"], 6)
    assert [names for _, names in nearest.neighbours] == [["warm"] * 3] * 2
    assert (np.diff(nearest.cosines, axis=1) <= 0).all()
    np.testing.assert_array_equal(nearest.images[1], np.full((4, 4, 3), (250, 10, 10)))
    np.testing.assert_array_equal(nearest.neighbours[1][0][0], nearest.images[1])
    assert nearest.cosines[1, 0] == pytest.approx(1)
    section = report_images.neighbour_section(nearest)
    assert "3 of these 6 neighbours have the same class" in section.text
    frames = [axes.spines["top"] for axes in section.figure.axes]
    for row, colour in ((frames[1:4], plots.WRONG), (frames[5:8], plots.RIGHT)):
        assert {frame.get_edgecolor() for frame in row} == {to_rgba(colour)}
    assert not frames[0].get_visible()


def test_every_knn_evaluator_has_its_sections(knn, predictor):
    """Neither texts nor other objectives hide them."""
    assert "encode_text" in predictor.methods
    names = [section.name for section in knn.sections(predictor)]
    assert names == ["attention", "patches", "neighbours_shades"]

"""What the report shows of a ViT: attention, principal components, nearest pictures."""

import functools

import jax
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from sklearn.decomposition import PCA

from big_ssl.evals import plots, report_pictures
from big_ssl.evals.knn import Knn
from big_ssl.models import vit

RNG = np.random.default_rng(0)


def test_colours_are_the_principal_components():
    """scikit-learn's, all pictures together, but for the sign; each from its first hundredth to its last."""
    features = (RNG.normal(size=(3, 50, 8)) * np.arange(1, 9) + 5).astype(np.float32)
    found, shares = report_pictures.principal_colours(features)
    rows = features.reshape(-1, 8)
    fit = PCA(3).fit(rows)
    np.testing.assert_allclose(shares, fit.explained_variance_ratio_, rtol=1e-4)
    assert (found.shape, found.dtype) == ((3, 50, 3), np.uint8)
    for i, expected in enumerate(fit.transform(rows).T):
        colour = found[..., i].ravel().astype(float)
        assert (colour == 0).sum() == (colour == 255).sum() == 2
        inner = (colour > 0) & (colour < 255)
        assert abs(np.corrcoef(colour[inner], expected[inner])[0, 1]) > 0.9999
    again, _ = report_pictures.principal_colours(features)
    np.testing.assert_array_equal(found, again)


def test_pictures_without_any_difference_have_a_colour():
    colours, shares = report_pictures.principal_colours(np.ones((2, 4, 3), np.float32))
    assert np.isfinite(shares).all()
    assert len(np.unique(colours)) == 1


def test_attention_is_that_of_the_class_token():
    """To the patches alone: neither to itself nor to registers."""
    model = vit.ViT(**vit.DINOV2, patch=4, width=8, depth=1, heads=2, image_size=8, registers=3)
    images = RNG.normal(size=(1, 8, 12, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)
    looks = (report_pictures.class_attention, vit.last_attention)
    found, whole = (jax.jit(functools.partial(look, model))(variables, images) for look in looks)
    assert found.shape == (1, 2, 6)
    np.testing.assert_allclose(found.sum(-1), 1 - whole[:, :, 0, :4].sum(-1), rtol=1e-5)
    np.testing.assert_allclose(found[0, :, 0], whole[0, :, 0, 4], rtol=1e-5)


def test_pictures_are_enlarged_for_finer_maps(embedder, monkeypatch):
    """As far as 24 patches a side want it, four times at most."""
    asked = []

    def pictures(factor):
        asked.append(factor)
        return RNG.integers(0, 256, (2, 4 * factor, 4 * factor, 3), np.uint8)

    for fine, factor in ((24, 4), (2, 1)):
        monkeypatch.setattr(report_pictures, "_FINE", fine)
        found = report_pictures.inside(embedder, pictures)
        assert asked[-2:] == [1, factor]
        assert [picture.name for picture in found] == ["attention", "patches"]
        assert ("times the side" in found[0].text) == (factor > 1)
        shown = [len(picture.figure.axes) for picture in found]
        assert shown == [2 * (1 + 2), 2 + 2]
        for axes, side in ((found[0].figure.axes[1], 2 * factor), (found[1].figure.axes[2], 2 * factor)):
            assert axes.images[0].get_array().shape[:2] == (side, side)


@pytest.fixture
def knn(folder):
    shades = dict(warm=["red", (240, 30, 20), (200, 10, 10)], cold=["blue", (20, 40, 240), (190, 60, 190)])
    asked = dict(warm=["red"], cold=[(230, 30, 60)])
    train, test = (folder(colours, name) for colours, name in ((shades, "train"), (asked, "test")))
    return Knn(*(dict(kind="image_folder", path=path) for path in (train, test)), ks=(1,), name="shades")


def test_a_gallery_is_of_the_nearest(knn, embedder):
    """Both pictures are near the warm ones, of which one is wrong to be."""
    found = knn.gallery(embedder, 2, 3)
    assert (found.labels, found.known) == (["cold", "warm"], 6)
    assert [names for _, names in found.neighbours] == [["warm"] * 3] * 2
    assert (np.diff(found.cosines, axis=1) <= 0).all()
    np.testing.assert_array_equal(found.pictures[1], np.full((4, 4, 3), (250, 10, 10)))
    np.testing.assert_array_equal(found.neighbours[1][0][0], found.pictures[1])
    assert found.cosines[1, 0] == pytest.approx(1)
    picture = report_pictures.gallery(found)
    assert "Of these 6 neighbours 3 are of the same class" in picture.text
    frames = [axes.spines["top"] for axes in picture.figure.axes]
    for row, colour in ((frames[1:4], plots.WRONG), (frames[5:8], plots.RIGHT)):
        assert {frame.get_edgecolor() for frame in row} == {to_rgba(colour)}
    assert not frames[0].get_visible()

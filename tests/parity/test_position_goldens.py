"""CLIP and SigLIP at other image sizes than their own, against a file of tests/parity/make_goldens.py."""

import numpy as np
import pytest
import scipy.ndimage
from flax.traverse_util import unflatten_dict

from big_ssl.inference import Model
from big_ssl.models.position_embedding import resize_position_embedding
from big_ssl.weights import rules
from big_ssl.weights.formats import FORMATS, read_checkpoint
from tests.parity.goldens import golden, write_checkpoint
from tests.parity.other_sizes import CLOSE, SIZES, random_images


@pytest.mark.parametrize("kind", ["hf_clip", pytest.param("hf_siglip", marks=pytest.mark.slow)])
def test_transformers_patches_at_seven_sizes(kind, tmp_path):
    config, ours = read_checkpoint(kind, write_checkpoint(kind, tmp_path))
    model, expected = Model(config, unflatten_dict(ours, sep="/")), golden("other_sizes")[1]
    for size in SIZES:
        found = model.patch_features(random_images(size), resize=False)
        name = f"{kind}_{size[0]}x{size[1]}"
        np.testing.assert_allclose(found, expected[name], **CLOSE, err_msg=name)


def test_siglip_npz_resizes_positions_as_big_vision(tmp_path):
    config, ours = read_checkpoint("hf_siglip", write_checkpoint("hf_siglip", tmp_path))
    np.savez(tmp_path / "siglip.npz", **rules.write(FORMATS["siglip_npz"].rules(config), ours))
    config = read_checkpoint("siglip_npz", tmp_path / "siglip.npz")[0]
    assert config["encoders"]["image"]["position_resize"] == "bilinear_align_corners"


@pytest.mark.parametrize("grid", [(6, 6), (2, 2), (3, 7), (9, 1), (1, 4)])
def test_a_table_resized_linearly_with_its_corners_kept(grid):
    """As SciPy's zoom of order 1, which big_vision uses."""
    table = np.random.default_rng(0).normal(size=(1 + 4 * 4, 3)).astype(np.float32)
    expected = scipy.ndimage.zoom(table[1:].reshape(4, 4, 3), (grid[0] / 4, grid[1] / 4, 1), order=1)
    found = resize_position_embedding(table, (4, 4), grid, "bilinear_align_corners")
    np.testing.assert_array_equal(found[0], table[0])
    np.testing.assert_allclose(found[1:], expected.reshape(-1, 3), rtol=1e-5, atol=1e-6)

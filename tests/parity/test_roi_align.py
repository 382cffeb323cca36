"""RoIAlign against torchvision's Python implementation, which does not leave out samples far outside."""

import numpy as np
import pytest

from big_ssl.models.roi_align import roi_align

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
pytest.importorskip("torchvision", reason="torchvision has RoIAlign")

from torchvision.ops.roi_align import _roi_align  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("size", "samples"), [(7, 2), (4, 3)])
def test_roi_align(size, samples):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 27, 3)).astype(np.float32)
    corners = rng.uniform(-0.5, (27.5, 20.5), (40, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    rois = torch.tensor(np.concatenate([np.zeros((40, 1), np.float32), boxes], 1))
    maps = torch.tensor(image.transpose(2, 0, 1)[None])
    with torch.compiler.set_stance("force_eager"):
        expected = _roi_align(maps, rois, 1.0, size, size, samples, True).permute(0, 2, 3, 1)
    np.testing.assert_allclose(roi_align(image, boxes, size, samples), expected, rtol=1e-4, atol=1e-5)

"""Draws stay what they were when golden_draws.json was written, so that runs resume with the same data."""

import json

import numpy as np
import pytest

from tests.data import golden_draws

GOLDEN = json.loads(golden_draws.PATH.read_text())


@pytest.mark.parametrize("name", golden_draws.CONFIGS)
def test_batches(name):
    assert golden_draws.batch_digests(name) == GOLDEN["batches"][name]


@pytest.mark.slow
def test_device_transforms():
    for name, value in golden_draws.transforms().items():
        np.testing.assert_allclose(value, GOLDEN["transforms"][name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_masks():
    assert golden_draws.masks() == GOLDEN["masks"]


def test_descriptions():
    assert golden_draws.descriptions() == GOLDEN["descriptions"]

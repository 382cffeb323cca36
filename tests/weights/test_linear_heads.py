"""Files of linear heads: the published layout, a round trip, and errors."""

import numpy as np
import pytest

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.linear_heads import read_head, write_head
from big_ssl.weights.tensor_files import write_safetensors
from tests.weights.test_tensor_files import tensor, write_archive

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)
BIAS = np.array([3, 1, 2], np.float32)


def test_a_head_in_the_published_layout(tmp_path):
    content = {"weight": tensor("0", (3, 2), (2, 1)), "bias": tensor("1", (3,), (1,), count=3)}
    write_archive(tmp_path / "a_linear_head.pth", content, {"0": WEIGHT, "1": BIAS})
    for actual, expected in zip(read_head(tmp_path / "a_linear_head.pth"), (WEIGHT, BIAS), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_round_trip_is_exact(tmp_path):
    path = tmp_path / "a.safetensors"
    write_head(path, WEIGHT.T.copy().T, BIAS)  # in the other order of memory
    for actual, expected in zip(read_head(path), (WEIGHT, BIAS), strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == np.float32


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (dict(kernel=WEIGHT, bias=BIAS), "weight is missing; is it another format? there is kernel"),
        (dict(weight=BIAS, bias=BIAS), "weight is [3]; it must have 2 axes"),
        (dict(weight=WEIGHT), "bias is missing"),
        (dict(weight=WEIGHT, bias=BIAS[:2]), "bias is [2]; the architecture has [3]"),
        (dict(weight=WEIGHT, bias=BIAS, step=BIAS), "step is no weight of this architecture"),
        (
            dict(weight=WEIGHT.astype(np.int32), bias=BIAS),
            "weight is of dtype int32; weights are floating point",
        ),
    ],
)
def test_the_error_names_the_invalid_array(tensors, message, tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors, {})
    with pytest.raises(WeightsError) as caught:
        read_head(path)
    assert str(caught.value) == f"{path}, as a linear head: {message}"

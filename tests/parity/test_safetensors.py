"""Our reader and writer of safetensors against the safetensors library's."""

import json

import numpy as np
import pytest

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.tensor_files import read_tensors, write_safetensors
from tests.weights.test_fuzzed_files import damaged_json
from tests.weights.test_tensor_files import ARRAYS, assert_same

theirs = pytest.importorskip("safetensors.numpy", reason="make parity installs safetensors")

pytestmark = pytest.mark.parity


def test_each_reads_what_the_other_wrote(tmp_path):
    write_safetensors(tmp_path / "ours.safetensors", ARRAYS, dict(format="pt"))
    assert_same(theirs.load_file(tmp_path / "ours.safetensors"))
    theirs.save_file(ARRAYS, tmp_path / "theirs.safetensors")
    assert_same(read_tensors(tmp_path / "theirs.safetensors"))


def test_ours_reads_every_header_that_theirs_reads(tmp_path):
    """With the same arrays, of a thousand damaged headers. Theirs also refuses gaps and shared bytes."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, ARRAYS, dict(format="pt"))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data, both = json.loads(content[8 : 8 + length]), content[8 + length :], 0
    for i in range(1000):
        damaged = damaged_json(header, np.random.default_rng((7, i)))
        path.write_bytes(len(damaged).to_bytes(8, "little") + damaged + data)
        try:
            expected = theirs.load_file(path)
        except Exception:  # its errors have no common base
            continue
        assert_same(read_tensors(path), expected)
        both += 1
    assert both > 10


def test_both_refuse_a_name_that_is_there_twice(tmp_path):
    entry = '"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    text = f"{{{entry}, {entry}}}".encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(WeightsError):
        read_tensors(tmp_path / "a.safetensors")

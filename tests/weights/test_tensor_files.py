"""Files of arrays: round trips, and one-line errors that name a damaged file."""

import io
import json
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.tensor_files import read_tensors, write_safetensors

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2], np.float16),
    "brain": np.array([[1.5], [3]], ml_dtypes.bfloat16),
    "scalar": np.array(7, np.int64),
    "flags": np.array([True, False, True]),
    "none": np.zeros((0, 4), np.float32),
}


def assert_same(actual, expected=None):
    expected = ARRAYS if expected is None else expected
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value)
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape)


def test_a_round_trip_through_safetensors_is_exact(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, ARRAYS, dict(format="pt"))
    assert_same(read_tensors(path))
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    assert length % 8 == 0
    assert json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"] == {"format": "pt"}


def test_an_array_in_another_memory_order(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", dict(x=ARRAYS["matrix"].T), {})
    assert_same(read_tensors(tmp_path / "a.safetensors"), dict(x=ARRAYS["matrix"].T))


def test_npz_is_read(tmp_path):
    arrays = {name: value for name, value in ARRAYS.items() if name != "brain"}
    np.savez(tmp_path / "a.npz", **arrays)
    assert_same(read_tensors(tmp_path / "a.npz"), arrays)


class Storage:
    """Pickled by a persistent id, as PyTorch pickles a storage."""

    def __init__(self, key, kind, count):
        self.id = ("storage", kind, key, "cpu", count)


class Name:
    """Pickled as the name of a class or function."""

    def __init__(self, module, name):
        self.path = f"{module}\n{name}"


class Global:
    """Pickled as the name of a class or function, called with `arguments`."""

    def __init__(self, module, name, *arguments):
        self.path, self.arguments = f"{module}\n{name}", arguments


def pickled(value):
    """A protocol-2 pickle of dicts, tuples, numbers, Storages, Globals and calls."""
    if isinstance(value, Storage):
        kind = b"ctorch\n" + value.id[1].encode() + b"\n"
        return b"(" + pickled("storage") + kind + b"".join(map(pickled, value.id[2:])) + b"tQ"
    if isinstance(value, Name):
        return b"c" + value.path.encode() + b"\n"
    if isinstance(value, Global):
        return b"c" + value.path.encode() + b"\n(" + b"".join(map(pickled, value.arguments)) + b"tR"
    if isinstance(value, dict):
        return b"}(" + b"".join(pickled(x) for item in value.items() for x in item) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    return pickle.dumps(value, 2)[2:-1]


def tensor(key, size, stride, offset=0, kind="FloatStorage", count=6):
    call = (Storage(key, kind, count), offset, size, stride, False)
    return Global("torch._utils", "_rebuild_tensor_v2", *call, Global("collections", "OrderedDict"))


def with_attributes(rebuild, kind, *arguments):
    """A tensor of a type, with attributes of Python."""
    return Global("torch._tensor", "_rebuild_from_type_v2", rebuild, kind, arguments, dict(flag=1))


TENSOR = Name("torch._utils", "_rebuild_tensor_v2")


def write_archive(path, content, storages, folder="archive"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", b"\x80\x02" + pickled(content) + b".")
        for key, value in storages.items():
            archive.writestr(f"{folder}/data/{key}", value.tobytes())


def test_a_hand_written_torch_archive_is_read(tmp_path):
    """Two views of one storage, one transposed, one with an offset; nested names; other dtypes."""
    content = {
        "a": {"weight": tensor("0", (2, 3), (3, 1))},
        "t": tensor("0", (3, 2), (1, 3)),
        "rest": tensor("0", (2,), (1,), offset=4),
        "half": tensor("1", (2,), (1,), kind="HalfStorage"),
        "flagged": with_attributes(
            TENSOR, Name("torch", "Tensor"), Storage("0", "FloatStorage", 6), 2, (2,), (1,), False, {}
        ),
        "epoch": 3,
        "args": Global("argparse", "Namespace"),
        "p": Global("torch._utils", "_rebuild_parameter", tensor("0", (), ()), True, {}),
    }
    write_archive(tmp_path / "a.pt", content, {"0": ARRAYS["matrix"], "1": ARRAYS["half"]})
    matrix = ARRAYS["matrix"]
    expected = {"a.weight": matrix, "t": matrix.T, "rest": matrix.ravel()[4:], "half": ARRAYS["half"]}
    expected["flagged"] = matrix.ravel()[2:4]
    assert_same(read_tensors(tmp_path / "a.pt"), expected | {"p": np.array(0, np.float32)})


@pytest.mark.parametrize(
    "name", [("os", "system"), ("builtins", "eval"), ("torch.storage", "_load_from_bytes"), ("torch", "load")]
)
def test_a_pickle_that_would_run_code_is_refused(name, tmp_path):
    write_archive(tmp_path / "a.bin", {"a": Global(*name, "touch bad")}, {})
    with pytest.raises(
        WeightsError, match=rf"a\.bin: no PyTorch state dict: it pickles {name[0]}\.{name[1]}"
    ):
        read_tensors(tmp_path / "a.bin")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    for call in (
        dict(size=(3, 3), stride=(3, 1)),
        dict(size=(2,), stride=(-1,)),
        dict(size=(1,), stride=(1,), offset=6),
    ):
        write_archive(tmp_path / "a.pt", {"a": tensor("0", **call)}, {"0": ARRAYS["matrix"]})
        with pytest.raises(WeightsError, match="a tensor reaches outside its storage"):
            read_tensors(tmp_path / "a.pt")


def whole(kind):
    file = io.BytesIO()
    if kind == "npz":
        np.savez(file, **{name: value for name, value in ARRAYS.items() if name != "brain"})
        return file.getvalue()
    return None


@pytest.mark.parametrize("cut", [0, 5, 100, -1], ids=["empty", "5 bytes", "100 bytes", "last byte"])
@pytest.mark.parametrize("kind", ["safetensors", "npz", "pt"])
def test_the_error_for_a_truncated_file_is_one_line(kind, cut, tmp_path):
    path = tmp_path / f"a.{kind}"
    if kind == "safetensors":
        write_safetensors(path, ARRAYS | dict(last=ARRAYS["matrix"]), {})
    elif kind == "npz":
        path.write_bytes(whole("npz"))
    else:
        write_archive(path, {"a": tensor("0", (2, 3), (3, 1))}, {"0": ARRAYS["matrix"]})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def header(**entry):
    text = json.dumps({"x": dict(dtype="F32", shape=[2], data_offsets=[0, 8]) | entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a file of tensors at all, but longer than eight bytes", "truncated"),
        (b"\x04" + bytes(7) + b"nope", "its header can't be read"),
        (b"\x02" + bytes(7) + b"[]", "its header can't be read"),
        (header(dtype="F8"), "x is of dtype F8"),
        (header(shape=[3]), r"x has 8 bytes, not those of F32\[3\]"),
        (header(data_offsets=[4, 12]), "x ends after the file"),
        (header(data_offsets=[-8, 0]), "x ends after the file"),
        (header(data_offsets=["0", "8"]), r"x has the data_offsets \['0', '8'\]; they must be two whole"),
        (header(data_offsets=[0, 4, 8]), "x has the data_offsets"),
        (header(shape=[2.0]), r"x has the shape \[2.0\]; it must be a list of whole numbers from 0"),
        (header(shape=[-1, -2]), "x has the shape"),
        (header(shape=[True]), "x has the shape"),
        (header(shape=[0, 2**70], data_offsets=[0, 0]), "x can't have the shape"),
        (header(shape=[1] * 100, data_offsets=[0, 4]), "x can't have the shape"),
        (header(dtype=["F32"]), "x is of dtype"),
        (b"\x07" + bytes(7) + b'{"x":1}', "x has 1 in the header, not its dtype, shape and data_offsets"),
    ],
)
def test_the_error_for_an_invalid_safetensors_file(content, message, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_tensors(tmp_path / "a.safetensors")


def test_errors_for_other_files(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(WeightsError, match=r"a\.txt: unknown kind of file; there are \.safetensors"):
        read_tensors(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pt"):
        read_tensors(tmp_path / "none.pt")
    (tmp_path / "a.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightsError, match=r"before PyTorch 1\.6"):
        read_tensors(tmp_path / "a.bin")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(WeightsError, match=r"without PyTorch's data\.pkl"):
        read_tensors(tmp_path / "a.pt")

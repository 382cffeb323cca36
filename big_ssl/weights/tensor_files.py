"""Files of named arrays: safetensors in and out, PyTorch's zip archives and npz in. None runs code."""

import json
import math
import pathlib
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.torch_archive import read_torch

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def read_tensors(path) -> dict[str, np.ndarray]:
    """{name: array} of a .safetensors, .npz, or PyTorch .pt, .pth or .bin file, in its own dtypes.

    Raises FileNotFoundError, and WeightsError for what is no such file, or not the whole of one.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz} | dict.fromkeys(
        (".pt", ".pth", ".bin"), read_torch
    )
    if path.suffix not in readers:
        raise WeightsError(f"{path}: unknown kind of file; there are {', '.join(readers)}")
    return readers[path.suffix](path)


def write_safetensors(path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes {name: array} and the file's own metadata. Raises KeyError for a dtype it has no name for."""
    header: dict[str, dict] = {"__metadata__": dict(metadata)}
    start = 0
    for name, array in tensors.items():
        end = start + array.nbytes
        header[name] = dict(dtype=_NAMES[array.dtype], shape=list(array.shape), data_offsets=[start, end])
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # what follows starts at a multiple of eight
    with pathlib.Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def _read_safetensors(path):
    """Views of the mapped file: what is not used is not read."""
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > len(data) - 8:
        raise WeightsError(f"{path}: no safetensors file, or a truncated one")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        entries = {name: (e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: no safetensors file: its header can't be read") from error
    return {name: _view(path, data[8 + length :], name, *entry) for name, entry in entries.items()}


def _view(path, data, name, dtype, shape, start, end):
    if dtype not in _DTYPES:
        raise WeightsError(f"{path}: {name} is of dtype {dtype}; there are {', '.join(_DTYPES)}")
    kind = np.dtype(_DTYPES[dtype])
    if end - start != math.prod(shape) * kind.itemsize:
        raise WeightsError(f"{path}: {name} has {end - start} bytes, not those of {dtype}{list(shape)}")
    if not 0 <= start <= end <= len(data):
        raise WeightsError(f"{path}: {name} ends after the file; the file is truncated")
    return data[start:end].view(kind).reshape(shape)


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: no npz file, or a truncated one: {error}") from error

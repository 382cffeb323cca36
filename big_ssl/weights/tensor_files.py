"""Files of named arrays: reads and writes safetensors; reads PyTorch's zip archives and npz. None runs code.

Checkpoints that transformers sharded over several safetensors or PyTorch files are read through their index,
whose names stay inside its folder. The error for a malformed file is always a WeightsError that names it.

The safetensors library (0.8) would do the same for NumPy, bfloat16 included, but copies every array that it
returns; here unused arrays, such as an optimizer's state, take no memory. Therefore the format, a JSON header
before the data, is read by hand; tests/parity/test_safetensors.py compares the two.
"""

import json
import math
import os
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from big_ssl import io
from big_ssl.weights.errors import WeightsError, all_errors_named
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
# The limit of the safetensors library.
_LONGEST_HEADER = 100_000_000
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


# The suffix of transformers' index of shards, {"weight_map": {name: file}} in JSON.
INDEX = ".index.json"


def read_tensors(path) -> dict[str, np.ndarray]:
    """Reads {name: array}, in the stored dtypes.

    path: a .safetensors, .npz, or PyTorch .pt, .pth or .bin file, or an .index.json of shards. Raises
    FileNotFoundError, or WeightsError if the file is of another kind or truncated.
    """
    path = io.as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return _read_shards(path) if path.name.endswith(INDEX) else _read_file(path)


def _read_file(path):
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz} | dict.fromkeys(
        (".pt", ".pth", ".bin"), read_torch
    )
    if path.suffix not in readers:
        raise WeightsError(f"{path}: unknown kind of file; there are {', '.join(readers)}")
    return readers[path.suffix](path)


def write_safetensors(path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file. Raises KeyError for a dtype that the format lacks.

    Args:
      path: the file.
      tensors: {name: array}.
      metadata: the file's __metadata__.
    """
    header: dict[str, dict] = {"__metadata__": dict(metadata)}
    start = 0
    for name, array in tensors.items():
        end = start + array.nbytes
        header[name] = dict(dtype=_NAMES[array.dtype], shape=list(array.shape), data_offsets=[start, end])
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the data to eight bytes
    with io.as_path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def _read_shards(path):
    tensors = {}
    for file, names in _shards(path).items():
        shard = _read_file(_beside(path, file))
        if missing := names - shard.keys():
            raise WeightsError(f"{path}: {min(missing)} is not in {file}, where it should be")
        if duplicates := tensors.keys() & shard.keys():
            raise WeightsError(f"{path}: {min(duplicates)} is in {file} and in another shard")
        tensors |= shard
    return tensors


def _shards(path) -> dict[str, set[str]]:
    """Reads an index: {file: names of its arrays}."""
    shards: dict[str, set[str]] = {}
    with all_errors_named(f"{path}: no index of shards"):
        index = json.loads(path.read_bytes())
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ValueError("it has no weight_map of names to files")
        for name, file in weight_map.items():
            shards.setdefault(file, set()).add(name)
    return shards


def _beside(path, file):
    """The path of a shard, which lies beside its index.

    A hub's cache has a folder of symbolic links to files that lie together, the index among them; therefore a
    link may lead to where the index itself lies, and nowhere else.
    """
    shard = path.parent / file
    if file != os.path.basename(file) or file in ("", ".", ".."):
        raise WeightsError(f"{path}: its shard {file} is outside its folder")
    with all_errors_named(f"{path}: its shard {file} can't be read"):
        if not shard.is_file():
            raise WeightsError(f"{path}: its shard {file} is missing")
    if not io.is_remote(path):
        folders = {os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))}
        if os.path.dirname(os.path.realpath(shard)) not in folders:
            raise WeightsError(f"{path}: its shard {file} is a link to outside its folder")
    return shard


def _read_safetensors(path):
    """Views of the memory-mapped file, so that unused arrays take no memory."""
    with io.local_copy(path) as file:
        data = np.memmap(file, np.uint8, "r") if os.path.getsize(file) else np.zeros(0, np.uint8)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > len(data) - 8:
        raise WeightsError(f"{path}: no safetensors file, or a truncated one")
    if length > _LONGEST_HEADER:
        raise WeightsError(
            f"{path}: its header has {length:,} bytes; at most {_LONGEST_HEADER:,} are allowed"
        )
    with all_errors_named(f"{path}: no safetensors file: its header can't be read"):
        header = json.loads(data[8 : 8 + length].tobytes(), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("it is no JSON object")
        header.pop("__metadata__", None)
    return {name: _view(f"{path}: {name}", data[8 + length :], entry) for name, entry in header.items()}


def _unique(pairs):
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} is there twice")
    return unique


def _view(name, data, entry):
    dtype, shape, start, end = _entry(name, entry)
    kind = np.dtype(_DTYPES[dtype])
    if end - start != math.prod(shape) * kind.itemsize:
        raise WeightsError(f"{name} has {end - start} bytes, not those of {dtype}{shape}")
    if not 0 <= start <= end <= len(data):
        raise WeightsError(f"{name} ends after the file; the file is truncated")
    with all_errors_named(f"{name} can't have the shape {shape}"):
        return data[start:end].view(kind).reshape(shape)


def _entry(name, entry) -> tuple[str, list[int], int, int]:
    """(dtype, shape, start, end) of an array's entry in the header."""
    if not isinstance(entry, dict):
        raise WeightsError(f"{name} has {entry!r} in the header, not its dtype, shape and data_offsets")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise WeightsError(f"{name} is of dtype {dtype}; there are {', '.join(_DTYPES)}")
    if not _are_sizes(shape):
        raise WeightsError(f"{name} has the shape {shape!r}; it must be a list of whole numbers from 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(x) is int for x in offsets):
        raise WeightsError(f"{name} has the data_offsets {offsets!r}; they must be two whole numbers")
    return dtype, shape, *offsets


def _are_sizes(shape):
    return isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)


def _read_npz(path):
    with all_errors_named(f"{path}: no npz file, or a truncated one"):
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
    return arrays

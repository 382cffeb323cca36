"""Files of named arrays: reads and writes safetensors; reads PyTorch's zip archives and npz. None runs code.

Checkpoints that transformers sharded over several safetensors or PyTorch files are read through their index.
"""

import json
import math
import os
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from big_ssl import io
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
        if not (path.parent / file).is_file():
            raise WeightsError(f"{path}: its shard {file} is missing")
        shard = _read_file(path.parent / file)
        if missing := names - shard.keys():
            raise WeightsError(f"{path}: {min(missing)} is not in {file}, where it should be")
        if duplicates := tensors.keys() & shard.keys():
            raise WeightsError(f"{path}: {min(duplicates)} is in {file} and in another shard")
        tensors |= shard
    return tensors


def _shards(path) -> dict[str, set[str]]:
    """Reads an index: {file: names of its arrays}."""
    shards: dict[str, set[str]] = {}
    try:
        for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
            shards.setdefault(str(file), set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: no index of shards: it has no weight_map of names to files") from error
    return shards


def _read_safetensors(path):
    """Views of the memory-mapped file, so that unused arrays take no memory."""
    with io.local_copy(path) as file:
        data = np.memmap(file, np.uint8, "r") if os.path.getsize(file) else np.zeros(0, np.uint8)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > len(data) - 8:
        raise WeightsError(f"{path}: no safetensors file, or a truncated one")
    try:
        header = json.loads(data[8 : 8 + length].tobytes(), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        entries = {name: (e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()}
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: no safetensors file: its header can't be read") from error
    return {name: _view(path, data[8 + length :], name, *entry) for name, entry in entries.items()}


def _unique(pairs):
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        raise WeightsError(f"{next(key for key in keys if keys.count(key) > 1)} is there twice")
    return unique


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
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: no npz file, or a truncated one: {error}") from error

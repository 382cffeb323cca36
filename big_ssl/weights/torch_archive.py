"""Reads PyTorch's zip archives of state dicts and TorchScript modules, without PyTorch.

Unpickling resolves only the names below, none of which runs code, and none of which a file can change.
"""

import itertools
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import ml_dtypes
import numpy as np

from big_ssl import io
from big_ssl.weights.errors import WeightsError, all_errors_named

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# A pickle of tensors holds about a hundred bytes for each.
_LARGEST_PICKLE = 100_000_000
# Dicts that contain each other a few dozen times would have more entries than a computer can visit.
_MOST_ENTRIES = 1_000_000


def read_torch(path) -> dict[str, np.ndarray]:
    """Reads {name: array}; the names of nested dicts and modules are joined by dots.

    Raises WeightsError if the file is no such archive, or pickles anything but a state dict.
    """
    path = io.as_path(path)
    with all_errors_named(f"{path}: no PyTorch state dict"), path.open("rb") as opened:
        if not zipfile.is_zipfile(opened):
            raise WeightsError(
                f"{path}: no PyTorch zip archive, or a truncated one; one from before PyTorch 1.6 "
                "must be loaded and saved again there"
            )
        with zipfile.ZipFile(opened) as archive:
            return _read_archive(archive)


def _read_archive(archive):
    index = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
    if index is None:
        raise ValueError("a zip archive without PyTorch's data.pkl")
    folder = index.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and _stored(archive, f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are big-endian; load and save it again on a little-endian machine")
    content = _Unpickler(_checked_pickle(archive, index), archive, folder).load()
    arrays: dict[str, np.ndarray] = {}
    for name, value in _named(content, (), itertools.count()):
        if name in arrays:
            raise ValueError(f"{name} is there twice")
        arrays[name] = value
    return arrays


def _stored(archive, name) -> bytes:
    """A member's content, not larger than the file, since PyTorch compresses none of those read here."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, which PyTorch does not do")
    return archive.read(name)


def _checked_pickle(archive, name) -> BytesIO:
    """The pickle; its memo numbers, up to which unpickling allocates, must not exceed its instructions."""
    if archive.getinfo(name).file_size > _LARGEST_PICKLE:
        raise ValueError(f"{name} has more than {_LARGEST_PICKLE:,} bytes")
    pickled = _stored(archive, name)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        memo = argument if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") else None
        if isinstance(memo, int) and memo > count:
            raise ValueError(f"{name} has a memo number of {memo} after {count} instructions")
    return BytesIO(pickled)


class _Module:
    """Stands for a TorchScript module or an argparse.Namespace; keeps the attributes only."""

    def __setstate__(self, state):
        self.__dict__.update(state)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, archive, folder):
        super().__init__(file)
        self._archive, self._folder = archive, folder

    def find_class(self, module, name) -> Any:
        if module == "torch" and name in (*_STORAGES, "Tensor"):
            return name
        # Some training checkpoints also store the run's arguments.
        if module.startswith("__torch__") or (module, name) == ("argparse", "Namespace"):
            return _Module
        # Bound methods, since a pickle can replace the defaults of a function.
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): self._with_attributes,
        }
        if name == "_rebuild_wrapper_subclass" or module.startswith("torch.distributed."):
            raise ValueError(
                f"its tensors are no plain ones ({name}), such as a process's shards, which lack the shapes "
                "of the weights; save FSDP's FULL_STATE_DICT there, or read DINOv2's "
                "eval/*/teacher_checkpoint.pth"
            )
        if (module, name) not in allowed:
            raise ValueError(
                f"it pickles {module}.{name}, which would run code; only dicts of tensors are read"
            )
        return allowed[module, name]

    def persistent_load(self, pid):
        _, kind, key, *_ = pid
        return np.frombuffer(_stored(self._archive, f"{self._folder}data/{key}"), _STORAGES[kind])

    def _parameter(self, data, *_):
        return data

    def _with_attributes(self, rebuild, kind, arguments, attributes):
        """A tensor to which its training has added attributes, as FSDP does."""
        del attributes
        if kind != "Tensor" or rebuild not in (self._tensor, self._parameter):
            raise ValueError(f"it holds a tensor of the type {kind}, which is not read")
        return rebuild(*arguments)

    def _tensor(self, storage, offset, size, stride, *_):
        # Other kinds of number could overflow in the check below.
        if not all(type(x) is int for x in (offset, *size, *stride)):
            raise ValueError("a tensor's offset, sizes and strides must be whole numbers")
        if 0 in size:
            return np.zeros(size, storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(offset, *stride, *size, 0) < 0 or last >= len(storage):
            raise ValueError("a tensor reaches outside its storage")
        steps = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _named(content, path, entries) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (dotted name, array) for all arrays in nested dicts and modules; entries: counts visits."""
    if next(entries) > _MOST_ENTRIES:
        raise ValueError(f"it has more than {_MOST_ENTRIES:,} entries")
    if isinstance(content, np.ndarray):
        yield ".".join(path), content
    items = content.__dict__ if isinstance(content, _Module) else content
    if isinstance(items, dict):
        for key, value in items.items():
            yield from _named(value, (*path, str(key)), entries)

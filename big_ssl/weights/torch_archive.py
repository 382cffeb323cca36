"""Reads PyTorch's zip archives of state dicts and TorchScript modules, without PyTorch.

Unpickling resolves only the names below, none of which runs code.
"""

import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np

from big_ssl import io
from big_ssl.weights.errors import WeightsError

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


def read_torch(path) -> dict[str, np.ndarray]:
    """Reads {name: array}; the names of nested dicts and modules are joined by dots.

    Raises WeightsError if the file is no such archive, or pickles anything but a state dict.
    """
    try:
        with io.as_path(path).open("rb") as opened, zipfile.ZipFile(opened) as archive:
            index = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if index is None:
                raise WeightsError(f"{path}: a zip archive without PyTorch's data.pkl")
            with archive.open(index) as file:
                content = _Unpickler(file, archive, index.removesuffix("data.pkl")).load()
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"{path}: no PyTorch zip archive, or a truncated one; one from before PyTorch 1.6 "
            "must be loaded and saved again there"
        ) from error
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: no PyTorch state dict: {error}") from error
    return dict(_named(content, ()))


class _Module:
    """Stands for a TorchScript module or an argparse.Namespace; keeps the attributes only."""

    def __setstate__(self, state):
        self.__dict__.update(state)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, archive, folder):
        super().__init__(file)
        self._archive, self._folder = archive, folder

    def find_class(self, module, name) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        # Some training checkpoints also store the run's arguments.
        if module.startswith("__torch__") or (module, name) == ("argparse", "Namespace"):
            return _Module
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(
                f"it pickles {module}.{name}, which would run code; only dicts of tensors are read"
            )
        return allowed[module, name]

    def persistent_load(self, pid):
        _, dtype, key, *_ = pid
        return np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), dtype)


def _tensor(storage, offset, size, stride, *_):
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(offset, *stride, 0) < 0 or last >= len(storage):
        raise ValueError("a tensor reaches outside its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _named(content, path):
    """Yields (dotted name, array) for all arrays in nested dicts and modules."""
    if isinstance(content, np.ndarray):
        yield ".".join(path), content
    items = content.__dict__ if isinstance(content, _Module) else content
    if isinstance(items, dict):
        for key, value in items.items():
            yield from _named(value, (*path, str(key)))

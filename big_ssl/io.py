"""Paths of every command: local, gs:// or s3://, by etils.epath, and what object stores do unlike disks.

An object can't grow or be mapped, folders need no making, and a rename copies all that is below it.
"""

import contextlib
import importlib.util
import logging as python_logging
import os
import tempfile
import time
from collections.abc import Iterator

import fsspec
from absl import logging
from etils import epath

from big_ssl import retry

# Of each kind of bucket: the package that epath reads it by, and our extra that installs it.
_BUCKETS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
# How long lines may wait before they are sent to a bucket.
_FLUSH_SECONDS = 60.0

# Where TensorFlow is installed epath would read buckets by it, with other credentials and other errors.
os.environ.setdefault("EPATH_USE_TF", "false")
for _protocol in _BUCKETS:
    # What other hosts have written must be seen: a kept listing hides it.
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)
# They log what they raise besides, at length.
for _name in ("gcsfs", "google.auth"):
    python_logging.getLogger(_name).setLevel(python_logging.CRITICAL)


class PathError(OSError):
    """A path that can't be used here; the message is one line that says why."""


def as_path(path) -> epath.Path:
    """The path, local or in a bucket.

    Raises PathError where it is of another kind, or the package that reads it is missing.
    """
    scheme = _scheme(path)
    if scheme and scheme not in _BUCKETS:
        known = ", ".join(f"{name}://" for name in _BUCKETS)
        raise PathError(f"{path}: no {scheme}:// here; there are local paths, {known}")
    if scheme:
        package, extra = _BUCKETS[scheme]
        if importlib.util.find_spec(package) is None:
            raise PathError(f"{path}: {scheme}:// needs {package}: pip install 'big-ssl[{extra}]'")
    return epath.Path(path)


def is_remote(path) -> bool:
    """Whether a path lies in a bucket."""
    return bool(_scheme(path))


def absolute(path) -> epath.Path:
    """The path from the root; one in a bucket as it is."""
    return as_path(path) if is_remote(path) else as_path(os.path.abspath(path))


def make_folder(path) -> epath.Path:
    """Makes a local folder and those above it. In a bucket, where folders need no making, checks that the
    bucket exists: fsspec would create one for every misspelt name. Returns the path.

    Raises OSError, PathError where the bucket can't be reached.
    """
    path = as_path(path)
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
        return path
    bucket = "/".join(os.fspath(path).split("/")[:3])
    try:
        # By its first object: asking for the bucket itself needs a right that few jobs have.
        filesystem, name = fsspec.core.url_to_fs(bucket)
        filesystem.ls(name, refresh=True)
    except FileNotFoundError as error:
        raise PathError(f"{path}: there is no bucket {bucket}") from error
    except Exception as error:  # each client raises its own for credentials, rights and networks
        raise PathError(f"{path}: {bucket} can't be reached: {retry.one_line(error)}") from error
    return path


def write_atomically(path, content: bytes) -> None:
    """Writes a file, of which no reader sees a part; its folder is made where there is none. A bucket that
    does not answer is asked again."""
    path = as_path(path)
    if is_remote(path):  # an object is there when it is whole
        retry.call(_put, path, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


@contextlib.contextmanager
def local_copy(path) -> Iterator[str]:
    """The path of a file on this machine, for what must map it: its own, or a copy's. The copy is gone
    afterwards, but what has been mapped by then stays mapped. Raises FileNotFoundError."""
    path = as_path(path)
    if not is_remote(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, path.name)
        filesystem, name = fsspec.core.url_to_fs(os.fspath(path))
        filesystem.get_file(name, copy)
        yield copy


def upload(folder, path) -> None:
    """Copies all that is below a local folder to a folder in a bucket."""
    filesystem, name = fsspec.core.url_to_fs(os.fspath(as_path(path)))
    filesystem.put(f"{os.fspath(folder)}/", f"{name}/", recursive=True)


class GrowingFile:
    """A file to whose end a run adds, again and again, for weeks.

    On a disk, `write` returns when the content is there. In a gs:// bucket content waits until `flush` or
    `close`, or the first `write` after a minute; it is then sent as an object of its own, which the store
    appends to the file by itself: what has been sent is never sent again. What can't be sent is kept for the
    next try, with a warning.
    """

    def __init__(self, path):
        self._path, self._waiting = as_path(path), bytearray()
        self._remote, self._due = is_remote(path), time.monotonic() + _FLUSH_SECONDS
        self._length = self._path.stat().length if self._remote and self._path.exists() else 0

    def write(self, content: bytes) -> None:
        """Adds to the end."""
        if not self._remote:
            with self._path.open("ab") as file:
                file.write(content)
            return
        self._waiting += content
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Sends what waits."""
        if not self._waiting:
            return
        self._due = time.monotonic() + _FLUSH_SECONDS
        try:
            self._send(bytes(self._waiting))
        except Exception as error:  # gcsfs has tried several times; a run must not end for its curves
            size = len(self._waiting)
            logging.warning("%s: %d bytes wait for the next try: %s", self._path, size, retry.one_line(error))
            return
        self._length += len(self._waiting)
        self._waiting.clear()

    close = flush

    def _send(self, content):
        """Makes the object as long as it should be, whatever became of tries before this one."""
        wanted = self._length + len(content)
        if not self._length:
            _put(self._path, content)
            return
        there = self._path.stat().length
        if there == self._length:
            tail = self._path.with_name(f".{self._path.name}.tail")
            _put(tail, content)
            filesystem, name = fsspec.core.url_to_fs(os.fspath(self._path))
            filesystem.merge(name, [name, filesystem._strip_protocol(os.fspath(tail))])
            tail.unlink(missing_ok=True)  # a request sent twice finds nothing
            there = self._path.stat().length
        if there != wanted:  # an answer was lost on its way, and the request sent twice
            _put(self._path, self._path.read_bytes()[: self._length] + content)


def _put(path, content):
    """Writes an object in one request, which its client can send again when no answer comes. A file that is
    opened for writing takes several, of which the last fails when it is sent again."""
    filesystem, name = fsspec.core.url_to_fs(os.fspath(path))
    filesystem.pipe_file(name, content)


def _scheme(path):
    scheme, separator, _ = os.fspath(path).partition("://")
    return scheme if separator else ""

"""Paths of all commands, local, gs:// or s3://, by etils.epath, and operations that differ on object stores.

An object can't be appended to or memory-mapped, folders do not exist, and a rename copies everything below.
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

# {scheme: (the package that epath needs, our extra that installs it)}.
_BUCKETS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
# The longest time that lines wait before they are sent to a bucket.
_FLUSH_SECONDS = 60.0

# With TensorFlow installed, epath would use it for buckets, with other credentials and other errors.
os.environ.setdefault("EPATH_USE_TF", "false")
for _protocol in _BUCKETS:
    # A cached listing would hide what other hosts have written.
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)
# They also log the errors that they raise, at length.
for _name in ("gcsfs", "google.auth"):
    python_logging.getLogger(_name).setLevel(python_logging.CRITICAL)


class PathError(OSError):
    """A path that can't be used; the message is one line with the reason."""


def folder_of(path) -> epath.Path:
    """The path if it is a folder, else the folder that a file of this path lies in."""
    path = as_path(path)
    return path if path.is_dir() else path.parent


def as_path(path) -> epath.Path:
    """Converts to an epath, local or in a bucket.

    Raises PathError for another scheme, or if the scheme's package is missing.
    """
    scheme = _scheme(path)
    if scheme and scheme not in _BUCKETS:
        known = ", ".join(f"{name}://" for name in _BUCKETS)
        raise PathError(f"{path}: {scheme}:// is not supported; use a local path, {known}")
    if scheme:
        package, extra = _BUCKETS[scheme]
        if importlib.util.find_spec(package) is None:
            raise PathError(f"{path}: {scheme}:// needs {package}: pip install 'big-ssl[{extra}]'")
    return epath.Path(path)


def is_remote(path) -> bool:
    """Whether a path is in a bucket."""
    return bool(_scheme(path))


def absolute(path) -> epath.Path:
    """The absolute path; a bucket's path is unchanged."""
    return as_path(path) if is_remote(path) else as_path(os.path.abspath(path))


def make_folder(path) -> epath.Path:
    """Makes a local folder and its parents, or checks that the path's bucket exists; returns the path.

    The check is needed because fsspec would create a bucket for every misspelt name. Raises OSError, or
    PathError if the bucket can't be reached.
    """
    path = as_path(path)
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
        return path
    bucket = "/".join(os.fspath(path).split("/")[:3])
    try:
        # Lists its objects: querying the bucket itself needs a permission that few jobs have.
        filesystem, name = fsspec.core.url_to_fs(bucket)
        filesystem.ls(name, refresh=True)
    except FileNotFoundError as error:
        raise PathError(f"{path}: there is no bucket {bucket}") from error
    except Exception as error:  # each client has its own errors for credentials, permissions and networks
        raise PathError(f"{path}: {bucket} can't be reached: {retry.one_line(error)}") from error
    return path


def write_atomically(path, content: bytes) -> None:
    """Writes a file so that readers see all of it or nothing; makes its folder, and retries on a bucket."""
    path = as_path(path)
    if is_remote(path):  # an object appears when it is complete
        retry.call(_put, path, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


@contextlib.contextmanager
def local_copy(path) -> Iterator[str]:
    """Yields a local path of the file, for memory-mapping: its own, or a temporary copy's.

    The copy is deleted on exit; mappings made inside stay valid. Raises FileNotFoundError.
    """
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
    """Copies a local folder's content to a folder in a bucket."""
    filesystem, name = fsspec.core.url_to_fs(os.fspath(as_path(path)))
    filesystem.put(f"{os.fspath(folder)}/", f"{name}/", recursive=True)


class GrowingFile:
    """A file that a run appends to for weeks.

    On a disk, `write` returns when the content is written. For a gs:// bucket, content is buffered until
    `flush`, `close` or the first `write` after a minute; it is then sent as an object, which the store itself
    appends to the file, so nothing is sent twice. Content that can't be sent stays buffered, with a warning.
    """

    def __init__(self, path):
        self._path, self._buffer = as_path(path), bytearray()
        self._remote, self._due = is_remote(path), time.monotonic() + _FLUSH_SECONDS
        self._length = self._path.stat().length if self._remote and self._path.exists() else 0

    def write(self, content: bytes) -> None:
        """Appends content."""
        if not self._remote:
            with self._path.open("ab") as file:
                file.write(content)
            return
        self._buffer += content
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Sends the buffer."""
        if not self._buffer:
            return
        self._due = time.monotonic() + _FLUSH_SECONDS
        try:
            self._send(bytes(self._buffer))
        except Exception as error:  # gcsfs has retried; a run must not fail because of its curves
            size = len(self._buffer)
            logging.warning("%s: %d bytes wait for the next try: %s", self._path, size, retry.one_line(error))
            return
        self._length += len(self._buffer)
        self._buffer.clear()

    close = flush

    def _send(self, content):
        """Appends content to the object, whatever earlier tries did."""
        expected = self._length + len(content)
        if not self._length:
            _put(self._path, content)
            return
        actual = self._path.stat().length
        if actual == self._length:
            tail = self._path.with_name(f".{self._path.name}.tail")
            _put(tail, content)
            filesystem, name = fsspec.core.url_to_fs(os.fspath(self._path))
            filesystem.merge(name, [name, filesystem._strip_protocol(os.fspath(tail))])
            tail.unlink(missing_ok=True)  # a repeated request finds nothing
            actual = self._path.stat().length
        if actual != expected:  # a response was lost, and the request repeated
            _put(self._path, self._path.read_bytes()[: self._length] + content)


def _put(path, content):
    """Writes an object in one request, which the client can repeat after a lost response.

    A file opened for writing takes several requests, and the last one fails if it is repeated.
    """
    filesystem, name = fsspec.core.url_to_fs(os.fspath(path))
    filesystem.pipe_file(name, content)


def _scheme(path):
    scheme, separator, _ = os.fspath(path).partition("://")
    return scheme if separator else ""

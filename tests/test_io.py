"""Paths on a disk and in emulated buckets."""

import importlib.util
import subprocess
import sys

import fsspec
import numpy as np
import pytest

from big_ssl import io, retry
from big_ssl.io import GrowingFile


@pytest.fixture(params=["local", "gs", "s3"])
def folder(request, tmp_path):
    """An empty folder of each kind."""
    fixture = dict(gs="gcs_folder", s3="s3_folder").get(request.param)
    return io.as_path(request.getfixturevalue(fixture) if fixture else tmp_path)


def test_other_schemes_are_an_error():
    with pytest.raises(
        io.PathError, match=r"^http://a/b: http:// is not supported; use a local path, gs://, s3://$"
    ):
        io.as_path("http://a/b")


@pytest.mark.parametrize(
    ("path", "package", "extra"), [("gs://b/a", "gcsfs", "gcs"), ("s3://b/a", "s3fs", "s3")]
)
def test_the_error_for_a_missing_client_names_its_extra(monkeypatch, path, package, extra):
    there = importlib.util.find_spec
    missing = lambda name, *_: None if name == package else there(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    with pytest.raises(io.PathError) as error:
        io.as_path(path)
    assert str(error.value) == f"{path}: {path[:2]}:// needs {package}: pip install 'big-ssl[{extra}]'"


def test_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert str(io.absolute("gs://bucket/run")) == "gs://bucket/run"
    assert str(io.absolute("run")) == str(tmp_path / "run")


def test_files_are_written_atomically_without_leftovers(folder):
    io.write_atomically(folder / "a" / "b.txt", b"old")
    io.write_atomically(folder / "a" / "b.txt", b"new")
    assert (folder / "a" / "b.txt").read_bytes() == b"new"
    assert [path.name for path in (folder / "a").iterdir()] == ["b.txt"]


@pytest.fixture
def requests(monkeypatch):
    """requests(change): change(method) is called before every request to a gs:// bucket, and may raise."""
    filesystem = type(fsspec.filesystem("gs"))
    request = filesystem._request

    def patch(change):
        async def changed(self, method, *arguments, **options):
            change(method)
            return await request(self, method, *arguments, **options)

        monkeypatch.setattr(filesystem, "_request", changed)

    return patch


def test_an_object_is_written_by_one_request(gcs_folder, requests):
    methods: list[str] = []
    requests(methods.append)
    io.write_atomically(f"{gcs_folder}/a.txt", b"new")
    assert methods == ["POST"]


def test_writes_to_an_unresponsive_bucket_are_retried(gcs_folder, requests, monkeypatch):
    errors = [TimeoutError(), TimeoutError()]  # as gcsfs raises them

    def fail(method):
        if errors:
            raise errors.pop()

    requests(fail)
    monkeypatch.setattr(retry, "sleep", lambda seconds: None)
    io.write_atomically(f"{gcs_folder}/a.txt", b"new")
    assert io.as_path(f"{gcs_folder}/a.txt").read_bytes() == b"new"


def test_a_mapping_of_a_local_copy_stays_valid(folder):
    content = np.arange(1000, dtype=np.uint8)
    io.make_folder(folder)
    (folder / "x.bin").write_bytes(content.tobytes())
    with io.local_copy(folder / "x.bin") as file:
        mapped = np.memmap(file, np.uint8, "r")
    np.testing.assert_array_equal(mapped, content)


def test_a_missing_bucket_is_an_error_and_not_created(gcs):
    with pytest.raises(io.PathError, match=r"^gs://misspelt/run: there is no bucket gs://misspelt$"):
        io.make_folder("gs://misspelt/run")
    assert not fsspec.filesystem("gs").exists("gs://misspelt")


def test_files_written_by_other_processes_are_listed(gcs_folder):
    folder = io.as_path(gcs_folder)
    (folder / "first").write_bytes(b"1")
    assert [path.name for path in folder.iterdir()] == ["first"]
    script = f"from etils import epath; epath.Path('{folder}/second').write_bytes(b'2')"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (folder / "second").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["first", "second"]


@pytest.mark.parametrize("folder", ["local", "gs"], indirect=True)
def test_a_growing_file_appends(folder):
    for segment in range(2):  # a resumed run appends to the existing file
        file = GrowingFile(folder / "m.jsonl")
        for line in range(3):
            file.write(f"{segment} {line}\n".encode())
            file.flush()
        file.close()
    assert (folder / "m.jsonl").read_text() == "0 0\n0 1\n0 2\n1 0\n1 1\n1 2\n"
    assert [path.name for path in folder.iterdir()] == ["m.jsonl"]


@pytest.fixture
def sent(monkeypatch):
    """Counts the bytes that are sent to buckets."""
    sizes = []
    write = GrowingFile._send
    monkeypatch.setattr(
        GrowingFile, "_send", lambda self, content: sizes.append(len(content)) or write(self, content)
    )
    return sizes


def test_lines_are_buffered_for_a_minute_and_sent_once(gcs_folder, monkeypatch, sent):
    now = [1000.0]
    monkeypatch.setattr(io.time, "monotonic", lambda: now[0])
    file = GrowingFile(io.as_path(gcs_folder) / "m.jsonl")
    for _ in range(120):
        now[0] += 1.0
        file.write(b"0123456789\n")
    assert sent == [60 * 11, 60 * 11]
    assert len(file._path.read_bytes()) == 120 * 11


class _Lost(Exception):
    """The response of a store after the request was applied."""


@pytest.mark.parametrize("applied", [0, 1, 2])
def test_a_lost_response_neither_loses_nor_repeats_lines(gcs_folder, monkeypatch, applied):
    file = GrowingFile(io.as_path(gcs_folder) / "m.jsonl")
    file.write(b"one\n")
    file.flush()
    filesystem = fsspec.filesystem("gs")
    merge = type(filesystem).merge

    def losing(self, *arguments):
        for _ in range(applied):
            merge(self, *arguments)
        raise _Lost

    file.write(b"two\n")
    with monkeypatch.context() as patch:
        patch.setattr(type(filesystem), "merge", losing)
        file.flush()
    file.write(b"three\n")
    file.close()
    assert file._path.read_text() == "one\ntwo\nthree\n"

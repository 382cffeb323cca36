"""Storage emulators on the loopback address: buckets for tests and for rehearsals, without a network.

    eval "$(python -m tests.emulators gcs &)"      # or s3
    python -m big_ssl.main --config=configs/align_l2.py:tiny --workdir=$BUCKET/run
    kill $EMULATOR

It prints `export NAME=VALUE` lines and serves until it is killed. Every process with these variables reads
and writes the emulator by gs:// (or s3://): fsspec, orbax, JAX's compilation cache.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import pytest

_START_SECONDS = 30


class Emulator(NamedTuple):
    """bucket: an existing "gs://…" or "s3://…"; environment: the variables that direct clients to the
    emulator;
    address: "http://localhost:PORT"."""

    bucket: str
    environment: dict[str, str]
    address: str


def _gcs_command(port):
    module = ["-m", "gcp_storage_emulator", "start", f"--port={port}", "--host=localhost"]
    return [sys.executable, *module, "--in-memory", "--default-bucket=bucket", "--quiet"]


def _gcs_environment(address):
    return dict(
        STORAGE_EMULATOR_HOST=address,  # gcsfs and google-cloud-storage
        TENSORSTORE_GCS_HTTP_URL=address,  # orbax's arrays
        CLOUD_STORAGE_EMULATOR_ENDPOINT=address,  # array_record's own client
        NO_GCE_CHECK="true",  # does not look for a metadata server
        GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",  # uses gRPC, which no emulator supports
    )


def environment(kind: str, address: str) -> dict[str, str]:
    """The variables that direct clients to an emulator at "http://localhost:PORT", or to a proxy of it."""
    return _KINDS[kind][1](address)


def _s3_command(port):
    return [sys.executable, "-m", "moto.server", f"--port={port}", "--host=localhost"]


def _s3_environment(address):
    # moto accepts any key.
    keys = dict(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any", AWS_DEFAULT_REGION="us-east-1")
    return keys | dict(AWS_ENDPOINT_URL=address, AWS_EC2_METADATA_DISABLED="true")


# {kind: (command, environment of clients, bucket)}.
_KINDS = {
    "gcs": (_gcs_command, _gcs_environment, "gs://bucket"),
    "s3": (_s3_command, _s3_environment, "s3://bucket"),
}


@contextlib.contextmanager
def start(kind: str) -> Iterator[Emulator]:
    """Runs an emulator with an empty bucket inside the context. kind: "gcs" or "s3"."""
    command, _, bucket = _KINDS[kind]
    address = f"http://localhost:{_free_port()}"
    port = address.rpartition(":")[2]
    process = subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(address, process)
        if kind == "s3":
            _request(f"{address}/bucket", "PUT")
        yield Emulator(bucket, environment(kind, address), address)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def gcs():
    """A Google Cloud Storage emulator, in the environment of this process and its children."""
    yield from _in_environment("gcs")


@pytest.fixture(scope="session")
def s3():
    """An S3 emulator, likewise."""
    yield from _in_environment("s3")


@pytest.fixture
def gcs_folder(gcs):
    """The path of an empty folder in a gs:// bucket."""
    return f"{gcs.bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def s3_folder(s3):
    """The path of an empty folder in an s3:// bucket."""
    return f"{s3.bucket}/{uuid.uuid4().hex}"


def _in_environment(kind):
    with start(kind) as emulator, pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        yield emulator


def _wait(address, process):
    """Waits until the emulator responds."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return _request(address, "GET")
        time.sleep(0.05)
    raise RuntimeError(f"{shlex.join(process.args)} does not answer")


def _request(url, method):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        if method == "GET":  # any response shows that it runs
            return error.code
        raise


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def main(kind: str) -> None:
    """Prints the variables and serves until Ctrl-C or `kill`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with start(kind) as emulator:
        for name, value in (
            emulator.environment | dict(BUCKET=emulator.bucket, EMULATOR=str(os.getpid()))
        ).items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        os.close(sys.stdout.fileno())  # eval "$(python -m tests.emulators gcs &)" waits for its end
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])

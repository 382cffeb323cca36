"""Multi-process start-up, error propagation and shutdown, with one process per host or per GPU."""

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

USAGE = "'' (one process), 'auto' (TPU pod, GKE, Slurm, Open MPI) or HOST:PORT,PROCESSES,INDEX"

# JAX's own 100 seconds have dropped hosts that were busy compiling a large step.
HEARTBEAT_SECONDS = 600
# A process that fails alone waits at most this long for the others to fail as well.
_FAREWELL_SECONDS = 20


class Address(NamedTuple):
    """The coordinator's "HOST:PORT", the number of processes and this process's index."""

    coordinator: str
    processes: int
    process: int


class StartupError(RuntimeError):
    """The processes could not connect; the message names the attempt in one line."""


def parse(value: str) -> Address | None:
    """Parses "HOST:PORT,PROCESSES,INDEX"; returns None for "" and "auto".

    Raises ValueError, with the right format in its message, for everything else.
    """
    if value in ("", "auto"):
        return None
    coordinator, *counts = value.split(",")
    host, _, port = coordinator.rpartition(":")
    integers = [int(text) for text in (port, *counts) if text.isascii() and text.isdecimal()]
    if not host or len(counts) != 2 or len(integers) != 3 or not 0 < integers[0] < 2**16:
        raise ValueError(f"--distributed={value}: must be {USAGE}, such as localhost:12345,2,0")
    _, processes, process = integers
    if process >= processes:
        raise ValueError(f"--distributed={value}: INDEX {process} must be below PROCESSES {processes}")
    return Address(coordinator, processes, process)


def start(value: str, heartbeat: int = HEARTBEAT_SECONDS, seconds: int = 300) -> None:
    """Connects this process to the others. Call it before anything queries JAX's devices.

    If the others don't connect in time, the process exits with code 2 and one line: JAX itself would abort
    in C++.

    Args:
      value: the --distributed flag, see `parse`.
      heartbeat: seconds of silence after which a process counts as dead and the others exit.
      seconds: how long to wait for all processes.

    Raises:
      StartupError: if no cluster is detected, the port is taken, or no device is left for this process.
    """
    if not value:
        return
    address = parse(value)
    options: dict = dict(initialization_timeout=seconds + 60, heartbeat_timeout_seconds=heartbeat)
    if address:
        _check_port(value, address)
        options |= dict(zip(("coordinator_address", "num_processes", "process_id"), address, strict=True))
        options |= dict(cluster_detection_method="deactivate")
    timer = threading.Timer(seconds, _give_up, [value, seconds])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**options)
        jax.local_devices()  # fails if there are more processes than devices
    except ValueError as error:  # JAX's cluster detection found nothing
        raise StartupError(
            f"--distributed={value}: no cluster detected here ({error}); "
            "give every process HOST:PORT,PROCESSES,INDEX"
        ) from error
    except RuntimeError as error:
        raise StartupError(f"--distributed={value}: {str(error).splitlines()[0]}") from error
    finally:
        timer.cancel()


# Whether this process is inside `raise_on_all_hosts`, where it must not wait for another host.
_inside = False


@contextlib.contextmanager
def raise_on_all_hosts(kind: type[Exception]) -> Iterator[None]:
    """Raises an error of one host on all hosts, so that none waits for one that left. Also a decorator.

    All hosts must enter it. Inside, a host must not wait for another, which may have failed and left. The
    failed host raises its own error; the others raise `kind`, whose message names the process and its error.
    """
    global _inside
    _check_not_inside()
    _inside, error = True, None
    try:
        yield
    except Exception as caught:
        error = caught
    finally:
        _inside = False
    messages = gather("" if error is None else _describe(error, kind))
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message:
            raise kind(f"process {process}: {message}")


def all_hosts_agree(yes: bool) -> bool:
    """Whether `yes` is true on all processes; all of them must call it."""
    return not any(gather("" if yes else "no"))


def gather(text: str) -> list[str]:
    """The texts of all processes, in process order; all of them must call it."""
    _check_not_inside()
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(errors="replace"), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data), np.int32))
    if not sizes.any():
        return [""] * len(sizes)
    # Padded to a power of two, so that few lengths are compiled.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def _check_not_inside():
    """A failed host would wait at the outer collective while the others wait at the inner one."""
    if _inside:
        raise RuntimeError("inside raise_on_all_hosts no host may wait for another")


def _describe(error, kind):
    text = str(error) or type(error).__name__
    return text if isinstance(error, kind) else f"{type(error).__name__}: {text}"


def shutdown(code: int) -> None:
    """Shuts down the distributed runtime; with code != 0 it also exits this process.

    A successful run synchronises all processes here. A failed process does not return: it prints the current
    exception, waits a little for the others, which may have failed for the same reason, and exits without
    JAX's shutdown barrier. The others then hang in the middle of a step until JAX aborts them: at once if
    process 0 failed, because they keep a connection to it, otherwise after the heartbeat timeout.
    """
    if not jax.distributed.is_initialized():
        return
    if code == 0:
        jax.distributed.shutdown()
        return
    if sys.exc_info()[0] is not None:
        traceback.print_exc()
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(_FAREWELL_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _check_port(value, address):
    """Raises StartupError if process 0 can't listen: jaxlib 0.10 would crash."""
    if address.process == 0:
        try:
            socket.create_server(("", int(address.coordinator.rpartition(":")[2]))).close()
        except OSError as error:
            raise StartupError(
                f"--distributed={value}: can't listen on that port: {error.strerror}"
            ) from error


def _give_up(value, seconds):
    print(
        f"--distributed={value}: not all processes had come together after {seconds} s; is process 0 "
        "running, can its port be reached, and was every process started with another index?",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)

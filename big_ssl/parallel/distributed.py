"""Start-up and end of a run of several processes, one a host or one a GPU."""

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
# A process that fails alone does not wait longer than this for the others to fail as well.
_FAREWELL_SECONDS = 20


class Address(NamedTuple):
    """Where process 0 listens ("HOST:PORT"), how many processes there are, which of them this is."""

    coordinator: str
    processes: int
    process: int


class StartupError(RuntimeError):
    """The processes did not find one another; the message says what was tried, in a line."""


def parse(value: str) -> Address | None:
    """The address in "HOST:PORT,PROCESSES,INDEX"; None for "" and "auto".

    Raises ValueError, which says what would be right, for everything else.
    """
    if value in ("", "auto"):
        return None
    coordinator, *numbers = value.split(",")
    host, _, port = coordinator.rpartition(":")
    whole = [int(text) for text in (port, *numbers) if text.isascii() and text.isdecimal()]
    if not host or len(numbers) != 2 or len(whole) != 3 or not 0 < whole[0] < 2**16:
        raise ValueError(f"--distributed={value}: must be {USAGE}, such as localhost:12345,2,0")
    _, processes, process = whole
    if process >= processes:
        raise ValueError(f"--distributed={value}: INDEX {process} must be below PROCESSES {processes}")
    return Address(coordinator, processes, process)


def start(value: str, heartbeat: int = HEARTBEAT_SECONDS, seconds: int = 300) -> None:
    """Joins this process to the others, before anything asks JAX for a device.

    value: as `parse` takes it; heartbeat: after how many seconds of silence a process counts as
    dead and the others end; seconds: how long to wait for all to come. Raises StartupError
    where there is no cluster to detect, the port is taken, or no device is left for this process.
    Where the others don't come, the process ends here with exit code 2 and one line: JAX itself
    would abort in C++.
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
        jax.local_devices()  # fails where there are more processes than devices to share out
    except ValueError as error:  # of JAX's cluster detection, which found nothing
        raise StartupError(
            f"--distributed={value}: no cluster detected here ({error}); "
            "give every process HOST:PORT,PROCESSES,INDEX"
        ) from error
    except RuntimeError as error:
        raise StartupError(f"--distributed={value}: {str(error).splitlines()[0]}") from error
    finally:
        timer.cancel()


# Whether this process is inside `raise_on_all_hosts`, where nothing may wait for another host.
_inside = False


@contextlib.contextmanager
def raise_on_all_hosts(kind: type[Exception]) -> Iterator[None]:
    """What raises on one host raises on all, so that none waits for one that left. Also a decorator.

    To be entered by all hosts. Inside, a host must not wait for another: one that fails has left.
    It raises its own error; the others raise `kind`, whose message names the process and its error.
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
    messages = gather("" if error is None else _described(error, kind))
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message:
            raise kind(f"process {process}: {message}")


def all_hosts_agree(yes: bool) -> bool:
    """Whether all processes say yes; to be asked by all of them."""
    return not any(gather("" if yes else "no"))


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order; to be called by all of them."""
    _check_not_inside()
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(errors="replace"), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data), np.int32))
    if not sizes.any():
        return [""] * len(sizes)
    # A power of two, so that few lengths are compiled.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def _check_not_inside():
    """Where a host that fails waits at an outer agreement, the others would wait at the inner one."""
    if _inside:
        raise RuntimeError("inside raise_on_all_hosts no host may wait for another")


def _described(error, kind):
    text = str(error) or type(error).__name__
    return text if isinstance(error, kind) else f"{type(error).__name__}: {text}"


def shutdown(code: int) -> None:
    """Ends this process's part with exit code `code`, in step with the others.

    At the end of a run all processes meet here. One that failed does not return: it prints the
    exception being handled, if there is one, waits a little for the others, which may have
    failed for the same reason, and ends at once, without the meeting at exit that JAX would
    wait for. The others then wait for it in the middle of a step, and JAX aborts them: at once
    if it was process 0, with which they keep a connection, else after the heartbeat timeout.
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
    """Raises StartupError where process 0 can't listen: jaxlib 0.10 would crash on it."""
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

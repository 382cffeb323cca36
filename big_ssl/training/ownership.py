"""A lock on the workdir, for one run at a time: workdir/owner.json names the process that trains there.

The owner renews the file every few seconds. Another run checks whether the owner's process is alive if it is
on the same machine, and otherwise watches whether the file still changes. So a killed run blocks nobody, on
local disks, NFS and buckets. Process 0 owns the workdir for all processes.
"""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax
from absl import logging

from big_ssl import io, retry
from big_ssl.parallel import distributed
from big_ssl.training import progress
from big_ssl.training.phases import phase
from big_ssl.training.requirements import RequirementsError, check_checkpoint_path, unwritable

FILE = "owner.json"
# The owner renews the file at this interval, and counts as dead after this silence.
RENEWAL_SECONDS, LEASE_SECONDS = 10.0, 40.0
# Clocks differ by less than a day, so an owner on another machine that is this late is dead.
_LONG_DEAD_SECONDS = 86_400.0


@contextlib.contextmanager
def owned(workdir) -> Iterator[None]:
    """Makes this run the workdir's owner; all processes must enter it.

    Raises RequirementsError if another run owns the workdir, it can't be written, or it is not the same
    folder on all processes.
    """
    path, lease = io.as_path(workdir), None
    try:
        with distributed.raise_on_all_hosts(RequirementsError):
            if jax.process_index() == 0:
                lease = _take(path)
        token = distributed.gather(lease.token if lease else "")[0]
        with phase(f"reading {workdir}/{FILE}"):
            if jax.process_index() > 0 and (_read(path / FILE) or {}).get("token") != token:
                raise RequirementsError(
                    f"workdir {workdir} is a folder of its own on process {jax.process_index()}; "
                    "all processes must share one (gs://, NFS)"
                )
        yield
    finally:
        if lease:
            lease.release()


class _Lease:
    """The file, renewed by a background thread until it is released."""

    def __init__(self, file):
        self._file, self.token = file, secrets.token_hex(8)
        self._owner = _this_process() | dict(token=self.token, since=time.time())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def write(self):
        # Atomically: another process may be reading it.
        io.write_atomically(self._file, json.dumps(self._owner | dict(renewed=time.time())).encode())

    def start(self):
        self._thread.start()

    def _renew(self):
        while not self._done.wait(RENEWAL_SECONDS):
            try:
                owner = _read(self._file)
                if owner and owner.get("token") not in (self.token, None):
                    _exit(self._file.parent, owner)
                self.write()
            except Exception as error:  # may be transient, from any client: the lease outlives a few
                logging.warning("%s can't be written: %s", self._file, retry.one_line(error))

    def release(self):
        self._done.set()
        self._thread.join()
        try:
            if (_read(self._file) or {}).get("token") == self.token:
                self._file.unlink(missing_ok=True)
        except Exception as error:  # a lease that is not renewed expires
            logging.warning("%s can't be removed: %s", self._file, retry.one_line(error))


def _take(workdir):
    """Acquires the workdir; returns the renewing lease. Raises RequirementsError if another run owns it."""
    lease = _Lease(workdir / FILE)
    remote = io.is_remote(workdir)
    check_checkpoint_path(workdir)
    try:
        io.make_folder(workdir)
        while True:
            try:
                _create(workdir / FILE)
                settled = not remote
            except FileExistsError:
                _check_dead(workdir)
                settled = False
            lease.write()
            # If two runs found the workdir free, the last writer wins, and the first reads the other's token.
            time.sleep(0 if settled else 2 if remote else 0.2)
            if (_read(workdir / FILE) or {}).get("token") == lease.token:
                lease.start()
                return lease
    except OSError as error:
        raise unwritable(workdir, error) from error


def _create(file):
    """Creates the file; raises FileExistsError if it exists. On disks and NFS only one of two succeeds."""
    if not io.is_remote(file):
        pathlib.Path(file).touch(exist_ok=False)
    elif file.exists():
        raise FileExistsError(file)


def _check_dead(workdir):
    """Raises RequirementsError if the file's owner is alive."""
    owner = _read(workdir / FILE)
    alive = _is_alive(owner) if owner else None
    if alive is None:
        progress.console.print(
            f"workdir {workdir} was last used by {_name(owner)}; waiting up to {LEASE_SECONDS:.0f} s to see "
            "whether it still runs"
        )
        alive = _still_renewed(workdir / FILE)
        owner = (alive and _read(workdir / FILE)) or owner
    if alive:
        since = datetime.datetime.fromtimestamp((owner or {}).get("since", time.time()), datetime.UTC)
        raise RequirementsError(
            f"workdir {workdir} is in use: {_name(owner)} has been training in it since "
            f"{since:%Y-%m-%d %H:%M:%S} UTC; stop it first, or give another --workdir"
        )


def _is_alive(owner: Mapping) -> bool | None:
    """Whether the owner's process runs; None if that is unknown, as on another machine."""
    here = _this_process()
    if here["machine"] and owner.get("machine") == here["machine"]:
        return owner["began"] == _began(owner["pid"])
    if time.time() - owner.get("renewed", 0) > _LONG_DEAD_SECONDS:
        return False
    return None


def _still_renewed(file):
    """Whether the file changes within the longest silence of a living owner."""
    first, deadline = _text(file), time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, LEASE_SECONDS / 10))
        current = _text(file)
        if current is None:  # released
            return False
        if current != first:
            return True
    return False


def _this_process():
    """Identifies this process, so that another one on this machine can check whether it runs."""
    return dict(host=platform.node(), pid=os.getpid(), began=_began(os.getpid()), machine=_machine())


def _machine():
    """This machine's boot id and PID namespace, which each container has of its own; "" if unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(pid):
    """A process's start time in kernel ticks, since PIDs are reused; None if it does not run."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie is dead


def _read(file):
    """The file's owner; None without a file, {} while it is being written."""
    text = _text(file)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _text(file):
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


def _name(owner):
    return f"process {owner['pid']} on {owner['host']}" if owner else "a run that is just starting"


def _exit(workdir, owner):
    """Exits the run that lost the workdir: two runs would corrupt each other's checkpoints."""
    print(f"workdir {workdir} was taken by {_name(owner)}; ending", file=sys.stderr, flush=True)
    os._exit(2)

"""One run at a time in a workdir: workdir/owner.json names the process that trains there.

Its owner writes the file anew every few seconds. A run that finds the file asks the machine whether the
owner is alive, where it is the same machine, else waits to see whether the file still changes: so a run
that was killed keeps nobody out, on local disks, NFS and buckets. Process 0 owns the workdir for all.
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
# The owner writes the file so often, and counts as dead when it has not for so long.
RENEWAL_SECONDS, LEASE_SECONDS = 10.0, 40.0
# No machine's clock is a day wrong, so an owner of another machine that is this late is dead.
_LONG_DEAD_SECONDS = 86_400.0


@contextlib.contextmanager
def owned(workdir) -> Iterator[None]:
    """Makes this run the workdir's owner; to be entered by all processes.

    Raises RequirementsError where another run owns it, where it can't be written, and where it is
    not the same folder for all processes.
    """
    path, lease = io.as_path(workdir), None
    try:
        with distributed.raise_on_all_hosts(RequirementsError):
            if jax.process_index() == 0:
                lease = _take(path)
        token = distributed.gather(lease.token if lease else "")[0]
        with phase(f"looking for {workdir}/{FILE}"):
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
    """The file, written again and again by a thread of its own until it is released."""

    def __init__(self, file):
        self._file, self.token = file, secrets.token_hex(8)
        self._owner = _this_process() | dict(token=self.token, since=time.time())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def write(self):
        # Whole or not at all: another process may be reading it.
        io.write_atomically(self._file, json.dumps(self._owner | dict(renewed=time.time())).encode())

    def start(self):
        self._thread.start()

    def _keep(self):
        while not self._done.wait(RENEWAL_SECONDS):
            try:
                owner = _read(self._file)
                if owner and owner.get("token") not in (self.token, None):
                    _end_at_once(self._file.parent, owner)
                self.write()
            except Exception as error:  # of any client, and it may pass: the lease outlives some
                logging.warning("%s can't be written: %s", self._file, retry.one_line(error))

    def release(self):
        self._done.set()
        self._thread.join()
        try:
            if (_read(self._file) or {}).get("token") == self.token:
                self._file.unlink(missing_ok=True)
        except Exception as error:  # a lease that is not renewed ends by itself
            logging.warning("%s can't be removed: %s", self._file, retry.one_line(error))


def _take(workdir):
    """Raises RequirementsError where another run has the workdir. Returns the lease, kept up from now on."""
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
            # Of two that both saw it free, the one that wrote first finds the other's name.
            time.sleep(0 if settled else 2 if remote else 0.2)
            if (_read(workdir / FILE) or {}).get("token") == lease.token:
                lease.start()
                return lease
    except OSError as error:
        raise unwritable(workdir, error) from error


def _create(file):
    """Raises FileExistsError where the file is there. On a disk and on NFS only one of two succeeds."""
    if not io.is_remote(file):
        pathlib.Path(file).touch(exist_ok=False)
    elif file.exists():
        raise FileExistsError(file)


def _check_dead(workdir):
    """Raises RequirementsError where the owner that the file names is alive."""
    owner = _read(workdir / FILE)
    alive = _is_alive(owner) if owner else None
    if alive is None:
        who = _name(owner)
        progress.console.print(
            f"workdir {workdir} was last used by {who}; waiting up to {LEASE_SECONDS:.0f} s to see whether "
            "it still runs"
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
    """Whether the owner's process runs; None where that can't be known, as of another machine."""
    here = _this_process()
    if here["machine"] and owner.get("machine") == here["machine"]:
        return owner["began"] == _began(owner["pid"])
    if time.time() - owner.get("renewed", 0) > _LONG_DEAD_SECONDS:
        return False
    return None


def _still_renewed(file):
    """Watches for as long as a living owner could stay silent."""
    first, deadline = _text(file), time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, LEASE_SECONDS / 10))
        now = _text(file)
        if now is None:  # released
            return False
        if now != first:
            return True
    return False


def _this_process():
    """Names this process so that one of the same machine can tell whether it runs."""
    return dict(host=platform.node(), pid=os.getpid(), began=_began(os.getpid()), machine=_machine())


def _machine():
    """This boot of this machine, and the numbering of its processes, of which each container has one;
    "" where the system does not tell."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(pid):
    """When a process started, in the kernel's ticks, as numbers of processes come again; None for none."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # what was killed and not yet reaped is dead


def _read(file):
    """The owner in the file; None where there is none, {} for one that is just being written."""
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


def _end_at_once(workdir, owner):
    """Two runs would spoil each other's checkpoints: the one that lost the workdir writes no more."""
    print(f"workdir {workdir} was taken by {_name(owner)}; ending", file=sys.stderr, flush=True)
    os._exit(2)

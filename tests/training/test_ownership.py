"""The lock on a workdir, and killed runs that do not block others."""

import json
import subprocess
import sys
import time

import pytest
from etils import epath

from big_ssl.training import ownership
from big_ssl.training.requirements import RequirementsError


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(ownership, "RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 0.4)


def _left_behind(workdir, **changes):
    """Writes the file of a run on another machine that has not released the workdir."""
    owner = dict(host="elsewhere", pid=7, began="5", machine="m", token="t", since=0.0, renewed=time.time())
    (workdir / ownership.FILE).write_text(json.dumps(owner | changes))


def test_the_error_of_a_second_run_names_the_first(tmp_path):
    with ownership.owned(tmp_path / "run"):
        message = (
            r"^workdir .*/run is in use: process \d+ on \S+ has been training in it since 20\d\d-\S+ \S+ UTC;"
        )
        with pytest.raises(RequirementsError, match=message), ownership.owned(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / ownership.FILE).exists()
    assert list((tmp_path / "run").iterdir()) == []
    with ownership.owned(tmp_path / "run"):
        pass


def test_a_failed_run_releases_the_workdir(tmp_path):
    with pytest.raises(KeyError), ownership.owned(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_on_this_machine_blocks_nobody(tmp_path, monkeypatch):
    """Nobody waits for it, not even if its PID is reused."""
    monkeypatch.setattr(ownership, "_still_renewed", None)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    here = ownership._this_process()
    began = ownership._began(process.pid)
    if not here["machine"]:
        pytest.skip("this system does not tell which processes run")
    _left_behind(tmp_path, **here | dict(pid=process.pid, began=began))
    with pytest.raises(RequirementsError, match=f"process {process.pid} on "), ownership.owned(tmp_path):
        pass
    process.kill()
    time.sleep(0.2)  # a zombie
    with ownership.owned(tmp_path):
        pass
    process.wait()
    _left_behind(tmp_path, **here | dict(began="1"))
    with ownership.owned(tmp_path):
        pass


def test_an_owner_on_another_machine_is_watched_for_a_lease(tmp_path, capsys):
    _left_behind(tmp_path)
    began = time.monotonic()
    with ownership.owned(tmp_path):
        assert 0.4 < time.monotonic() - began < 10
    assert "last used by process 7 on elsewhere; waiting up to 0 s" in capsys.readouterr().out
    lease = ownership._Lease(epath.Path(tmp_path) / ownership.FILE)
    lease._owner["machine"] = "m"
    lease.write()
    lease.start()
    with pytest.raises(RequirementsError, match="is in use"), ownership.owned(tmp_path):
        pass
    lease.release()


def test_long_dead_and_unnamed_owners_are_ignored(tmp_path, monkeypatch):
    (tmp_path / ownership.FILE).write_text("")
    with ownership.owned(tmp_path):
        pass
    monkeypatch.setattr(ownership, "_still_renewed", None)
    _left_behind(tmp_path, renewed=time.time() - 2 * 86_400)
    with ownership.owned(tmp_path):
        pass


def test_one_of_two_simultaneous_runs_fails(tmp_path, monkeypatch):
    """As on a bucket, where both can write: the last one wins, and the first reads its token."""
    write = ownership._Lease.write

    def overtaken(lease):
        write(lease)
        _left_behind(tmp_path, **ownership._this_process())

    monkeypatch.setattr(ownership._Lease, "write", overtaken)
    with pytest.raises(RequirementsError, match="is in use"), ownership.owned(tmp_path):
        pass


def test_a_run_that_lost_its_workdir_exits(tmp_path, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(ownership.os, "_exit", ended.append)
    with ownership.owned(tmp_path):
        _left_behind(tmp_path)
        time.sleep(0.5)
    assert ended[0] == 2
    assert f"workdir {tmp_path} was taken by process 7 on elsewhere; ending" in capsys.readouterr().err


def test_a_workdir_that_is_not_shared_is_an_error(tmp_path, monkeypatch):
    """As on process 1 that does not see process 0's file."""
    texts = [["", ""], ["token of process 0", ""], ["", "this process is elsewhere"]]
    monkeypatch.setattr(ownership.jax, "process_index", lambda: 1)
    monkeypatch.setattr(ownership.distributed, "gather", lambda text: texts.pop(0))
    with (
        pytest.raises(RequirementsError, match="is a folder of its own on process 1"),
        ownership.owned(tmp_path),
    ):
        pass


def test_a_lease_survives_transient_errors(tmp_path, monkeypatch):
    """Such as gcsfs's, which are no OSError: the lease is renewed after them."""
    failures = []

    def write(lease, original=ownership._Lease.write):
        if failures:
            raise failures.pop()
        original(lease)

    monkeypatch.setattr(ownership._Lease, "write", write)
    with ownership.owned(tmp_path):
        failures.append(RuntimeError("503"))
        before = (tmp_path / ownership.FILE).read_text()
        time.sleep(0.4)
        assert not failures
        assert (tmp_path / ownership.FILE).read_text() != before


def test_the_owner_file_is_written_atomically(tmp_path):
    """Otherwise process 1 would report a workdir that is not shared."""
    lease = ownership._Lease(epath.Path(tmp_path) / ownership.FILE)
    lease.write()
    with (tmp_path / ownership.FILE).open() as opened_before:
        lease.write()
        renewed = json.loads((tmp_path / ownership.FILE).read_text())["renewed"]
        assert json.loads(opened_before.read())["renewed"] < renewed

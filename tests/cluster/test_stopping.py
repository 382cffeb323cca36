"""A job of two processes stopped, killed and resumed: `python -m big_ssl.main`, on a micro recipe."""

import numpy as np
import pytest

from big_ssl.training.metrics import read_lines

STEPS = 60
ARGUMENTS = {"total_steps": STEPS, "log_every": 1, "checkpoint.every": 1000}
# As in tests/training/test_devices.py: sums over a batch have another order.
TOLERANCE = 1e-4

pytestmark = pytest.mark.slow


def _saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def _at_step(workdir, step):
    return lambda: any(line["step"] >= step for line in read_lines(workdir / "metrics.jsonl"))


@pytest.fixture(scope="module")
def whole(cluster, micro, losses, tmp_path_factory):
    """The losses of an uninterrupted job."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    job = cluster.finish(micro, workdir, ARGUMENTS)
    assert "Report:" in job.output(0)
    assert not any(word in job.output(1) for word in ("Parameters", "loss", "Report:"))
    return losses(workdir)


def _interrupted(cluster, micro, send, workdir, index, name, flags=()):
    """The job after one of its processes was sent a signal at step 2, and its exit codes."""
    job = cluster.train(micro, workdir, ARGUMENTS, flags)
    job.wait_until(_at_step(workdir, 2), 300)
    send(job.processes[index], name)
    return job, job.wait(120)


@pytest.mark.parametrize(("index", "name"), [(0, "SIGTERM"), (1, "SIGTERM"), (1, "SIGINT")])
def test_a_signal_to_one_process_stops_all_at_the_same_step(
    index, name, cluster, micro, send, whole, losses, tmp_path
):
    workdir = tmp_path / "run"
    job, codes = _interrupted(cluster, micro, send, workdir, index, name)
    assert codes == [0, 0], job.output()
    assert "Report:" not in job.output()
    (stopped,) = _saved(workdir)
    assert losses(workdir) == whole[:stopped]
    assert 2 <= stopped < STEPS
    if index == 0:
        return
    job = cluster.finish(micro, workdir, ARGUMENTS)
    assert "Report:" in job.output(0)
    assert losses(workdir) == whole


def test_a_job_of_two_processes_resumes(cluster, micro, send, whole, losses, tmp_path):
    workdir = tmp_path / "run"
    job, codes = _interrupted(cluster, micro, send, workdir, 0, "SIGTERM", ["--stopped_exit_code=75"])
    assert codes == [75, 75], job.output()
    (stopped,) = _saved(workdir)
    cluster.finish(micro, workdir, ARGUMENTS, processes=1)
    (*_, last), steps = losses(workdir), [step for step, _ in losses(workdir)]
    assert steps == list(range(1, STEPS + 1))
    assert last[0] == STEPS > stopped
    np.testing.assert_allclose(
        [loss for _, loss in losses(workdir)], [loss for _, loss in whole], rtol=TOLERANCE
    )


@pytest.mark.parametrize("index", [0, 1])
def test_if_one_process_is_killed_the_other_fails(index, cluster, micro, send, tmp_path):
    job, codes = _interrupted(
        cluster, micro, send, tmp_path / "run", index, "SIGKILL", ["--heartbeat_seconds=10"]
    )
    assert codes[index] == -9
    assert codes[1 - index] not in (0, -9), job.output()  # -9: still running when the test lost patience


def test_a_failure_of_one_process_ends_both(cluster, micro, tmp_path):
    """Process 1 can't use the workdir: it prints the reason, and neither trains."""
    job = cluster.start(["tests/cluster/fail_alone.py", str(tmp_path / "run")])
    assert job.wait(120) == [2, 2], job.output()
    assert "no room on this host" in job.output(1)
    assert "process 1: no room on this host" in job.output(0)


def test_both_processes_restore_the_same_checkpoint_despite_slow_reads(cluster, tmp_path):
    """An error that passes costs nothing; a checkpoint that one process finds damaged both leave, at once."""
    job = cluster.start(["tests/cluster/restore.py", str(tmp_path / "run")])
    assert job.wait(100) == [0, 0], job.output()
    for index in (0, 1):
        lines = [line for line in job.output(index).splitlines() if line.startswith("restored")]
        assert lines == ["restored 4", "restored 2"], job.output()
    assert [path.name.split("_")[0] for path in (tmp_path / "run" / "damaged_checkpoints").iterdir()] == ["4"]


def test_a_damaged_checkpoint_is_passed_over_by_both(cluster, micro, losses, tmp_path):
    workdir = tmp_path / "run"
    arguments = ARGUMENTS | {"total_steps": 6, "checkpoint.every": 2}
    cluster.finish(micro, workdir, arguments)
    before = losses(workdir)
    (workdir / "checkpoints/6/state/manifest.ocdbt").write_bytes(b"")
    cluster.finish(micro, workdir, arguments)
    assert len(list((workdir / "damaged_checkpoints").iterdir())) == 1
    assert losses(workdir) == before
    assert _saved(workdir)[-1] == 6

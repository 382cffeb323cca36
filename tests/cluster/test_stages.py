"""A run in two stages over two processes, killed in each of them: `python -m big_ssl.main`."""

import pytest

from big_ssl.training.metrics import read_lines

STEPS = 60
RECIPE = "tests/cluster/staged.py"
ARGUMENTS = {"log_every": 1}


def _killed_at(cluster, send, workdir, step):
    """The job with one process killed once it has logged this step."""
    job = cluster.train(RECIPE, workdir, ARGUMENTS, ["--heartbeat_seconds=10"])
    job.wait_until(lambda: any(x["step"] >= step for x in read_lines(workdir / "metrics.jsonl")), 300)
    send(job.processes[1], "SIGKILL")
    codes = job.wait(120)
    assert codes[1] == -9, job.output()
    return job


@pytest.mark.slow
def test_killed_in_each_stage_it_resumes_bit_identically(cluster, send, losses, tmp_path):
    """What is handed on is resized and placed by all processes together; only one tells of it."""
    job = cluster.finish(RECIPE, tmp_path / "whole", ARGUMENTS)
    assert "stage second: params/heads/contrastive/ starts from scratch" in job.output(0)
    assert "stage second" not in job.output(1)
    for step in (12, 42):
        _killed_at(cluster, send, tmp_path / "killed", step)
    cluster.finish(RECIPE, tmp_path / "killed", ARGUMENTS)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "whole")] == list(range(1, STEPS + 1))

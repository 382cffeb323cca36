"""A requirement missing on one of two processes ends both; and a run starts from another run."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(cluster, micro, tmp_path_factory):
    """What each process printed, see set_up_apart.py."""
    folder = tmp_path_factory.mktemp("apart")
    cluster.finish(micro, folder / "first", {}, processes=1)
    job = cluster.start(["tests/cluster/set_up_apart.py", str(folder)])
    assert job.wait(400) == [0, 0], job.output()
    return [json.loads(job.output(i).splitlines()[-1]) for i in range(2)]


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("vocabulary", "words.txt"),
        ("evaluator", "evals: "),
        ("weights", "init_from: "),
        ("workdir", "workdir run is a folder of its own on process 1"),
    ],
)
def test_a_requirement_missing_on_one_process_is_an_error_on_both(lacking, message, outputs):
    (codes, stderr) = zip(*(each[lacking] for each in outputs), strict=True)
    assert codes == (2, 2), stderr
    assert stderr[1].startswith(message) or message in stderr[1]
    assert stderr[0] == f"process 1: {stderr[1]}"
    assert stderr[1].count("\n") == 1


def test_a_config_that_differs_is_an_error_on_both(outputs):
    message = (
        "config.total_steps is 9 on process 0 and 10 on process 1; all processes need the same command\n"
    )
    assert [each["config"] for each in outputs] == [[2, message]] * 2


def test_a_run_starts_from_another_run_on_both(outputs):
    """Weights, and those of a folder that config.init_from.remap names, on all devices; and trains."""
    assert [each["init_from"] for each in outputs] == [True, True]
    assert [each["second"][0] for each in outputs] == [0, 0], outputs

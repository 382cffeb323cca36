"""Evaluators on one and two processes: equal metrics, and each process decodes its part."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(cluster):
    """{layout: [what each process printed]}, see evaluate_split.py."""
    results = {}
    for name, (processes, devices) in {"1x1": (1, 1), "1x4": (1, 4), "2x2": (2, 2)}.items():
        job = cluster.start(["tests/cluster/evaluate_split.py"], processes, devices)
        assert job.wait(300) == [0] * processes, job.output()
        results[name] = [json.loads(job.output(i).splitlines()[-1]) for i in range(processes)]
    return results


@pytest.mark.parametrize("layout", ["1x4", "2x2"])
def test_the_metrics_equal_those_of_one_device(layout, outputs):
    expected = outputs["1x1"][0]["metrics"]
    assert len(expected) > 20
    for each in outputs[layout]:
        assert each["metrics"] == pytest.approx(expected, abs=1e-6)


def test_each_process_decodes_its_part(outputs):
    """Together they decode what one process decodes alone; the heads' random crops are decoded before."""
    ((alone,), both) = ([each["decoded"] for each in outputs[layout]] for layout in ("1x4", "2x2"))
    for name in ("zero_shot", "knn", "retrieval", "linear_probe"):
        parts = [each[name] for each in both]
        assert sum(parts) == alone[name] > 500
        assert min(parts) > alone[name] / 3
    assert max(each["linear_sweep"] for each in both) < 0.8 * alone["linear_sweep"]


def test_an_image_unreadable_on_one_process_fails_on_both(outputs):
    problems = [each["problems"] for each in outputs["2x2"]]
    assert problems[0][0].startswith(
        "evals.zero_shot failed (1 in a row): ValueError: process 1: data: the image of"
    )
    assert "ValueError: data: the image of record" in problems[1][0] or problems[0] == problems[1]

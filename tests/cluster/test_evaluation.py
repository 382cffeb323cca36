"""Evaluators on one process and on two: the same numbers, each process decoding its part."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(cluster):
    """{layout: [what each process printed]}, see evaluate_split.py."""
    results = {}
    for name, (processes, devices) in {"1x1": (1, 1), "1x4": (1, 4), "2x2": (2, 2)}.items():
        job = cluster.start(["tests/cluster/evaluate_split.py"], processes, devices)
        assert job.wait(300) == [0] * processes, job.output()
        results[name] = [json.loads(job.output(i).splitlines()[-1]) for i in range(processes)]
    return results


@pytest.mark.parametrize("layout", ["1x4", "2x2"])
def test_the_numbers_are_those_of_one_device(layout, found):
    expected = found["1x1"][0]["metrics"]
    assert len(expected) > 20
    for each in found[layout]:
        assert each["metrics"] == pytest.approx(expected, abs=1e-6)


def test_each_process_decodes_its_part(found):
    """And the two together what one decodes alone; the heads' random windows are decoded ahead."""
    ((alone,), both) = ([each["decoded"] for each in found[layout]] for layout in ("1x4", "2x2"))
    for name in ("zero_shot", "knn", "retrieval", "linear_probe"):
        parts = [each[name] for each in both]
        assert sum(parts) == alone[name] > 500
        assert min(parts) > alone[name] / 3
    assert max(each["linear_sweep"] for each in both) < 0.8 * alone["linear_sweep"]


def test_what_one_process_cannot_read_fails_on_both(found):
    problems = [each["problems"] for each in found["2x2"]]
    assert problems[0][0].startswith(
        "evals.zero_shot failed (1 in a row): ValueError: process 1: data: the picture of"
    )
    assert "ValueError: data: the picture of record" in problems[1][0] or problems[0] == problems[1]

"""The number of processes changes who computes what, and nothing else: a run's first 20 steps."""

import functools
import json

import numpy as np
import pytest

# Processes x devices of each. What the number of devices changes is in tests/training/test_devices.py.
LAYOUTS = {"1x4": (1, 4), "2x2": (2, 2)}
STEPS, BATCH = 20, 128
# The second has batch norm, whose statistics are everybody's.
RECIPES = ("configs/clip.py:tiny", "configs/align_l2.py:tiny")
# As in tests/training/test_devices.py: sums over a batch are taken in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def batches(cluster):
    """{layout: {"step/row": digest}}."""
    actual = {}
    for name, (processes, devices) in LAYOUTS.items():
        command = ["tests/cluster/show_batches.py", str(BATCH), "3"]
        job = cluster.start(command, processes, devices)
        assert job.wait(120) == [0] * processes, job.output()
        actual[name] = json.loads(job.output(0).splitlines()[-1])
    return actual


def test_the_global_batches_hold_the_same_examples_in_the_same_rows(batches):
    assert len(batches["2x2"]) == len(set(batches["2x2"].values())) == 3 * BATCH
    assert batches["2x2"] == batches["1x4"]


@pytest.fixture(scope="module")
def trajectories(cluster, losses, tmp_path_factory):
    """recipe -> {layout: [(step, loss)]}, warming up slowly towards a rate of 3e-3."""

    @functools.cache
    def run(recipe):
        arguments = dict(total_steps=STEPS, log_every=1, evals="{}")
        arguments |= {"learning_rate.warmup_steps": STEPS - 1, "learning_rate.peak": 3e-3 * (STEPS - 1) / 100}
        actual = {}
        for name, (processes, devices) in LAYOUTS.items():
            workdir = tmp_path_factory.mktemp("run") / name
            cluster.finish(recipe, workdir, arguments, processes=processes, devices=devices)
            actual[name] = losses(workdir)
        return actual

    return run


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_has_the_same_loss_trajectory(recipe, trajectories):
    steps, expected = zip(*trajectories(recipe)["1x4"], strict=True)
    assert steps == tuple(range(1, STEPS + 1))
    assert np.ptp(expected) > 0.1  # it trains at all
    actual = trajectories(recipe)["2x2"]
    assert [step for step, _ in actual] == list(steps)
    np.testing.assert_allclose([loss for _, loss in actual], expected, rtol=TOLERANCE)

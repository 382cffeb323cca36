"""The number of processes changes who computes what, and nothing else: the demo's first 20 steps."""

import json

import numpy as np
import pytest

LAYOUTS = {"1x1": (1, 1), "1x4": (1, 4), "2x2": (2, 2)}  # processes x devices of each
STEPS, BATCH = 20, 128
# As in tests/training/test_devices.py: sums over a batch are taken in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def batches(cluster):
    """{layout: {"step/row": digest}}."""
    found = {}
    for name, (processes, devices) in LAYOUTS.items():
        command = ["tests/cluster/show_batches.py", str(BATCH), "3"]
        job = cluster.start(command, processes, devices)
        assert job.wait(120) == [0] * processes, job.output()
        found[name] = json.loads(job.output(0).splitlines()[-1])
    return found


@pytest.mark.parametrize("layout", ["1x4", "2x2"])
def test_the_global_batches_hold_the_same_examples_in_the_same_rows(layout, batches):
    assert len(batches[layout]) == len(set(batches[layout].values())) == 3 * BATCH
    assert batches[layout] == batches["1x1"]


@pytest.fixture(scope="module")
def trajectories(cluster, losses, tmp_path_factory):
    """{layout: [(step, loss)]} of the demo, which warms up to a rate of 3e-3 in 100 steps."""
    arguments = dict(total_steps=STEPS, log_every=1, evals="{}")
    arguments |= {"learning_rate.warmup_steps": STEPS - 1, "learning_rate.peak": 3e-3 * (STEPS - 1) / 100}
    found = {}
    for name, (processes, devices) in LAYOUTS.items():
        workdir = tmp_path_factory.mktemp("demo") / name
        layout = dict(processes=processes, devices=devices, compiling="well")
        cluster.finish("configs/align_l2.py:demo", workdir, arguments, **layout)
        found[name] = losses(workdir)
    return found


@pytest.mark.parametrize("layout", ["1x4", "2x2"])
def test_the_demo_has_the_same_loss_trajectory(layout, trajectories):
    steps, expected = zip(*trajectories["1x1"], strict=True)
    assert steps == tuple(range(1, STEPS + 1))
    assert np.ptp(expected) > 0.1  # it trains at all
    assert [step for step, _ in trajectories[layout]] == list(steps)
    np.testing.assert_allclose([loss for _, loss in trajectories[layout]], expected, rtol=TOLERANCE)

"""Wall time by part, across restarts, and the trace of a few steps."""

import json

import jax
import jax.numpy as jnp
import pytest

from big_ssl import io
from big_ssl.parallel import hardware
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, flops, wall_time
from big_ssl.training.profiling import Profile
from big_ssl.training.wall_time import ALL_PARTS, WallTime, earlier_seconds


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) advances the time, which otherwise stands still."""
    now = [100.0]
    monkeypatch.setattr(wall_time.time, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def test_seconds_by_part_and_other(clock):
    times = WallTime({"compute": 10.0, "lost": 2.0}, began=90.0)
    for _ in range(2):
        with times.part("compute"):
            clock(3)
    with pytest.raises(KeyError):
        _fail_after_a_second(times, clock)
    clock(0.5)
    actual = times.seconds()
    assert actual == dict(compute=16, data=1, compile=0, checkpoint=0, evaluate=0, other=10.5, lost=2)
    metrics = times.metrics()
    assert sum(metrics[f"time/fraction/{part}"] for part in ALL_PARTS) == pytest.approx(1)
    assert metrics["time/fraction/compute"] == pytest.approx(16 / 29.5)


def _fail_after_a_second(times, clock):
    with times.part("data"):
        clock(1)
        raise KeyError


def line(step, **seconds):
    return {"step": step} | {f"time/{part}": seconds.get(part, 0.0) for part in ALL_PARTS}


def test_earlier_seconds_after_a_restart():
    lines = [line(10, compute=5, other=2), {"step": 15, "eval/x": 1}, line(20, compute=9, data=1, other=2)]
    assert earlier_seconds(lines, 20) == {p: lines[2][f"time/{p}"] for p in ALL_PARTS}
    # Resumed after step 15: 12 seconds had passed at step 20, 7 at step 10.
    assert earlier_seconds(lines, 15) == {p: lines[0][f"time/{p}"] for p in ALL_PARTS} | {"lost": 5}
    assert earlier_seconds(lines, 0) == dict.fromkeys(ALL_PARTS, 0.0) | {"lost": 12}
    assert earlier_seconds([], 0) == dict.fromkeys(ALL_PARTS, 0.0)


def test_parts_sum_to_the_wall_time_across_a_restart(micro_config, train, stop_after, tmp_path):
    config = micro_config()
    stop_after(2)
    train(config, tmp_path)
    first = _last_line(tmp_path)
    stop_after(0)
    train(config, tmp_path)
    last = _last_line(tmp_path)
    assert (first["step"], last["step"]) == (2, 8)
    total = sum(last[f"time/{part}"] for part in ALL_PARTS)
    assert total > sum(first[f"time/{part}"] for part in ALL_PARTS) > 0
    for part in ("compute", "data", "compile", "checkpoint"):
        assert last[f"time/{part}"] > first[f"time/{part}"] >= 0, part
        assert last[f"time/fraction/{part}"] == pytest.approx(last[f"time/{part}"] / total)
    last = _last_line(tmp_path, "time/step_seconds")
    assert last["time/step_seconds"] * last["time/examples_per_second"] == pytest.approx(16)


def _last_line(workdir, key="time/compute"):
    lines = (json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if key in line][-1]


@pytest.mark.slow
def test_mfu_is_logged_if_the_peak_is_known(micro_config, train, set_up, tmp_path, monkeypatch):
    config, peak = micro_config(), 1e9
    train(config, tmp_path / "unknown")
    assert "time/mfu" not in _last_line(tmp_path / "unknown", "time/step_seconds")
    monkeypatch.setattr(hardware, "peak_flops", lambda device: peak)
    train(config, tmp_path / "known")
    line = _last_line(tmp_path / "known", "time/step_seconds")
    setup = set_up(config)
    batch = batches.abstract_global_batch(config, mesh_lib.batch_sharding(setup.mesh))
    per_step = flops.model_flops_per_step(setup.system, setup.abstract_state, batch)
    expected = per_step / (line["time/step_seconds"] * peak * jax.device_count())
    assert line["time/mfu"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("start", "total", "steps", "traced"),
    [(0, 100, 3, [6, 7, 8]), (40, 100, 2, [46, 47]), (0, 4, 2, [3, 4]), (0, 100, 0, []), (3, 5, 4, [5])],
)
def test_the_profile_traces_the_requested_steps(start, total, steps, traced, monkeypatch, tmp_path):
    on, seen = [False], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: on.__setitem__(0, True))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: on.__setitem__(0, False))
    profile = Profile(tmp_path, steps, start, total)
    for step in range(start + 1, total + 1):
        profile.before(step)
        if on[0]:
            seen.append(step)
        profile.after(step, {})
    profile.close()
    assert seen == traced
    assert not on[0]


@pytest.mark.parametrize("fixture", ["tmp_path", "gcs_folder"])
def test_a_trace_is_written(fixture, request):
    workdir = io.as_path(request.getfixturevalue(fixture))
    profile = Profile(workdir, 1, 0, 2)
    for step in (1, 2):
        profile.before(step)
        profile.after(step, dict(loss=jnp.ones(()) + step))
    assert list(workdir.glob("profile/plugins/profile/*/*.xplane.pb"))

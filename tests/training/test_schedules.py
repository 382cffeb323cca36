"""Schedules at their corners: the start, the end of the warm-up, the middle and the end."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.training import schedules

PEAK, WARMUP, TOTAL = 0.4, 10, 50
BASE = dict(peak=PEAK, warmup_steps=WARMUP)


def values(config, steps, total=TOTAL):
    schedule = schedules.build(config, total)
    return np.array([schedule(jnp.asarray(step)) for step in steps])


def test_a_number_stays():
    np.testing.assert_allclose(values(0.25, [0, 7, TOTAL, 10 * TOTAL]), 0.25)
    np.testing.assert_allclose(values(1, [0, 7]), 1.0)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_warm_up_is_linear_from_start_to_peak(kind):
    np.testing.assert_allclose(values(BASE | dict(kind=kind), [0, 1, 5, 10]), [0, 0.04, 0.2, 0.4], atol=1e-7)
    raised = values(BASE | dict(kind=kind, start=0.1), [0, 5, 10])
    np.testing.assert_allclose(raised, [0.1, 0.25, 0.4], rtol=1e-6)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_linear_decay_is_a_line_from_peak_to_final(final):
    found = values(BASE | dict(kind="linear", final=final), [10, 20, 30, 50])
    expected = [PEAK + (final - PEAK) * f for f in (0, 0.25, 0.5, 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_decay_is_half_a_cosine_from_peak_to_final(final):
    found = values(BASE | dict(kind="cosine", final=final), [10, 20, 30, 50])
    expected = [final + (PEAK - final) * (1 + math.cos(math.pi * f)) / 2 for f in (0, 0.25, 0.5, 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_after_the_end_the_floor_stays(kind):
    found = values(BASE | dict(kind=kind, final=0.1), [TOTAL, TOTAL + 1, 3 * TOTAL])
    np.testing.assert_allclose(found, 0.1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_without_warm_up_the_first_step_is_the_peak(kind):
    found = values(dict(kind=kind, peak=PEAK, warmup_steps=0), [0, TOTAL])
    np.testing.assert_allclose(found, [PEAK, 0], atol=1e-7)


def test_a_schedule_can_be_traced():
    schedule = schedules.build(BASE | dict(kind="cosine"), TOTAL)
    np.testing.assert_allclose(jax.jit(schedule)(jnp.asarray(5)), 0.2, rtol=1e-6)


@pytest.mark.parametrize("warmup", [TOTAL, TOTAL + 1, -1])
def test_a_warm_up_that_does_not_fit_is_named(warmup):
    with pytest.raises(ValueError, match=f"warmup_steps {warmup} must be below total_steps 50"):
        schedules.build(dict(kind="linear", peak=PEAK, warmup_steps=warmup), TOTAL)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'step' is unknown"):
        schedules.build(BASE | dict(kind="step"), TOTAL)


def test_a_cosine_may_rise_and_may_start_at_zero():
    """A teacher's momentum goes up to 1; a peak of 0 is no division by it."""
    rising = schedules.build(dict(kind="cosine", peak=0.99, final=1.0, warmup_steps=0), 10)
    assert [float(rising(step)) for step in (0, 5, 10)] == pytest.approx([0.99, 0.995, 1.0])
    nothing = schedules.build(dict(kind="cosine", peak=0.0, final=0.0, warmup_steps=0), 10)
    assert float(nothing(3)) == 0

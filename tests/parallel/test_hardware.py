"""The table of chips."""

import types

import pytest

from big_ssl.parallel import hardware


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v3", 123e12 / 2),  # a device is one of a chip's two cores
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB", None),
        ("cpu", None),
    ],
)
def test_peak_flops_by_device_kind(kind, flops):
    assert hardware.peak_flops(types.SimpleNamespace(device_kind=kind)) == flops


@pytest.mark.parametrize(
    ("kind", "clock"),
    # jax-ml.github.io/scaling-book/tpus: 940 MHz, 1050 MHz, 1.5 GHz, 1.75 GHz.
    [("TPU v3", 0.94e9), ("TPU v4", 1.05e9), ("TPU v5 lite", 1.5e9), ("TPU v5", 1.75e9)],
)
def test_the_clock_computed_from_the_peak_equals_the_published_one(kind, clock):
    assert hardware.chip(kind).clock == pytest.approx(clock, rel=0.005)

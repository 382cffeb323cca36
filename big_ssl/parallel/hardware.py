"""What the chips can do, by the names JAX gives them.

Peak bfloat16 FLOP/s, memory and bandwidth: Google's pages docs.cloud.google.com/tpu/docs/v3, v4,
v5e, v5p, v6e, and the tables of "How to scale your model" (jax-ml.github.io/scaling-book); NVIDIA's
data sheets for H100 SXM and H200 SXM. `hbm` is what libtpu 0.0.52 lets a program use, as its
own out-of-memory message states it: a little less than what the chip carries.

On v4 and v5p a device is a whole chip ("megacore"), on v3 one of a chip's two cores, so there
the numbers are half the chip's.
"""

from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """One device. Rates are a second's.

    flops: peak bfloat16; hbm: usable bytes; hbm_bandwidth: bytes; ici_link: bytes over one link,
    one way; ici_dimensions: of its torus, two links in each; clock: Hz, of the cycles in which the TPU
    compiler counts; devices_per_host; dcn: bytes a host sends between slices, one way; cores: devices
    that share a chip's links.
    """

    flops: float
    hbm: int
    hbm_bandwidth: float
    ici_link: float
    ici_dimensions: int
    clock: float
    devices_per_host: int
    dcn: float = 25e9  # scaling-book: 200 Gbit/s
    cores: int = 1


_GIB = 2**30

# A TPU's clock follows from its peak: FLOP/s over two times the cells of its systolic arrays. v3:
# 2 arrays of 128 x 128 a core; v4 and v5p: 8 a chip; v5e: 4; v6e: 4 of 256 x 256.
_V3 = Chip(61.5e12, int(15.48 * _GIB), 450e9, 70e9, 2, 61.5e12 / (2 * 2 * 128**2), 8, cores=2)
_V4 = Chip(275e12, int(30.75 * _GIB), 1228e9, 45e9, 3, 275e12 / (2 * 8 * 128**2), 4)
_V5E = Chip(197e12, int(15.75 * _GIB), 819e9, 45e9, 2, 197e12 / (2 * 4 * 128**2), 4)
_V5P = Chip(459e12, int(95.73 * _GIB), 2765e9, 90e9, 3, 459e12 / (2 * 8 * 128**2), 4)
_V6E = Chip(918e12, int(31.24 * _GIB), 1640e9, 90e9, 2, 918e12 / (2 * 4 * 256**2), 4)
_H100 = Chip(989e12, 80 * 10**9, 3350e9, 450e9, 1, 1.83e9, 8, 400e9)
_H200 = _H100._replace(hbm=141 * 10**9, hbm_bandwidth=4800e9)

CHIPS = {
    "TPU v3": _V3,
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
}
# A GPU's name goes on with its memory; "NVIDIA H100 PCIe" is another, slower chip.
_GPU_PREFIXES = {"NVIDIA H100 80GB": _H100, "NVIDIA H200": _H200}


class BackendError(RuntimeError):
    """JAX has no devices of the platform that was asked for; the message is one line."""


def check_backend() -> None:
    """Raises BackendError where JAX finds no devices, by JAX_PLATFORMS=tpu on a machine without TPUs say."""
    try:
        jax.devices()
    except RuntimeError as error:
        raise BackendError(
            f"JAX_PLATFORMS={getattr(jax.config, 'jax_platforms', None)}: {str(error).splitlines()[0]}"
        ) from error


def chip(device_kind: str) -> Chip | None:
    """The chip that JAX calls device_kind; None for one that the table lacks, a CPU say."""
    if device_kind in CHIPS:
        return CHIPS[device_kind]
    return next((c for prefix, c in _GPU_PREFIXES.items() if device_kind.startswith(prefix)), None)


def peak_flops(device: jax.Device) -> float | None:
    """A device's peak bfloat16 FLOP/s, to count MFU with; None where it isn't known."""
    found = chip(device.device_kind)
    return found.flops if found else None

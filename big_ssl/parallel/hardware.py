"""Accelerator specifications, by JAX's device_kind.

Peak bfloat16 FLOP/s, memory and bandwidth: Google's pages docs.cloud.google.com/tpu/docs/v3, v4, v5e, v5p,
v6e, and the tables of "How to scale your model" (jax-ml.github.io/scaling-book); NVIDIA's data sheets for
H100 SXM and H200 SXM. `hbm` is the limit in libtpu 0.0.52's out-of-memory message, slightly less than the
chip's memory.

On v4 and v5p a device is a whole chip ("megacore"). On v3 it is one of a chip's two cores, so the numbers
are half the chip's.
"""

from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """Specifications of one device.

    flops: peak bfloat16 FLOP/s; hbm: usable bytes; hbm_bandwidth: bytes/s; ici_link: bytes/s over one link,
    one way; ici_dimensions: dimensions of the torus, with two links each; clock: Hz, for the TPU compiler's
    cycle estimates; devices_per_host; dcn: bytes/s from a host to other slices; cores: devices that share a
    chip's links.
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
# A GPU's name continues with its memory; "NVIDIA H100 PCIe" is another, slower chip.
_GPU_PREFIXES = {"NVIDIA H100 80GB": _H100, "NVIDIA H200": _H200}


class BackendError(RuntimeError):
    """JAX has no devices of the requested platform; the message is one line."""


def check_backend() -> None:
    """Raises BackendError if JAX finds no devices, for example JAX_PLATFORMS=tpu without a TPU."""
    try:
        jax.devices()
    except RuntimeError as error:
        raise BackendError(
            f"JAX_PLATFORMS={getattr(jax.config, 'jax_platforms', None)}: {str(error).splitlines()[0]}"
        ) from error


def chip(device_kind: str) -> Chip | None:
    """Looks up a device_kind; None if the table lacks it, as for a CPU."""
    if device_kind in CHIPS:
        return CHIPS[device_kind]
    return next((c for prefix, c in _GPU_PREFIXES.items() if device_kind.startswith(prefix)), None)


def peak_flops(device: jax.Device) -> float | None:
    """A device's peak bfloat16 FLOP/s, the denominator of MFU; None if unknown."""
    specification = chip(device.device_kind)
    return specification.flops if specification else None

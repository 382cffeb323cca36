"""TPU topologies by name, without the TPUs: `v5e:16x16`, `v5p:4x8x8`, and two slices, `2xv5e:16x16`."""

import difflib
import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax

_NAME = re.compile(r"(?:(\d+)x)?(\w+):(\d+(?:x\d+)*)")

# The shapes that Cloud TPU offers: docs.cloud.google.com/tpu/docs/v3, v4, v5e, v5p, v6e.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SHAPES = {"v3": (*_FLAT[1:2], *_FLAT[3:], "16x32", "32x32"), "v5e": _FLAT, "v6e": _FLAT}
# Larger v4 and v5p slices are multiples of 4x4x4 chips.
_SMALL_CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4")
_LARGEST = {"v4": 4096, "v5p": 6144}
GENERATIONS = ("v3", "v4", "v5e", "v5p", "v6e")

# Keeps libtpu from searching for a TPU and logging errors if there is none.
_ENVIRONMENT = dict(
    ALLOW_MULTIPLE_LIBTPU_LOAD="true",  # otherwise its lock file admits one process
    TPU_MIN_LOG_LEVEL="3",
    TPU_STDERR_LOG_LEVEL="3",
    TPU_SKIP_MDS_QUERY="1",  # the metadata server of Google's cloud, which hangs elsewhere
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
)


class TopologyError(ValueError):
    """No such TPU, or no compiler for it; the message is one line that names the alternatives."""


class Topology(NamedTuple):
    """slices of `generation`, each a mesh of `shape` chips."""

    slices: int
    generation: str
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """The number of chips of all slices."""
        return self.slices * math.prod(self.shape)

    def __str__(self):
        name = f"{self.generation}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{self.slices}x{name}"


def parse(name: str) -> Topology:
    """Parses a topology's name. Raises TopologyError with the valid names."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise TopologyError(
            f"--topology={name}: write a generation ({', '.join(GENERATIONS)}), a colon and its mesh of "
            "chips, such as v5e:16x16, or 2xv5e:16x16 for two such slices"
        )
    slices, generation, shape = int(match[1] or 1), match[2], match[3]
    if generation not in GENERATIONS:
        near = difflib.get_close_matches(generation, GENERATIONS, n=1)
        hint = f"did you mean {near[0]}? There are" if near else "there are"
        raise TopologyError(f"--topology={name}: {generation!r} is unknown; {hint} {', '.join(GENERATIONS)}")
    if slices < 1:
        raise TopologyError(f"--topology={name}: needs at least one slice")
    _check_shape(name, generation, shape)
    return Topology(slices, generation, tuple(map(int, shape.split("x"))))


def devices(topology: Topology) -> list[jax.Device]:
    """Devices to compile for; nothing can run on them. Raises TopologyError without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError("planning needs the TPU compiler: pip install libtpu")
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if getattr(jax.config, "jax_platforms", None) is None:  # nothing runs, so occupy no accelerator
        jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies  # after the environment is set: libtpu reads it once

    options: dict = dict(num_slices=topology.slices)
    if topology.generation == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip, which is v5p's only mode
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = str(topology._replace(slices=1))
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise TopologyError(f"--topology={topology}: {str(error).splitlines()[0]}") from error


def _check_shape(name, generation, shape):
    sizes = [int(size) for size in shape.split("x")]
    if generation in _SHAPES:
        if shape not in _SHAPES[generation]:
            raise TopologyError(
                f"--topology={name}: {generation} comes in meshes of {', '.join(_SHAPES[generation])}"
            )
        return
    cubes = len(sizes) == 3 and all(size and size % 4 == 0 for size in sizes)
    if shape not in _SMALL_CUBES and not (cubes and math.prod(sizes) <= _LARGEST[generation]):
        raise TopologyError(
            f"--topology={name}: {generation} comes in meshes of {', '.join(_SMALL_CUBES)} and in "
            f"multiples of 4x4x4, such as 4x8x8, up to {_LARGEST[generation]} chips"
        )

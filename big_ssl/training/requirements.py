"""Checks a run's requirements before anything is compiled: memory, data, weights, disk space."""

import json
import os
import shutil
from collections.abc import Mapping
from typing import NamedTuple

import jax

from big_ssl import io
from big_ssl.data import sources
from big_ssl.parallel import distributed
from big_ssl.parallel.notices import warn_once
from big_ssl.training import build, memory
from big_ssl.training.state import TrainState

# No estimate was ever wrong by this factor (docs/plan.md).
_CERTAINLY_TOO_MUCH = 4
_SPLIT_STATE = "; more devices share it by mesh.fsdp"
_SPLIT_STEP = "; more devices, grad_accum or a smaller batch_size need less"


class RequirementsError(ValueError):
    """The config can't run here; the message names its requirements and a config that runs."""


class Machine(NamedTuple):
    """A run's devices. memory: bytes per device."""

    devices: int
    kind: str
    memory: int

    @classmethod
    def current(cls) -> "Machine":
        """The devices of all processes; CPU devices divide their machine's memory."""
        device = jax.local_devices()[0]
        memory = (device.memory_stats() or {}).get("bytes_limit")
        if memory is None:
            machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            memory = machine // jax.local_device_count()
        return cls(jax.device_count(), device.device_kind, memory)

    def __str__(self):
        return f"{self.devices} x {self.kind} of {_gib(self.memory)}"


@distributed.raise_on_all_hosts(RequirementsError)
def check_requirements(config, config_file: str, machine: Machine | None = None) -> None:
    """Checks memory, data, weights and vocabularies; warns if the devices are likely too small.

    training/memory.py estimates a step's memory, independent of the devices that the recipe names.

    Args:
      config: a stage's config.
      config_file: the value of --config, for the message.
      machine: the devices; by default the current ones.

    Raises:
      RequirementsError: if a step does not fit into memory, or data, weights or a vocabulary are missing.
    """
    requires, missing, machine = config["requires"], [], machine or Machine.current()
    try:
        step = memory.count(config, machine.devices, machine.kind)
    except ValueError as error:
        raise RequirementsError(str(error)) from error
    if step.state + step.batch > machine.memory:
        missing.append(f"{_gib(step.state)} for the state on each device, of {machine}{_SPLIT_STATE}")
    elif step.total > _CERTAINLY_TOO_MUCH * machine.memory:
        missing.append(_likely(step, machine))
    for name, stream in config["streams"].items():
        for entry in sources.entries(stream["data"]):
            missing.extend(_missing_data(f"streams.{name}.data.{entry.path}", entry.source))
    for name, options in config["evals"].items():
        for key, value in options.items():
            if isinstance(value, Mapping) and "kind" in value:
                missing.extend(_missing_data(f"evals.{name}.{key}", value))
    if requires["weights"] and not config["init_from"]["path"]:
        missing.append("weights to start from, config.init_from.path (not set)")
    texts = build.reads_texts(config)
    if texts and not config["tokenizer"]["vocabulary"]:
        missing.append(f"a {config['tokenizer']['kind']} vocabulary, config.tokenizer.vocabulary (not set)")
    if missing:
        listed = "".join(f"\n  - {item}" for item in missing)
        instead = f"\nRuns here: --config={config_file.split(':')[0]}:{requires['preset_here']}"
        raise RequirementsError(
            f"{config['name']} cannot run on this machine. It needs{listed}"
            f"{'' if config_file.endswith('.json') else instead}"
        )
    if step.total > machine.memory:
        warn_once(f"{config['name']} needs {_likely(step, machine)}; going on")


def _likely(step, machine):
    return f"about {_gib(step.total)} on each device for the state and a step, of {machine}{_SPLIT_STEP}"


def check_same_config(config) -> None:
    """Raises RequirementsError on all processes if one has another config than process 0."""
    first, *others = distributed.gather(json.dumps(config, sort_keys=True))
    for process, other in enumerate(others, 1):
        if other != first:
            key, value, other_value = next(_differences(json.loads(first), json.loads(other), "config"))
            raise RequirementsError(
                f"{key} is {value!r} on process 0 and {other_value!r} on process {process}; "
                "all processes need the same command"
            )


def _differences(first, other, path):
    """Yields (path, value in first, value in other) for every difference."""
    if not isinstance(first, Mapping) or not isinstance(other, Mapping):
        if repr(first) != repr(other):  # NaN != NaN
            yield path, first, other
        return
    for key in sorted({*first, *other}):
        yield from _differences(first.get(key, "missing"), other.get(key, "missing"), f"{path}.{key}")


def check_workdir(workdir, state_bytes: int, keep: int) -> None:
    """Checks that this host can write to the workdir, and that there is space for the checkpoints.

    Args:
      workdir: the run's.
      state_bytes: a checkpoint's size.
      keep: the number of latest checkpoints to keep.

    Raises:
      RequirementsError: if not.
    """
    path = io.as_path(workdir)
    try:
        probe = path / f".write_test_{jax.process_index()}"
        io.write_atomically(probe, b"")
        probe.unlink(missing_ok=True)  # a bucket's client repeats a request after a lost response
    except OSError as error:
        raise unwritable(workdir, error) from error
    if io.is_remote(workdir):
        return
    # The latest `keep`, the best, and the one being written.
    needed, free = (keep + 2) * state_bytes, shutil.disk_usage(path).free
    if free < needed:
        raise RequirementsError(
            f"workdir {workdir} has {free / 2**30:.2f} GiB free; "
            f"the checkpoints need {needed / 2**30:.2f} GiB"
        )


def unwritable(workdir, error: OSError) -> RequirementsError:
    """The error of a workdir that can't be written."""
    return RequirementsError(f"workdir {workdir} can't be written: {error.strerror or error}")


def check_checkpoint_path(workdir) -> None:
    """Raises RequirementsError for a path that orbax does not support.

    It supports disks and gs://; orbax 0.12 would create a local folder "s3:" for s3://.
    """
    if io.is_remote(workdir) and not str(workdir).startswith("gs://"):
        raise RequirementsError(f"workdir {workdir}: checkpoints can be stored only on disks and in gs://")


def free_space(workdir) -> str:
    """ " (1.23 GiB free)" for a local folder; "" for a bucket or a missing folder."""
    if io.is_remote(workdir) or not os.path.isdir(workdir):
        return ""
    return f" ({shutil.disk_usage(workdir).free / 2**30:.2f} GiB free)"


def state_bytes(abstract_state: TrainState) -> int:
    """Bytes of a whole state, as in a checkpoint."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state))


def _missing_data(key, source):
    if source["kind"] != "tfds":
        return
    if not source["data_dir"]:
        yield f"the dataset {source['name']!r}, config.{key}.data_dir (not set)"
    elif not (io.as_path(source["data_dir"]) / source["name"]).exists():
        yield f"the dataset {source['name']!r} in config.{key}.data_dir (nothing in {source['data_dir']})"


def _gib(size):
    return f"{size / 2**30:.3g} GiB"

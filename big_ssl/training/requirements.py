"""What a run needs against what there is, said before anything is compiled."""

import os
import shutil
from collections.abc import Mapping
from typing import NamedTuple

import jax
from etils import epath
from jax.experimental import multihost_utils

from big_ssl.parallel import distributed
from big_ssl.parallel.notices import warn_once
from big_ssl.training import memory
from big_ssl.training.state import TrainState

# An estimate that is wrong by this much was never seen (docs/plan.md).
_CERTAINLY_TOO_MUCH = 4
_SPLIT_STATE = "; more devices share it by mesh.fsdp"
_SPLIT_STEP = "; more devices, grad_accum or a smaller batch_size need less"


class RequirementsError(ValueError):
    """The config can't run here; the message says what it needs and what would run."""


class Machine(NamedTuple):
    """All devices of a run, of how many bytes each."""

    devices: int
    kind: str
    memory: int

    @classmethod
    def here(cls) -> "Machine":
        """The devices of all processes; on CPU each has its share of its machine's memory."""
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
    """Raises RequirementsError where the devices cannot hold a step, or where data, weights or a vocabulary
    are not there; warns where the devices are likely too small.

    What a step takes is counted (training/memory.py), whatever devices the recipe was first run on.
    machine: by default this one.
    """
    needs, lacking, machine = config["requires"], [], machine or Machine.here()
    try:
        step = memory.count(config, machine.devices, machine.kind)
    except ValueError as error:
        raise RequirementsError(str(error)) from error
    if step.state + step.batch > machine.memory:
        lacking.append(f"{_gib(step.state)} for the state on each device, of {machine}{_SPLIT_STATE}")
    elif step.total > _CERTAINLY_TOO_MUCH * machine.memory:
        lacking.append(_likely(step, machine))
    for name, stream in config["streams"].items():
        lacking.extend(_lacking_data(f"streams.{name}.data.source", stream["data"]["source"]))
    for name, options in config["evals"].items():
        for key, value in options.items():
            if isinstance(value, Mapping) and "kind" in value:
                lacking.extend(_lacking_data(f"evals.{name}.{key}", value))
    if needs["weights"] and not config["init_from"]["path"]:
        lacking.append("weights to start from, config.init_from.path (not set)")
    texts = any(stream["data"]["captions"] for stream in config["streams"].values())
    if texts and not config["tokenizer"]["vocabulary"]:
        lacking.append(f"a {config['tokenizer']['kind']} vocabulary, config.tokenizer.vocabulary (not set)")
    if lacking:
        listed = "".join(f"\n  - {item}" for item in lacking)
        instead = f"\nRuns here: --config={config_file.split(':')[0]}:{needs['preset_here']}"
        raise RequirementsError(
            f"{config['name']} cannot run on this machine. It needs{listed}"
            f"{'' if config_file.endswith('.json') else instead}"
        )
    if step.total > machine.memory:
        warn_once(f"{config['name']} needs {_likely(step, machine)}; going on")


def _likely(step, machine):
    return f"about {_gib(step.total)} on each device for the state and a step, of {machine}{_SPLIT_STEP}"


@distributed.raise_on_all_hosts(RequirementsError)
def check_workdir(workdir, state_bytes: int, keep: int) -> None:
    """Raises RequirementsError where the workdir can't be written or has no room for the checkpoints."""
    path = epath.Path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write_test_{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise RequirementsError(f"workdir {workdir} can't be written: {error.strerror or error}") from error
    if "://" in str(workdir):
        return
    # The latest `keep`, the best, and the one being written.
    needed, free = (keep + 2) * state_bytes, shutil.disk_usage(path).free
    if free < needed:
        raise RequirementsError(
            f"workdir {workdir} has {free / 2**30:.2f} GiB free; "
            f"the checkpoints need {needed / 2**30:.2f} GiB"
        )


@distributed.raise_on_all_hosts(RequirementsError)
def check_shared(workdir) -> None:
    """Raises RequirementsError where the workdir is not the same folder for all processes."""
    if jax.process_count() == 1:
        return
    marker = epath.Path(workdir) / ".shared_test"
    if jax.process_index() == 0:
        marker.write_text("")
    multihost_utils.sync_global_devices("the marker is there")
    seen = marker.exists()
    multihost_utils.sync_global_devices("the marker was looked for")
    if jax.process_index() == 0:
        marker.unlink()
    if not seen:
        raise RequirementsError(
            f"workdir {workdir} is a folder of its own on process {jax.process_index()}; "
            "all processes must share one (gs://, NFS)"
        )


def state_bytes(abstract_state: TrainState) -> int:
    """Bytes of a whole state, as a checkpoint holds it."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state))


def _lacking_data(key, source):
    if source["kind"] != "tfds":
        return
    if not source["data_dir"]:
        yield f"the dataset {source['name']!r}, config.{key}.data_dir (not set)"
    elif not (epath.Path(source["data_dir"]) / source["name"]).exists():
        yield f"the dataset {source['name']!r} in config.{key}.data_dir (nothing in {source['data_dir']})"


def _gib(size):
    return f"{size / 2**30:.3g} GiB"

"""What a run needs against what there is, said before anything is compiled."""

import json
import os
import shutil
from collections.abc import Mapping

import jax
from etils import epath

from big_ssl.parallel import distributed
from big_ssl.training.state import TrainState


class RequirementsError(ValueError):
    """The config can't run here; the message says what it needs and what would run."""


@distributed.raise_on_all_hosts(RequirementsError)
def check_requirements(config, config_file: str) -> None:
    """Raises RequirementsError where devices, their memory or the dataset are not those needed."""
    needs, lacking = config["requires"], []
    if jax.device_count() < needs["devices"]:
        lacking.append(
            f"{needs['devices']} devices of at least {needs['gib_per_device']:g} GiB each "
            f"(here: {jax.device_count()} {jax.devices()[0].device_kind}, {_memory_gib():.1f} GiB)"
        )
    elif _memory_gib() < needs["gib_per_device"]:
        lacking.append(f"{needs['gib_per_device']:g} GiB a device (here: {_memory_gib():.1f} GiB)")
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
        raise RequirementsError(
            f"{config['name']} cannot run on this machine. It needs{listed}\n"
            f"Runs here: --config={config_file.split(':')[0]}:{needs['preset_here']}"
        )


def check_same_config(config) -> None:
    """Raises RequirementsError on all processes where one has another config than process 0."""
    first, *others = distributed.gather(json.dumps(config, sort_keys=True))
    for process, other in enumerate(others, 1):
        if other != first:
            key, here, there = next(_differences(json.loads(first), json.loads(other), "config"))
            raise RequirementsError(
                f"{key} is {here!r} on process 0 and {there!r} on process {process}; "
                "all processes need the same command"
            )


def _differences(first, other, path):
    """Yields (key, value of first, value of other)."""
    if not isinstance(first, Mapping) or not isinstance(other, Mapping):
        if repr(first) != repr(other):  # of one that is not a number too
            yield path, first, other
        return
    for key in sorted({*first, *other}):
        yield from _differences(first.get(key, "missing"), other.get(key, "missing"), f"{path}.{key}")


def check_workdir(workdir, state_bytes: int, keep: int) -> None:
    """Raises RequirementsError where this host can't write to the workdir, or where there is no room for the
    checkpoints."""
    path = epath.Path(workdir)
    try:
        probe = path / f".write_test_{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise unwritable(workdir, error) from error
    if "://" in str(workdir):
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


def _memory_gib():
    """One device's memory; on CPU, its share of the machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] / 2**30
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine / 2**30 / jax.local_device_count()

"""What a run needs against what there is, said before anything is compiled."""

import os
import shutil
from collections.abc import Mapping

import jax
from jax.experimental import multihost_utils

from big_ssl import io
from big_ssl.parallel import distributed
from big_ssl.training.state import TrainState


class Unrunnable(ValueError):
    """The config can't run here; the message says what it needs and what would run."""


@distributed.together(Unrunnable)
def check_machine(config, config_file: str) -> None:
    """Raises Unrunnable where devices, their memory or the dataset are not those needed."""
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
        raise Unrunnable(
            f"{config['name']} cannot run on this machine. It needs{listed}\n"
            f"Runs here: --config={config_file.split(':')[0]}:{needs['preset_here']}"
        )


@distributed.together(Unrunnable)
def check_workdir(workdir, state_bytes: int, keep: int) -> None:
    """Raises Unrunnable where the workdir can't be written or has no room for the checkpoints."""
    try:
        path = io.make_folder(workdir)
        probe = path / f".write_test_{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise Unrunnable(f"workdir {workdir} can't be written: {error.strerror or error}") from error
    if io.is_remote(workdir):
        return
    # The latest `keep`, the best, and the one being written.
    needed, free = (keep + 2) * state_bytes, shutil.disk_usage(path).free
    if free < needed:
        raise Unrunnable(
            f"workdir {workdir} has {free / 2**30:.2f} GiB free; "
            f"the checkpoints need {needed / 2**30:.2f} GiB"
        )


@distributed.together(Unrunnable)
def check_shared(workdir) -> None:
    """Raises Unrunnable where the workdir is not the same folder for all processes."""
    if jax.process_count() == 1:
        return
    marker = io.as_path(workdir) / ".shared_test"
    if jax.process_index() == 0:
        marker.write_text("")
    multihost_utils.sync_global_devices("the marker is there")
    seen = marker.exists()
    multihost_utils.sync_global_devices("the marker was looked for")
    if jax.process_index() == 0:
        marker.unlink()
    if not seen:
        raise Unrunnable(
            f"workdir {workdir} is a folder of its own on process {jax.process_index()}; "
            "all processes must share one (gs://, NFS)"
        )


def check_checkpoint_path(workdir) -> None:
    """Raises Unrunnable where orbax can't keep checkpoints: it knows disks and gs:// (0.12 takes s3:// for a
    folder named "s3:")."""
    if io.is_remote(workdir) and not str(workdir).startswith("gs://"):
        raise Unrunnable(f"workdir {workdir}: checkpoints are kept on disks and in gs:// alone")


def state_bytes(abstract_state: TrainState) -> int:
    """Bytes of a whole state, as a checkpoint holds it."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state))


def _lacking_data(key, source):
    if source["kind"] != "tfds":
        return
    if not source["data_dir"]:
        yield f"the dataset {source['name']!r}, config.{key}.data_dir (not set)"
    elif not (io.as_path(source["data_dir"]) / source["name"]).exists():
        yield f"the dataset {source['name']!r} in config.{key}.data_dir (nothing in {source['data_dir']})"


def _memory_gib():
    """One device's memory; on CPU, its share of the machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] / 2**30
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine / 2**30 / jax.local_device_count()

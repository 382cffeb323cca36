"""What a run needs against what there is, said before anything is compiled."""

import os
import shutil
from collections.abc import Mapping

import jax
from etils import epath
from jax.experimental import multihost_utils

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


def free_space(workdir) -> str:
    """ " (1.23 GiB free)" of a folder of this machine; "" of a bucket, and of a folder that is gone."""
    if "://" in str(workdir) or not os.path.isdir(workdir):
        return ""
    return f" ({shutil.disk_usage(workdir).free / 2**30:.2f} GiB free)"


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

"""What a run has trained, for use without the run: its newest checkpoint, read and left as it is."""

import contextlib
import json
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint.utils import checkpoint_steps

from big_ssl import io
from big_ssl.config import ConfigError, validate
from big_ssl.models import encoders
from big_ssl.models.layer_layouts import unstack_layers
from big_ssl.objectives.contrastive import ContrastiveHead
from big_ssl.training import build, requirements
from big_ssl.weights.format import ModelConfig


def read(workdir) -> tuple[ModelConfig, dict]:
    """(ModelConfig, variables) of what a run has trained; see `load` and `describe`."""
    config, variables = load(workdir)
    described = describe(config)
    return described, _described(config, described, variables)


def load(workdir) -> tuple[ModelConfig, dict]:
    """(training config, variables) of a run, layers apart; the average where there is one.

    variables: as state.evaluation_variables, of NumPy arrays. A process reads them for itself, without
    waiting for others and without a device. Raises FileNotFoundError where the run has not saved yet,
    ValueError where its config is not one that this version knows.
    """
    requirements.check_checkpoint_path(workdir)
    workdir = io.absolute(workdir)
    # What the run was evaluated on while it trained is nothing that the model depends on.
    config = json.loads((workdir / "config.json").read_text()) | dict(evals={})
    try:
        validate(config)
    except ConfigError as error:
        raise ValueError(f"{workdir}/config.json: {error}") from error
    return _unrolled(config, _evaluation_variables(_newest(workdir)))


def _newest(workdir):
    """The folder of the newest whole checkpoint."""
    folder = workdir / "checkpoints"
    steps = checkpoint_steps(folder) if folder.exists() else []
    if not steps:
        raise FileNotFoundError(f"{workdir} has no checkpoint yet")
    return folder / str(max(steps))


def _evaluation_variables(checkpoint):
    """state.evaluation_variables of a checkpoint, of which nothing else is read: no optimiser's moments."""
    with _reading_alone():
        stored = ocp.metadata(checkpoint).metadata
        if stored["ema"] is not None:
            frozen = _without_average(stored["params"], stored["ema"]["params"])
            wanted = dict(ema=stored["ema"]) | (dict(params=frozen) if frozen else {})
        else:
            wanted = dict(params=stored["params"], mutable=dict(encoders=stored["mutable"]["encoders"]))
        # Leaves of NumPy are read as NumPy: an array of the size of the whole model fits no one device.
        restored = ocp.load(checkpoint, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), wanted))
    if "ema" not in restored:
        return dict(params=restored["params"], **restored["mutable"])
    params = flatten_dict(restored["ema"]["params"]) | flatten_dict(restored.get("params", {}))
    return restored["ema"] | dict(params=unflatten_dict(params))


def _without_average(params, averages):
    """The parameters that are frozen, of which a state keeps no average."""
    known = flatten_dict(averages)
    return unflatten_dict({path: x for path, x in flatten_dict(params).items() if path not in known})


@contextlib.contextmanager
def _reading_alone() -> Iterator[None]:
    """Orbax waits for no other process, and reads the parts of a tree that it is asked for."""
    process, context = jax.process_index(), ocp.Context()
    context.multiprocessing.primary_host = process
    context.multiprocessing.active_processes = {process}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{process}"
    context.pytree.loading.partial_load = True
    with context:
        yield


def _unrolled(config, variables):
    """With layers apart, as all other formats have them."""
    scanned = {name: tower for name, tower in config["encoders"].items() if tower.get("scan")}
    for name, tower in scanned.items():
        variables = _unstacked(variables, name, encoders.STACKS[tower["kind"]])
    apart = {name: tower | dict(scan=False) for name, tower in scanned.items()}
    return config | dict(encoders=config["encoders"] | apart), variables


def _unstacked(variables, name, stacks):
    params, statistics = variables["params"], variables["encoders"]
    towers = params["encoders"] | {name: unstack_layers(params["encoders"][name], stacks)}
    kept = {collection: unstack_layers(tree, stacks) for collection, tree in statistics[name].items()}
    return dict(params=params | dict(encoders=towers), encoders=statistics | {name: kept})


def describe(config: Mapping) -> ModelConfig:
    """What is trained by a training config, a model of images alone where no objective reads texts too.

    Raises ValueError where no stream says how pictures are prepared, by its view "image".
    """
    streams, heads = config["streams"].values(), _heads(config)
    seen = [stream for stream in streams if "image" in stream["data"]["views"]]
    seen.sort(key=lambda stream: heads.get("contrastive") not in stream["objectives"])
    if not seen or "image" not in config["encoders"]:
        raise ValueError(f"{config['name']} has no image tower, or no stream with a view of that name")
    objectives = {name: each for stream in streams for name, each in stream["objectives"].items()}
    common = build.preparation(seen[0]["data"])
    if "classification" in heads:
        common["classes"] = objectives[heads["classification"]]["classes"]
    if "contrastive" not in heads:
        alone = dict(encoders=dict(image=config["encoders"]["image"]), head=None, tokenizer=None)
        return alone | dict(views=dict(image=config["views"]["image"])) | common
    known = ContrastiveHead.__dataclass_fields__
    return dict(
        encoders=config["encoders"],
        head={key: value for key, value in objectives[heads["contrastive"]].items() if key in known},
        views=config["views"],
        tokenizer=config["tokenizer"],
        **common,
    )


def _heads(config) -> dict[str, str]:
    """{a head of a ModelConfig: the objective that trains it}."""
    providers = build.providers(config)
    heads = dict(contrastive=providers["encode_text"], classification=providers["classify"])
    return {head: name for head, name in heads.items() if name}


def _described(config, described, variables):
    """Of variables what embeds and classifies; heads of self-distillation stay in the run, for init_from."""
    names = described["encoders"]
    heads = {head: variables["params"]["heads"][name] for head, name in _heads(config).items()}
    params = {"encoders": {name: variables["params"]["encoders"][name] for name in names}, "heads": heads}
    return dict(params=params, encoders={name: variables["encoders"][name] for name in names})

"""Reads the model that a run has trained from its newest checkpoint, which stays unchanged."""

import contextlib
import json
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint.utils import checkpoint_steps

from big_ssl import io, stored_config
from big_ssl.data import preprocessing
from big_ssl.evals import capabilities
from big_ssl.models.layer_layouts import unstack_layers
from big_ssl.objectives.base import EncoderCall
from big_ssl.objectives.contrastive import ContrastiveHead
from big_ssl.training import build, requirements, stages
from big_ssl.training import state as state_lib
from big_ssl.weights.format import ModelConfig


def read(workdir) -> tuple[ModelConfig, dict]:
    """(ModelConfig, variables) of a trained run's model; see `describe`, `load` and `exported`."""
    config, variables = load(workdir)
    return describe(config), exported(config, variables)


def load(workdir, step: int = 0) -> tuple[ModelConfig, dict]:
    """(training config of the checkpoint's stage, variables) of a run, with separate layers; the EMA if there
    is one.

    step: of the checkpoint, 0 for the newest. variables: as state.evaluation_variables, of NumPy arrays. A
    process reads them independently, without waiting for other processes and without a device. Raises
    FileNotFoundError if the run has not saved yet, ValueError if this version can't read its config.
    """
    requirements.check_checkpoint_path(workdir)
    workdir = io.absolute(workdir)
    # The model does not depend on the run's evaluators, whose data may be gone.
    config = json.loads((workdir / "config.json").read_text()) | dict(evals={})
    stored_config.check(config, workdir)
    checkpoint = workdir / "checkpoints" / str(step or newest_step(workdir))
    stage = stages.at_step(stages.resolve(config), int(checkpoint.name))
    return _unrolled(stage.config, _evaluation_variables(checkpoint))


def newest_step(workdir) -> int:
    """The step of a run's newest whole checkpoint. Raises FileNotFoundError if the run has not saved yet."""
    folder = io.absolute(workdir) / "checkpoints"
    steps = checkpoint_steps(folder) if folder.exists() else []
    if not steps:
        raise FileNotFoundError(f"{workdir} has no checkpoint yet")
    return max(steps)


def _evaluation_variables(checkpoint):
    """state.evaluation_variables of a checkpoint; the optimiser's moments are not read."""
    with _reading_alone():
        stored = ocp.metadata(checkpoint).metadata
        if stored["ema"] is not None:
            frozen = _without_average(stored["params"], stored["ema"]["params"])
            parts = dict(ema=stored["ema"]) | (dict(params=frozen) if frozen else {})
        else:
            parts = dict(params=stored["params"], mutable=state_lib.statistics(stored["mutable"]))
        # NumPy leaves are read as NumPy arrays: the unsharded model may not fit on one device.
        restored = ocp.load(checkpoint, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), parts))
    if "ema" not in restored:
        return dict(params=restored["params"], **restored["mutable"])
    params = flatten_dict(restored["ema"]["params"]) | flatten_dict(restored.get("params", {}))
    return restored["ema"] | dict(params=unflatten_dict(params))


def _without_average(params, averages):
    """The frozen parameters, which have no average in the state."""
    averaged = flatten_dict(averages)
    return unflatten_dict({path: x for path, x in flatten_dict(params).items() if path not in averaged})


@contextlib.contextmanager
def _reading_alone() -> Iterator[None]:
    """Makes orbax wait for no other process, and read only the requested parts of a tree."""
    process, context = jax.process_index(), ocp.Context()
    context.multiprocessing.primary_host = process
    context.multiprocessing.active_processes = {process}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{process}"
    context.pytree.loading.partial_load = True
    with context:
        yield


def _unrolled(config, variables):
    """The config and variables with separate layers, as in all other formats."""
    scanned = {name: options for name, options in config["encoders"].items() if options.get("scan")}
    modules = build.encoder_modules(config)
    for name in scanned:
        variables = _unstacked(variables, name, modules[name].stacks)
    unrolled = {name: options | dict(scan=False) for name, options in scanned.items()}
    return config | dict(encoders=config["encoders"] | unrolled), variables


def _unstacked(variables, name, stacks):
    params, statistics = variables["params"], variables["encoders"]
    encoder_params = params["encoders"] | {name: unstack_layers(params["encoders"][name], stacks)}
    unstacked = {collection: unstack_layers(tree, stacks) for collection, tree in statistics[name].items()}
    return variables | dict(
        params=params | dict(encoders=encoder_params), encoders=statistics | {name: unstacked}
    )


def describe(config: Mapping) -> ModelConfig:
    """The ModelConfig of a training config's model.

    It has the layout of converted models, independent of the run's names: an image encoder, and a text
    encoder and a head if an objective provides encode_text. Raises ValueError without an image encoder.
    """
    system = build.system(config, None)
    encoders_by_place, heads = _encoders(system), _heads(system)
    described = dict(
        encoders={place: config["encoders"][name] for place, name in encoders_by_place.items()},
        head=None,
        tokenizer=None,
        **preprocessing.model_keys(config["eval_transform"]),
    )
    if "contrastive" in heads:
        options = _options(config, heads["contrastive"])
        head = {key: value for key, value in options.items() if key in ContrastiveHead.__dataclass_fields__}
        described |= dict(head=head, tokenizer=config["tokenizer"])
    if "classification" in heads:
        described["classes"] = system.terms[heads["classification"]].objective.head.classes
    tasks = {method: _options(config, heads[method]) for method in capabilities.TASKS if method in heads}
    if tasks:
        described["tasks"] = {
            method: {key: value for key, value in options.items() if key != "weight"}
            for method, options in tasks.items()
        }
    return described


def _image_call(system) -> EncoderCall:
    """capabilities.image_call. Raises ValueError if there is none."""
    call = capabilities.image_call(system)
    if call is None:
        raise ValueError("no objective trains an image encoder, and no encoder is named image")
    return call


def _encoders(system) -> dict[str, str]:
    """{its place in a ModelConfig, "image" or "text": the run's encoder}."""
    text = capabilities.prediction(system, "encode_text")
    places = dict(image=_image_call(system).encoder)
    return places if text is None else places | dict(text=text.call.encoder)


def _heads(system) -> dict[str, str]:
    """{its place in a ModelConfig: the objective whose head it is}."""
    places = dict(contrastive=system.provider("encode_text"), classification=system.provider("classify"))
    places |= {method: system.provider(method) for method in capabilities.TASKS}
    heads = {place: name for place, name in places.items() if name}
    image = _image_call(system).encoder
    for method in capabilities.TASKS:
        how = capabilities.prediction(system, method)
        if how is not None and how.call.encoder != image:
            raise ValueError(
                f"{how.objective}: it reads encoders.{how.call.encoder}, and the model is encoders.{image}"
            )
    if "contrastive" in heads and not isinstance(
        head := system.terms[heads["contrastive"]].objective.head, ContrastiveHead
    ):
        raise ValueError(
            f"{heads['contrastive']}: a {type(head).__name__} can't be stored as a ModelConfig's head"
        )
    return heads


def _options(config, objective):
    return next(
        stream["objectives"][objective]
        for stream in config["streams"].values()
        if objective in stream["objectives"]
    )


def exported(config: Mapping, variables: Mapping) -> dict:
    """The variables of the ModelConfig of `describe`: encoders and heads that embed and classify.

    Heads of self-distillation stay in the run, for init_from.
    """
    system = build.system(config, None)
    encoders_by_place, heads = _encoders(system), _heads(system)
    params = variables["params"]
    owners = {place: system.terms[name].objective.shares_head_with or name for place, name in heads.items()}
    statistics = variables.get("heads", {})
    return dict(
        params={
            "encoders": {place: params["encoders"][name] for place, name in encoders_by_place.items()},
            "heads": {place: params["heads"][owner] for place, owner in owners.items()},
        },
        encoders={place: variables["encoders"][name] for place, name in encoders_by_place.items()},
        heads={place: statistics[owner] for place, owner in owners.items() if owner in statistics},
    )

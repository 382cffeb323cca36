"""What a run has trained, for use without the run: its newest checkpoint, read and left as it is."""

import json
from collections.abc import Mapping

import jax
from orbax.checkpoint import v1 as ocp

from big_ssl import io
from big_ssl.config import ConfigError, validate
from big_ssl.models import encoders
from big_ssl.models.layer_layouts import unstack_layers
from big_ssl.objectives.contrastive import ContrastiveHead
from big_ssl.training import build, requirements, setup
from big_ssl.training.state import evaluation_variables
from big_ssl.weights.format import Config

_ONE_DEVICE = dict(mesh=dict(data=1, fsdp=1, tensor=1), mesh_rules=(), sharding=(), grad_accum=1)


def read(workdir) -> tuple[Config, dict]:
    """(Config, variables) of what a run has trained; see `load` and `describe`."""
    config, variables = load(workdir)
    described = describe(config)
    return described, _described(described, variables)


def load(workdir) -> tuple[Config, dict]:
    """(training config, variables) of a run, layers apart; the average where there is one.

    Raises FileNotFoundError where the run has not saved yet, ValueError where its config is not
    one that this version knows.
    """
    requirements.check_checkpoint_path(workdir)
    workdir = io.absolute(workdir)
    # What the run was evaluated on while it trained is nothing that the model depends on.
    config = json.loads((workdir / "config.json").read_text()) | dict(evals={})
    try:
        validate(config)
    except ConfigError as error:
        raise ValueError(f"{workdir}/config.json: {error}") from error
    abstract = setup.set_up(config | _ONE_DEVICE, jax.devices()[:1]).abstract_state
    with ocp.training.Checkpointer(workdir / "checkpoints") as checkpoints:
        if checkpoints.latest is None:
            raise FileNotFoundError(f"{workdir} has no checkpoint yet")
        variables = evaluation_variables(checkpoints.load(checkpoints.latest.step, abstract))
    return _unrolled(config, variables)


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


def describe(config: Mapping) -> Config:
    """What is trained by a training config, a model of images alone where no objective reads texts too.

    Raises ValueError where no stream says how pictures are prepared, by its view "image".
    """
    streams = config["streams"].values()
    objectives = {name: each for stream in streams for name, each in stream["objectives"].items()}
    seen = [stream for stream in streams if "image" in stream["data"]["views"]]
    seen.sort(key=lambda stream: "contrastive" not in stream["objectives"])
    if not seen or "image" not in config["encoders"]:
        raise ValueError(f"{config['name']} has no image tower, or no stream with a view of that name")
    common = build.preparation(seen[0]["data"])
    if "classification" in objectives:
        common["classes"] = objectives["classification"]["classes"]
    if "contrastive" not in objectives:
        alone = dict(encoders=dict(image=config["encoders"]["image"]), head=None, tokenizer=None)
        return alone | dict(views=dict(image=config["views"]["image"])) | common
    known = ContrastiveHead.__dataclass_fields__
    return dict(
        encoders=config["encoders"],
        head={key: value for key, value in objectives["contrastive"].items() if key in known},
        views=config["views"],
        tokenizer=config["tokenizer"],
        **common,
    )


def _described(config, variables):
    """Of variables what embeds and classifies; heads of self-distillation stay in the run, for init_from."""
    heads = {"contrastive": config["head"], "classification": config.get("classes")}
    params = {
        "encoders": {name: variables["params"]["encoders"][name] for name in config["encoders"]},
        "heads": {name: variables["params"]["heads"][name] for name, there in heads.items() if there},
    }
    return dict(params=params, encoders={name: variables["encoders"][name] for name in config["encoders"]})

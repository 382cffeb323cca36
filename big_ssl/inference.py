"""Trained models on NumPy arrays: `big_ssl.load`."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from big_ssl import io
from big_ssl.data import tokenizers
from big_ssl.data.preprocessing import Pixels
from big_ssl.evals.predictor import Predictor
from big_ssl.losses.pairwise import Pairwise
from big_ssl.objectives.classification import Classification
from big_ssl.objectives.contrastive import Contrastive
from big_ssl.objectives.embedding import Embedding
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated
from big_ssl.training import trained
from big_ssl.training.system import System, Term
from big_ssl.weights import architecture, formats
from big_ssl.weights.format import ModelConfig
from big_ssl.weights.guess import guess

# The vocabulary's file beside converted weights, by the tokenizer's kind.
_PIECES = ("spiece.model", "tokenizer.model")
VOCABULARIES = {
    "wordpiece": ("vocab.txt", "tokenizer.json"),
    "clip_bpe": ("merges.txt", "tokenizer.json"),
    "sentencepiece": _PIECES,
    "sentencepiece_gemma": (*_PIECES, "tokenizer.json"),
    "sentencepiece_xlm": ("tokenizer.json", "sentencepiece.bpe.model"),
}

# Examples that go through an encoder at once, on each device, unless a caller chooses.
BATCH_SIZE = 64


class Model(Predictor):
    """A trained or converted model: an image encoder, a text encoder, or both and a head that embeds both;
    with a classifier if one was trained. Its methods are those of Predictor and LayerFeatures, on NumPy
    arrays.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: Mapping,
        dtype: str = "float32",
        devices=None,
        batch_size: int = BATCH_SIZE,
    ):
        """Places the weights on the devices.

        Args:
          config: see weights.format.ModelConfig.
          variables: as training.state.evaluation_variables returns.
          dtype: of the computation, float32 or bfloat16; norms and softmax are float32 in either.
          devices: each computes a part of every batch; all devices if None.
          batch_size: examples that go through an encoder at once, on each device.

        Raises:
          ValueError: for another dtype or batch size.
        """
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {dtype!r}; use float32 or bfloat16")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1), devices)
        self.config, system, statistics = config, _system(config, dtype), variables.get("encoders", {})
        # Weights of encoders without running statistics, and of heads without parameters, come without these.
        heads = {name: {} for name in system.terms} | variables["params"].get("heads", {})
        variables = dict(
            params=dict(variables["params"]) | dict(heads=heads),
            encoders={name: statistics.get(name, {}) for name in system.encoders},
            heads=variables.get("heads", {}),
        )
        super().__init__(
            system,
            jax.device_put(variables, replicated(mesh)),
            mesh,
            config,
            functools.partial(_tokenizer, config),
            batch_size * mesh_lib.batch_shards(mesh),
        )


def _system(config, dtype):
    """The encoders of a ModelConfig, with its heads under the names that they are stored under."""
    modules = architecture.modules(config, dtype)
    objectives: dict[str, Any] = {}
    if modules.head is not None:
        objectives["contrastive"] = Contrastive(modules.head, Pairwise("dense", None))
    if modules.embedding is not None:
        objectives["embedding"] = Embedding(modules.embedding, *config["encoders"])
    if modules.classifier is not None:
        objectives["classification"] = Classification(modules.classifier)
    objectives |= modules.tasks
    return System(
        encoders={name: getattr(modules, name) for name in architecture.encoder_names(config)},
        fields={},
        terms={name: Term("", objective, lambda step: 1.0) for name, objective in objectives.items()},
        eval_pixels=Pixels.of(config["views"]["image"]) if modules.image is not None else Pixels(),
    )


def _tokenizer(config):
    options = config["tokenizer"]
    if not options["vocabulary"]:
        files = " or ".join(VOCABULARIES.get(options["kind"], ("its file",)))
        raise ValueError(
            f"the weights came without the {options['kind']} vocabulary: put {files} beside "
            "them, or give token ids"
        )
    return tokenizers.build(options)


def load(
    path,
    dtype: str = "float32",
    batch_size: int = BATCH_SIZE,
    source: str = "auto",
    options: Mapping | None = None,
) -> Model:
    """The model in a folder that `python -m big_ssl.convert` or a run wrote, or in public weights.

    Args:
      path: the folder, or the weights' file.
      dtype, batch_size: as in Model.
      source, options: as in `read`.

    Raises:
      FileNotFoundError, or ValueError for anything else.
    """
    config, variables = read(path, source, options)
    return Model(config, variables, dtype, batch_size=batch_size)


def read(path, source: str = "auto", options: Mapping | None = None) -> tuple[ModelConfig, dict]:
    """The ModelConfig and the variables of such a folder, see `load`, or of public weights.

    source: a format in weights.formats.FORMATS; "auto" for the one that weights.guess finds. options: as in
    weights.formats.read_checkpoint. Raises ValueError for options of a run, which lacks no setting.
    """
    folder, source = io.as_path(path), guess(path) if source == "auto" else source
    if source == "big_ssl" and (folder / "checkpoints").exists():
        if options:
            raise ValueError(
                f"{folder} is a run, which states all of its settings: drop {', '.join(options)}"
            )
        return trained.read(folder)
    config, ours = formats.read_checkpoint(source, folder, options)
    if beside := vocabulary_beside(config, folder):
        config["tokenizer"]["vocabulary"] = str(beside)
    return config, unflatten_dict(ours, sep="/")


def vocabulary_beside(config: ModelConfig, folder):
    """The tokenizer's file beside weights, in their folder or in that of their file; None without one."""
    folder = io.folder_of(folder)
    tokenizer = config["tokenizer"] or dict(kind="")  # a model of images alone has none
    names = VOCABULARIES.get(tokenizer["kind"], ())
    return next((path for name in names if (path := folder / name).is_file()), None)

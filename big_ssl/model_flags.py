"""Flags of the commands that read a model: its format, and settings that its files lack."""

from absl import flags
from ml_collections import ConfigDict, config_flags

from big_ssl.weights.formats import FORMATS
from big_ssl.weights.guess import guess

FROM = flags.DEFINE_enum("from", "auto", ["auto", *FORMATS], "The input's format; auto: by its files.")
# 0 and "": unset.
_UNSET = dict(
    num_heads=0,
    text_num_heads=0,
    image_size=0,
    position_resize="",
    rope_base=0.0,
    network="",
    accept=(),
    non_finite=False,
    channels=0,
)
_MODEL = config_flags.DEFINE_config_dict("model", ConfigDict(_UNSET), "Settings that the input lacks.")


def resolve_format(source: str, path) -> str:
    """The format to read a path as: `source`, or of "auto" the guess, which is printed unless it is our own.

    Raises as weights.guess does.
    """
    if source == "auto" and (source := guess(path)) != "big_ssl":
        print(f"read as {source}")
    return source


def options() -> dict:
    """The options set by --model, for weights.formats.read_checkpoint."""
    return {key: value for key, value in _MODEL.value.items() if value}

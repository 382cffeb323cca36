"""The flags of the commands that read a model: its format, and what the format does not say."""

from absl import flags
from ml_collections import ConfigDict, config_flags

from big_ssl.weights.formats import FORMATS

FROM = flags.DEFINE_enum("from", "big_ssl", list(FORMATS), "The input's format.")
# 0 and "": not given.
_UNSAID = dict(num_heads=0, text_num_heads=0, image_size=0, position_resize="", network="")
_MODEL = config_flags.DEFINE_config_dict("model", ConfigDict(_UNSAID), "What the input does not say.")


def options() -> dict:
    """What --model says, for weights.formats.read_checkpoint."""
    return {key: value for key, value in _MODEL.value.items() if value}

"""Converts public weights to ours, and ours to public formats.

    python -m big_ssl.convert --from=hf_clip --input=DIR --output=OURS
    python -m big_ssl.convert --from=openai_clip --input=ViT-B-32.pt --output=OURS
    python -m big_ssl.convert --input=OURS_OR_WORKDIR --to=hf_clip --output=DIR

Without --from or --to it is ours: config.json and model.safetensors, which big_ssl.load reads.
The architecture is read from the arrays' shapes and the JSON files beside them; --model.KEY=VALUE
says what neither does. Exit code 2, and one line, where something does not fit.
"""

import pathlib
import shutil
import sys

from absl import app, flags, logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from big_ssl import inference
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import FORMATS, WRITTEN, read_checkpoint, write_checkpoint

_FROM = flags.DEFINE_enum("from", "big_ssl", list(FORMATS), "The input's format.")
_TO = flags.DEFINE_enum("to", "big_ssl", list(WRITTEN), "The output's format.")
_INPUT = flags.DEFINE_string("input", None, "The weights' file, or the folder of it and its JSON files.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write.")
# 0: not given.
_MODEL = config_flags.DEFINE_config_dict(
    "model", ConfigDict(dict(num_heads=0, text_num_heads=0, image_size=0)), "What the input does not say."
)


def convert(source: str, path, target: str, folder, options) -> int:
    """Reads path as source, writes folder as target; the number of weights.

    Raises FileNotFoundError, and ValueError that names what does not fit.
    """
    if source == "big_ssl":
        config, variables = inference.read(path)
        ours = flatten_dict(variables, sep="/")
    else:
        config, ours = read_checkpoint(source, path, options)
    write_checkpoint(target, folder, config, ours)
    if beside := inference.vocabulary_beside(config, path):
        shutil.copyfile(beside, pathlib.Path(folder) / beside.name)
    return sum(array.size for name, array in ours.items() if name.startswith("params/"))


def main(_) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # jax tells of every backend that it looks for
    options = {key: value for key, value in _MODEL.value.items() if value}
    try:
        count = convert(_FROM.value, _INPUT.value, _TO.value, _OUTPUT.value, options)
    except (WeightsError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{count / 1e6:.1f} M parameters in {_OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "output"])
    app.run(main)

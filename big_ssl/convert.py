"""Converts public weights to ours, and ours to public formats.

    python -m big_ssl.convert --from=hf_clip --input=DIR --output=OURS
    python -m big_ssl.convert --from=openai_clip --input=ViT-B-32.pt --output=OURS
    python -m big_ssl.convert --input=OURS_OR_WORKDIR --to=hf_clip --output=DIR

The default of --to is our format: config.json and model.safetensors, which big_ssl.load reads. The default of
--from is to guess, and to print the guess.
The architecture is inferred from the arrays' shapes and the JSON files beside them; --model.KEY=VALUE adds
what they lack. Exit code 2, and one line on stderr, if something does not fit.
"""

import os
import sys

from absl import app, flags, logging
from flax.traverse_util import flatten_dict

from big_ssl import inference, io
from big_ssl.command_line import OUTPUT
from big_ssl.model_flags import FROM, resolve_format
from big_ssl.model_flags import options as model_options
from big_ssl.weights import hf_tokenizers
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import WRITABLE, read_checkpoint, write_checkpoint

_TO = flags.DEFINE_enum("to", "big_ssl", list(WRITABLE), "The output's format.")
_INPUT = flags.DEFINE_string("input", None, "The weights file, or the folder with it and its JSON files.")


def convert(source: str, path, target: str, folder, options) -> int:
    """Converts weights between formats.

    Args:
      source: the input's format, in FORMATS.
      path: the input.
      target: the output's format, in WRITABLE.
      folder: the output.
      options: of model_flags.options.

    Returns:
      The number of parameters written.

    Raises:
      FileNotFoundError: without an input file.
      ValueError: naming what does not fit.
    """
    _check_folders(path, folder)
    if source == "big_ssl":
        config, variables = inference.read(path, source, options)
        ours = flatten_dict(variables, sep="/")
    else:
        config, ours = read_checkpoint(source, path, options)
    vocabulary = _vocabulary(target, config, inference.vocabulary_beside(config, path))
    written = write_checkpoint(target, folder, config, ours)
    for name, content in vocabulary.items():
        (io.as_path(folder) / name).write_bytes(content)
    return sum(array.size for name, array in written.items() if name.startswith("params/"))


def _check_folders(path, folder):
    """Refuses to write into the folder that is read."""
    if os.path.realpath(io.folder_of(path)) == os.path.realpath(io.as_path(folder)):
        raise ValueError(f"--output is {folder}, where --input is; its files would be overwritten")


def _vocabulary(target, config, beside) -> dict[str, bytes]:
    """{file name: content} of the vocabulary: as the target's own tokenizer reads it, or as it is."""
    tokenizer = config["tokenizer"]
    if tokenizer is None:
        return {}
    if target.startswith("hf_"):
        path = str(beside or "") or hf_tokenizers.known_vocabulary(tokenizer)
        files = hf_tokenizers.describe(tokenizer, path) if path else {}
        if not files:
            print(f"no vocabulary of {tokenizer['kind']}: the output has no tokenizer", file=sys.stderr)
        return {name: text.encode() for name, text in files.items()}
    if beside is None:
        return {}
    contents = {beside.name: beside.read_bytes()}
    if (ids := beside.parent / "vocab.json").is_file() and beside.name == "merges.txt":
        contents[ids.name] = ids.read_bytes()
    return contents


def main(_) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # jax logs every backend that it looks for
    try:
        source = resolve_format(FROM.value, _INPUT.value)
        count = convert(source, _INPUT.value, _TO.value, OUTPUT.value, model_options())
    except (WeightsError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{count / 1e6:.1f} M parameters in {OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "output"])
    app.run(main)

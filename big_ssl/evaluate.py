"""Evaluates a model: one that a run trained, a converted one, or public weights.

    python -m big_ssl.evaluate --checkpoint=runs/align_demo --eval=emoji --output=emoji.json
    python -m big_ssl.evaluate --checkpoint=CONVERTED --eval=zero_shot --eval.classes=imagenet \
        --eval.data.kind=image_folder --eval.data.path=IMAGENET/val --output=imagenet.json
    python -m big_ssl.evaluate --from=openai_clip --checkpoint=ViT-B-32.pt --eval=emoji --output=b32.json

--eval names an evaluator, --eval.KEY=VALUE sets its options (docs/evaluate.md), --name what its results
are filed under. Without --from the format is guessed, and the guess printed. Exit code 2, and one line, where
something does not fit.
"""

import ast
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

from absl import app, flags, logging

from big_ssl import command_line, inference, io
from big_ssl.checkpoint_flag import CHECKPOINT
from big_ssl.command_line import OUTPUT
from big_ssl.config import ConfigError, validate_evaluator
from big_ssl.evals import suite
from big_ssl.model_flags import FROM, resolve_format
from big_ssl.model_flags import options as model_options

_EVAL = flags.DEFINE_enum("eval", None, list(suite.EVALUATORS), "The evaluator.")
_NAME = flags.DEFINE_string("name", "", "The data's name in the results; by default that of its folder.")

# An option of the evaluator. Which there are depends on --eval, so absl can't know them.
_OPTION = re.compile(r"--?eval\.([\w.]+)(=?)(.*)", re.DOTALL)
_WORDS = {"true": True, "false": False}


def evaluate(
    path,
    kind,
    eval_options: Mapping,
    output,
    name: str = "",
    source: str = "auto",
    options: Mapping | None = None,
) -> dict[str, float]:
    """Runs one evaluator on one model, and writes JSON with the keys checkpoint, eval, options and metrics.

    Args:
      path: of the model.
      kind: the evaluator, a key of suite.EVALUATORS.
      eval_options: the evaluator's.
      output: the file to write.
      name: the dataset in the metrics' keys; "" for that of `dataset`.
      source, options: as in inference.read; a guessed format is printed.

    Returns:
      The metrics, {"eval/<kind>/<dataset>/<metric>": value}.

    Raises:
      ConfigError, OSError, and ValueError that names what does not fit.
    """
    validate_evaluator(dict(eval_options, kind=kind), "eval")
    output = io.as_path(output)
    io.make_folder(output.parent)
    name = name or dataset(eval_options)
    evaluator = suite.build({name: dict(eval_options, kind=kind)})[name]
    config, weights = inference.read(path, resolve_format(source, path), options)
    model = inference.Model(config, weights)
    suite.check(kind, evaluator, model)
    predictor = model.for_evaluation(progress=command_line.progress)
    metrics = {f"eval/{key}": value for key, value in evaluator.metrics(predictor).items()}
    record = dict(checkpoint=str(path), eval=kind, options=dict(eval_options), metrics=metrics)
    io.write_atomically(output, f"{json.dumps(record, indent=2)}\n".encode())
    return metrics


def dataset(options: Mapping) -> str:
    """The data's name in the results: that of a TFDS dataset or of a folder, else the source's kind."""
    data = options.get("data") or options.get("test") or {}
    return str(data.get("name") or pathlib.PurePath(str(data.get("path", ""))).name or data.get("kind", ""))


def parse(arguments: Sequence[str]) -> dict:
    """The evaluator's options of some --eval.KEY=VALUE, a key with dots as dicts in one another.

    Values are Python's where they can be read so, else text. Raises ValueError for other arguments.
    """
    options: dict = {}
    for argument in arguments:
        match = _OPTION.fullmatch(argument)
        if not match or not match[2]:
            raise ValueError(f"{argument}: write --eval.KEY=VALUE")
        *parents, last = match[1].split(".")
        node = options
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = _value(match[3])
    return options


def _value(text):
    try:
        value = _WORDS[text] if text in _WORDS else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    # Keys with dots make dicts; braces alone are a template's place for the name.
    return text if isinstance(value, dict | set) else value


def _parse_flags(argv):
    """The evaluator's options stay, for `main`."""
    evaluator = [argument for argument in argv[1:] if _OPTION.fullmatch(argument)]
    return command_line.parse_flags([argument for argument in argv if argument not in evaluator]) + evaluator


def main(argv) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # jax tells of every backend that it looks for
    try:
        where = (_EVAL.value, parse(argv[1:]), OUTPUT.value, _NAME.value)
        metrics = evaluate(CHECKPOINT.value, *where, FROM.value, model_options())
    except (ConfigError, OSError, ValueError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        sys.exit(2)
    for key, value in metrics.items():
        print(f"{key} {value:.4g}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "eval", "output"])
    app.run(main, flags_parser=_parse_flags)

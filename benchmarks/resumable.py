"""Many training runs in one folder, each of which is made once."""

import json
import pathlib
import sys
from collections.abc import Callable, Mapping

import jax
from absl import flags, logging

from big_ssl import command_line
from big_ssl.training import loop
from big_ssl.training.metrics import read_lines


class Stopped(Exception):
    """A run was asked to stop, and has saved."""


def result(config: Mapping, folder: pathlib.Path) -> dict[str, float]:
    """{metric: value} at the end of a run, which is trained only if folder does not hold its end.

    Raises ValueError where folder holds a run of another config, and Stopped.
    """
    written, text = folder / "config.json", json.dumps(config, indent=2)
    if written.exists() and written.read_text() != text:
        raise ValueError(f"{folder} holds a run with other settings; choose another --output")
    found = _found(folder, config["total_steps"])
    if not found:
        if not loop.train(config, folder).finished:
            raise Stopped
        found = _found(folder, config["total_steps"])
    return found


def _found(folder, step):
    """What was said at this step, if it has been judged."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["step"] == step]
    found = {key: value for line in lines for key, value in line.items() if key != "step"}
    return found if any(key.startswith("eval/") for key in found) else {}


def main(make: Callable[[pathlib.Path], None]) -> None:
    """make(--output); runs that differ in their data alone share one compilation. A line, and an exit code of
    2, for what does not fit."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax and grain log every step of a save
    folder = pathlib.Path(command_line.OUTPUT.value)
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
    except Stopped:
        print(f"stopped; the same command goes on in {folder}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        sys.exit(2)

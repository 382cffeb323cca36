"""Trains what a config describes.

    python -m big_ssl.main --config=configs/align_l2.py:demo --workdir=runs/align_demo

Any value of the config can be set: --config.total_steps=1000. The same command again resumes.

Exit code 0: training finished, or was asked to stop and saved. 1: it failed, and says why.
2: it can't run here as asked, said before anything is compiled.
"""

import functools
import shlex
import sys

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from big_ssl.command_line import parse_flags
from big_ssl.config import ConfigError, validate
from big_ssl.training.loop import train
from big_ssl.training.requirements import Unrunnable, check_machine
from big_ssl.training.run_report import write_run_report
from big_ssl.training.stopping import TrainingFailed

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE[:PRESET], a recipe.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written; may be gs://.")


def run(config, workdir: str, config_file: str, command: str) -> int:
    """Trains and writes the report. Returns the exit code; see the top of this file."""
    path = epath.Path(workdir)
    try:
        validate(config)
        check_machine(config, config_file)
        result = train(config, path)
    except (ConfigError, Unrunnable) as error:
        print(error, file=sys.stderr)
        return 2
    except TrainingFailed as error:
        print(error, file=sys.stderr)
        return 1
    if result.finished and jax.process_index() == 0:
        print(f"Report: {write_run_report(config, path, command, result)}")
    return 0


def main(argv) -> None:
    del argv
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax and grain log every step of a save
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    command = shlex.join(["python", "-m", "big_ssl.main", *sys.argv[1:]])
    sys.exit(run(_CONFIG.value.to_dict(), str(_WORKDIR.value), config_file, command))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=functools.partial(parse_flags, _CONFIG))

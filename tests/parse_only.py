"""Parses a command's flags and checks its config, and does nothing else.

    python tests/parse_only.py big_ssl.main --config=configs/clip.py:tiny --workdir=runs/clip

Exit code 0: the flags exist, and the config resolves and is valid; its config.json is written to --workdir,
as by a run, for a later command with --config=runs/clip/config.json.
"""

import json
import os
import pathlib
import runpy
import sys

from absl import app, flags


def _parse(main, argv=None, flags_parser=None):
    """Stands for app.run."""
    try:
        rest = (flags_parser or flags.FLAGS)(sys.argv)
    except flags.Error as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    name = sys.modules["__main__"].__spec__.name
    if name == "big_ssl.evaluate":
        _check_evaluator(rest)
    elif len(rest) > 1:
        print(f"{rest[1]} is no flag", file=sys.stderr)
        sys.exit(2)
    if name.startswith("big_ssl.") and "config" in flags.FLAGS:
        _check_config()


def _check_evaluator(rest):
    from big_ssl.config import validate_evaluator

    parse = sys.modules["__main__"].parse  # big_ssl.evaluate is what runs; its flags exist once
    validate_evaluator(parse(rest[1:]) | dict(kind=flags.FLAGS.eval), "eval")


def _check_config():
    from big_ssl.command_line import CONFIG
    from big_ssl.config import validate

    if CONFIG.value is None:
        return
    config = CONFIG.value.to_dict()
    validate(config)
    if "workdir" in flags.FLAGS and "://" not in flags.FLAGS.workdir:
        folder = pathlib.Path(os.path.expandvars(flags.FLAGS.workdir))
        if not folder.is_absolute():  # a workdir of a page's own machine is not made here
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    app.run = _parse
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

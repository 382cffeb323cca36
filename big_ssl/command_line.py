"""Parsing of command lines with --config, shared by all commands."""

import ast
import contextlib
import pathlib
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence

import rich.console
import rich.progress
from absl import flags
from ml_collections import ConfigDict, config_flags

# Defined once, since two commands in one process, as in the tests, cannot both define it.
OUTPUT = flags.DEFINE_string("output", None, "The file or the folder to write.")
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE[:PRESET], a recipe, or the config.json of a run.", lock_config=True
)

_STORED = str(pathlib.Path(__file__).with_name("stored_config.py"))
_JSON = re.compile(r"(--?config=|)([^:=]*(?:://[^:=]*)?\.json(?::.*)?)")
_CHANGE = re.compile(r"--?config\.([\w.]+)=.*", re.DOTALL)
_KIND = re.compile(r"--?config\.([\w.]+)\.kind=.*", re.DOTALL)


def parse_flags(argv):
    """Parses the flags and loads the config; prints an error in either as one line and exits with code 2."""
    plain, changes = split_kinds(redirect_json(argv))
    try:
        with _as_command_line(plain):
            arguments = flags.FLAGS(plain)
        getattr(CONFIG.value, "name", None)  # raises the error of a file that failed to load
        for path, options in changes:
            change_kind(CONFIG.value, path, options)
        return arguments
    except Exception as error:  # a config file is a program, which can raise anything
        print(_unknown_key(plain) or one_line(error), file=sys.stderr)
        sys.exit(2)


def _unknown_key(argv):
    """The first --config.PATH=VALUE of a path that the config lacks, for a message; "" without one.

    ml_collections' own error names the last key alone, and leaves the config unloaded.
    """
    others = [argument for argument in argv if not _CHANGE.fullmatch(argument)]
    with contextlib.suppress(Exception), _as_command_line(others):
        flags.FLAGS(others)
    config = flags.FLAGS["config"].value
    paths = [match[1] for argument in argv if (match := _CHANGE.fullmatch(argument))]
    for path in paths if isinstance(config, ConfigDict) else ():
        node = config
        for place, key in enumerate(keys := path.split(".")):
            if not isinstance(node, ConfigDict):
                break
            if key not in node:
                above = ".".join(["config", *keys[:place]])
                return f"config.{path}: {above} has no {key!r}; it has {', '.join(map(str, node))}"
            node = node[key]
    return ""


def progress(steps: Iterable, total: int, description: str) -> Iterable:
    """The steps, with a progress bar and the time left on a terminal, with nothing elsewhere."""
    console = rich.console.Console(stderr=True)
    shown = console.is_terminal
    return rich.progress.track(steps, description, total, console=console, transient=True, disable=not shown)


def config_file() -> str:
    """The value of --config: FILE, or FILE:ARG."""
    return config_flags.get_config_filename(flags.FLAGS["config"]).removeprefix(f"{_STORED}:")


def redirect_json(argv: Sequence[str]) -> list[str]:
    """Replaces --config=FILE.json by --config=stored_config.py:FILE.json."""
    arguments = list(argv)
    for i, argument in enumerate(argv):
        match = _JSON.fullmatch(argument)
        if match and (match[1] or (i and argv[i - 1] in ("--config", "-config"))):
            arguments[i] = f"{match[1]}{_STORED}:{match[2]}"
    return arguments


def split_kinds(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Splits off the arguments that change a `kind` and the other options beside it.

    Returns (the other arguments, [(path, {key: text})]): one entry for every --config.PATH.kind=KIND, with
    all --config.PATH.KEY=VALUE, shortest paths first.
    """
    paths = sorted({match[1] for argument in argv if (match := _KIND.fullmatch(argument))}, key=len)
    changes: dict[str, dict[str, str]] = {path: {} for path in paths}
    others = []
    for argument in argv:
        name, _, value = argument.partition("=")
        path, _, key = name.lstrip("-").removeprefix("config.").rpartition(".")
        if path in changes and name.startswith("-"):
            changes[path][key] = value
        else:
            others.append(argument)
    return others, list(changes.items())


def change_kind(config: ConfigDict, path: str, options: Mapping[str, str]) -> None:
    """Changes the `kind` of a config's subtree; keeps the old options that the new kind also has.

    Args:
      config: changed in place.
      path: the subtree's, with dots.
      options: {key: text}, the new kind and its options.

    Raises:
      KeyError: if the config has no such path.
    """
    from big_ssl.config import known_options  # imports everything that a config can name

    *parents, last = path.split(".")
    node = config
    for key in parents:
        if key not in node:
            raise KeyError(f"config.{path}: {key} is no key of the config")
        node = node[key]
    old = node[last].to_dict() if isinstance(node.get(last), ConfigDict) else {}
    known = known_options(path, options["kind"])
    new = {key: value for key, value in old.items() if known is None or key in known}
    for key, text in options.items():
        is_text = key == "kind" or isinstance(old.get(key), str) or (known or {}).get(key) is str
        new[key] = text if is_text else _literal(text)
    with config.unlocked(), node.ignore_type():
        node[last] = ConfigDict(new, convert_dict=True)
    config.lock()


def one_line(error: Exception) -> str:
    """Formats an error in a command line or a config file, with the position in the file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    # A KeyError's text is its argument in quotes.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    if isinstance(error, flags.Error | AttributeError | KeyError | TypeError | ValueError | OSError):
        return lines[-1].strip()
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{place.filename}, line {place.lineno}: {type(error).__name__}: {lines[0]}"
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "configs":
        where = ", ".join(_locations("configs")) or "nowhere"
        text += f"; the package configs is {where}: start in the folder of big_ssl's own, or rename the other"
    return text


def _locations(package: str) -> Iterable[str]:
    return getattr(sys.modules.get(package), "__path__", ())


@contextlib.contextmanager
def _as_command_line(argv):
    """Replaces sys.argv, in which ml_collections looks for --config.KEY=VALUE."""
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def _literal(text):
    """Parses a number, tuple, bool or None; returns other texts unchanged."""
    words = {"true": True, "false": False}
    try:
        return words[text] if text in words else ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text

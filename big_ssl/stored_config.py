"""Loads a config from JSON, such as a run's config.json: --config=WORKDIR/config.json.

--config takes Python files; big_ssl/command_line.py passes this one, with the JSON file after the colon.
"""

import json
from collections.abc import Mapping

from ml_collections import ConfigDict

from big_ssl import __version__, io, version
from big_ssl.config import ConfigError, validate


def get_config(path: str) -> ConfigDict:
    """Reads a config from JSON, local or in a bucket. Raises OSError or ValueError with one line."""
    file, _, changes = path.partition(".json")
    if changes:
        raise ValueError(f"{file}.json has no presets; change its values by --config.KEY=VALUE")
    config = json.loads(io.as_path(path).read_text())
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no config, but a JSON {type(config).__name__}")
    folder = io.as_path(path).parent
    if version.written_by(folder) != __version__:
        check(config, folder)
    return ConfigDict(_with_tuples(config), convert_dict=True)


def check(config: Mapping, folder) -> None:
    """Raises ConfigError, in one line, if the config in a folder is not valid.

    If another version of big_ssl wrote it, the message names that version and the first key that has changed.
    """
    try:
        validate(config)
    except ConfigError as error:
        writer = version.written_by(folder)
        if writer == __version__:
            raise ConfigError(f"{folder}/config.json: {error}") from error
        reason, *_ = str(error).split("; ")  # without the suggestion: the nearest key need not be the new one
        written = f"{folder}/config.json was written by big_ssl {writer}"
        raise ConfigError(f"{written}; in {__version__} {reason} (see CHANGELOG.md)") from error


def check_workdir(workdir) -> None:
    """Raises ConfigError, as `check` does, if another version's run left a config in workdir."""
    path = io.as_path(workdir) / "config.json"
    if path.exists() and version.written_by(workdir) != __version__:
        check(json.loads(path.read_text()), workdir)


def _with_tuples(value):
    """Converts JSON's lists to tuples, which configs use because flags can set them."""
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value

"""A config in JSON, such as the config.json that a run keeps, as a recipe: --config=WORKDIR/config.json.

--config names files in Python; big_ssl/command_line.py gives it this one, with the JSON file after the colon.
"""

import json

from ml_collections import ConfigDict

from big_ssl import io


def get_config(path: str) -> ConfigDict:
    """The config of the file, which may lie in a bucket. Raises OSError and ValueError, each in a line."""
    file, _, changes = path.partition(".json")
    if changes:
        raise ValueError(f"{file}.json has no presets; change its values by --config.KEY=VALUE")
    config = json.loads(io.as_path(path).read_text())
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no config, but a JSON {type(config).__name__}")
    return ConfigDict(_with_tuples(config), convert_dict=True)


def _with_tuples(value):
    """JSON has lists, configs have tuples: only those can be set on the command line."""
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value

"""Loads a config from JSON, such as a run's config.json: --config=WORKDIR/config.json.

--config takes Python files; big_ssl/command_line.py passes this one, with the JSON file after the colon.
"""

import json

from ml_collections import ConfigDict

from big_ssl import io


def get_config(path: str) -> ConfigDict:
    """Reads a config from JSON, local or in a bucket. Raises OSError or ValueError with one line."""
    file, _, changes = path.partition(".json")
    if changes:
        raise ValueError(f"{file}.json has no presets; change its values by --config.KEY=VALUE")
    config = json.loads(io.as_path(path).read_text())
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no config, but a JSON {type(config).__name__}")
    return ConfigDict(_with_tuples(config), convert_dict=True)


def _with_tuples(value):
    """Converts JSON's lists to tuples, which configs use because flags can set them."""
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value

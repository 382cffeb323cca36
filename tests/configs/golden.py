"""Writes the resolved recipes into tests/configs/golden, where a change of a recipe shows as a diff.

    make golden                       # or: python -m tests.configs.golden

The text is that of `python -m big_ssl.inspect --print`. Every model of every recipe is there, with its full
presets; and the small presets (demo, tiny, rehearsal) of one model a family.
"""

import functools
import importlib
import inspect
import pathlib
from collections.abc import Callable, Iterator
from unittest import mock

from big_ssl import recipe
from big_ssl.inspect import config_text

COMMAND = "make golden"
FOLDER = pathlib.Path(__file__).with_suffix("")
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
_SMALL = ("demo", "tiny", "rehearsal")
# The models, beside each recipe's default, whose small presets are written.
_SMALL_OF = ("rn50",)
# The recipes whose small presets are not written: they differ from align_l2's in their names and a padding.
_NOT_SMALL = ("align_base",)


def names() -> list[str]:
    """The recipes: the files in configs that --config takes."""
    return sorted(_recipes())


def tables(name: str) -> tuple[dict[str, Callable], tuple[str, ...]]:
    """A recipe's presets and models, as it gives them to recipe.choose."""
    with mock.patch.object(recipe, "choose", lambda name, arg, presets, models=(): (presets, tuple(models))):
        return _recipes()[name]("")


def arguments(name: str) -> Iterator[str]:
    """Yields what may follow the colon of --config=FILE:ARG: every model with every preset."""
    presets, models = tables(name)
    for preset, build in presets.items():
        if models and inspect.signature(build).parameters:
            yield from (",".join(filter(None, (model, preset))) for model in models)
        else:
            yield preset


def written() -> dict[str, tuple[str, str]]:
    """{name of a golden file: (recipe, argument)}."""
    return {
        "_".join([name, *filter(None, arg.split(","))]) + ".txt": (name, arg)
        for name in names()
        for arg in arguments(name)
        if _is_written(name, arg)
    }


def text(name: str, arg: str) -> str:
    """The resolved config, one value a line."""
    return config_text(_recipes()[name](arg).to_dict())


def main() -> None:
    """Writes all files and removes those of recipes that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for file in FOLDER.glob("*.txt"):
        file.unlink()
    files = written()
    for file, (name, arg) in files.items():
        (FOLDER / file).write_text(text(name, arg))
    print(f"{len(files)} files in {FOLDER}")


def _is_written(name, arg):
    *model, preset = arg.split(",")
    if not preset.startswith(_SMALL):
        return True
    default = tables(name)[1][:1]
    return name not in _NOT_SMALL and (not model or model[0] in (*default, *_SMALL_OF))


@functools.cache
def _recipes() -> dict[str, Callable]:
    """{recipe: its get_config}; the other files in configs are helpers."""
    modules = {path.stem: importlib.import_module(f"configs.{path.stem}") for path in CONFIGS.glob("*.py")}
    return {name: module.get_config for name, module in modules.items() if hasattr(module, "get_config")}


if __name__ == "__main__":
    main()

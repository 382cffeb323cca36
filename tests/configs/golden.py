"""Writes the resolved recipes into tests/configs/golden, where a change of a recipe shows as a diff.

    make golden                       # or: python -m tests.configs.golden

The text is that of `python -m big_ssl.inspect --print`. Each recipe's full presets are there, and the small
ones (demo, tiny, rehearsal) of one recipe a family.
"""

import functools
import importlib
import inspect
import pathlib
from collections.abc import Callable
from unittest import mock

from big_ssl import recipe
from big_ssl.inspect import config_text

COMMAND = "make golden"
FOLDER = pathlib.Path(__file__).with_suffix("")
_CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
_SMALL = ("demo", "tiny", "rehearsal")
# The recipes whose small presets are written: the others of a family differ from these in their names.
_SMALL_OF = (
    "align_imagenet",
    "align_l2",
    "align_retrieval",
    "clip_rn50",
    "clip_vitb32",
    "dinov2_continue",
    "dinov2_distill_vits14",
    "dinov2_vitg14",
    "hybrid_clip_dinov2",
    "ibot_imagenet",
    "ibot_vits16",
    "siglip",
)


def written() -> dict[str, tuple[str, str]]:
    """{name of a golden file: (recipe, preset)}; the preset "" is the recipe itself."""
    # Recipes leave the choice to recipe.choose, so that it sees the presets of all of them.
    with mock.patch.object(recipe, "choose", lambda name, arg, presets: tuple(presets)):
        presets = {name: get_config("") for name, get_config in _recipes().items()}
    return {
        f"{name}{preset and '-'}{preset}.txt": (name, preset)
        for name, known in presets.items()
        for preset in known
        if name in _SMALL_OF or not preset.startswith(_SMALL)
    }


def text(name: str, preset: str) -> str:
    """The resolved config, one value a line."""
    return config_text(_recipes()[name](preset).to_dict())


def main() -> None:
    """Writes all files and removes those of recipes that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for file in FOLDER.glob("*.txt"):
        file.unlink()
    files = written()
    for file, (name, preset) in files.items():
        (FOLDER / file).write_text(text(name, preset))
    print(f"{len(files)} files in {FOLDER}")


@functools.cache
def _recipes() -> dict[str, Callable]:
    """{recipe: its get_config}, of every file in configs that --config takes: others want a model as well."""
    modules = {path.stem: importlib.import_module(f"configs.{path.stem}") for path in _CONFIGS.glob("*.py")}
    functions = {name: getattr(module, "get_config", None) for name, module in sorted(modules.items())}
    return {
        name: f for name, f in functions.items() if f and list(inspect.signature(f).parameters) == ["arg"]
    }


if __name__ == "__main__":
    main()

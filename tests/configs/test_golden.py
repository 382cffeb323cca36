"""Every recipe, resolved, is the text in tests/configs/golden."""

import ast

import pytest

from big_ssl.inspect import config_text
from tests.configs import golden


def first_difference(expected, text):
    """The first key whose values differ, with both; "" where none do."""
    old, new = (dict(line.split(" = ", 1) for line in lines.splitlines()) for lines in (expected, text))
    for key in sorted(old | new):
        if old.get(key) != new.get(key):
            return f"{key} was {old.get(key, 'missing')} and is {new.get(key, 'missing')}"
    return ""


@pytest.mark.parametrize("file", golden.written())
def test_a_recipe_is_what_its_golden_file_holds(file):
    recipe, arg = golden.written()[file]
    path = golden.FOLDER / file
    expected = path.read_text() if path.exists() else ""
    difference = first_difference(expected, golden.text(recipe, arg))
    assert not difference, f"{file}: {difference}; if that is meant: {golden.COMMAND}"


def test_no_golden_file_is_left_of_a_recipe_that_is_gone():
    left = {path.name for path in golden.FOLDER.glob("*.txt")} - golden.written().keys()
    assert not left, f"of no recipe: {sorted(left)}; to remove: {golden.COMMAND}"


@pytest.mark.parametrize("name", golden.names())
def test_a_word_is_a_model_or_a_preset(name):
    presets, models = golden.tables(name)
    assert not presets.keys() & set(models)


@pytest.mark.parametrize("name", golden.names())
def test_a_recipe_imports_no_other_recipe(name):
    tree = ast.parse((golden.CONFIGS / f"{name}.py").read_text())
    imported = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("configs")
        for part in (node.module.removeprefix("configs").lstrip("."), *(alias.name for alias in node.names))
    }
    assert not imported & set(golden.names())


def test_the_difference_names_the_key_and_both_values():
    before = config_text(dict(rate=1e-3, views=dict(image=dict(size=224)), masks={}))
    after = config_text(dict(rate=1e-3, views=dict(image=dict(size=196, crop=1)), masks={}))
    assert first_difference(before, before) == ""
    assert first_difference(before, after) == "views.image.crop was missing and is 1"
    assert first_difference(after, before) == "views.image.crop was 1 and is missing"
    assert first_difference("a = 1\n", "a = 1.0\n") == "a was 1 and is 1.0"

"""The package as a whole: the cost of importing it, and its style rules."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "big_ssl").rglob("*.py"), *(ROOT / "configs").glob("*.py")])


def _loaded_after(statement):
    """The names of the modules in memory after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys; print(chr(10).join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(result.stdout.split())


@pytest.mark.smoke
def test_importing_the_package_imports_neither_jax_nor_tensorflow():
    loaded = _loaded_after("import big_ssl")
    assert "big_ssl" in loaded
    assert not loaded & {"jax", "flax", "tensorflow", "tensorflow_datasets", "numpy"}


def test_the_command_imports_no_tensorflow():
    loaded = _loaded_after("import big_ssl.main, configs.align_l2")
    assert "jax" in loaded
    assert not loaded & {"tensorflow", "tensorflow_datasets", "torch"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_style_rules(path):
    source = path.read_text()
    tree = ast.parse(source)
    # An empty __init__.py needs no docstring.
    assert not source.strip() or ast.get_docstring(tree), "no docstring"
    assert len(source.splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 80, f"{node.name} is too long"


def test_no_path_of_one_machine_is_in_a_tracked_file():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    # Put together here so that this file does not find itself.
    machine = re.compile(
        "|".join(rf"(?<![\w.]){folder}" for folder in ("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/"))
    )
    matches = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".parquet", ".npz", ".png", ".webp", ".gz"} or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        matches += [f"{name}: {line.strip()[:80]}" for line in text.splitlines() if machine.search(line)]
    assert not matches

"""The parameters at the start of a run: a summary that fits a terminal, and a file with all."""

import importlib

import jax
import pytest
import rich.console

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import state_shardings
from big_ssl.training import progress
from big_ssl.training.model import build_model

MESH = dict(data=4, fsdp=2, tensor=1)


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """shown(recipe, arg) -> (lines on a terminal of 80 columns, lines of the file, the parameters)."""

    def show(recipe, arg):
        config = importlib.import_module(f"configs.{recipe}").get_config(arg).to_dict()
        one = mesh_lib.make_mesh(dict.fromkeys(MESH, 1), jax.devices()[:1])
        params = jax.eval_shape(build_model(config, one).init).params
        console = rich.console.Console(width=80, record=True, soft_wrap=True, highlight=False)
        monkeypatch.setattr(progress, "console", console)
        progress.print_parameters(params, state_shardings(mesh_lib.make_mesh(MESH), params), tmp_path)
        return (
            console.export_text().splitlines(),
            (tmp_path / "parameters.txt").read_text().splitlines(),
            params,
        )

    return show


@pytest.mark.parametrize(
    ("recipe", "arg"),
    [
        ("clip", "demo"),
        ("clip", "rn50,tiny"),
        ("dinov2_distill", ""),
        ("hybrid_clip_dinov2", ""),
    ],
)
def test_the_summary_fits_a_terminal_and_the_file_has_all(recipe, arg, shown):
    screen, file, params = shown(recipe, arg)
    *table, total = screen
    assert len(screen) <= 25
    assert max(map(len, table)) <= 80
    assert len(file) == 1 + len(jax.tree.leaves(params))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total.startswith(f"{size:,} parameters, ")
    counts = [row.split("│")[2] for row in table if row.startswith("│")]
    assert sum(int(count.replace(",", "")) for count in counts) == size


def test_the_file_has_a_parameters_partition(shown):
    _, file, _ = shown("clip", "")
    (row,) = (line.split() for line in file if line.startswith("encoders/text/token/embedding"))
    assert row[1:] == ["(49408,", "512)", "float32", "fsdp", "48.250"]


def test_other_processes_write_nothing(shown, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    progress.print_parameters({}, {}, tmp_path)
    assert not list(tmp_path.iterdir())

"""Every notebook runs from its first cell to its last, and is committed without outputs."""

import json
import pathlib

import pytest

from big_ssl.convert import convert
from tests import commands
from tests.parity import goldens

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every
def test_a_notebook_is_committed_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def execute(path, monkeypatch, **variables):
    """Runs a notebook. Returns its code cells with their outputs.

    Args:
      path: the notebook.
      monkeypatch: pytest's.
      **variables: of the environment.
    """
    nbclient = pytest.importorskip("nbclient", reason="the extras dev and notebooks install nbclient")
    pytest.importorskip("ipykernel", reason="the extras dev and notebooks install ipykernel")
    import nbformat  # nbclient brings it

    for name, value in dict(PYTHONPATH=ROOT, **variables).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel chooses its own, and keeps the plots
    notebook = nbformat.read(path, as_version=4)
    where = dict(metadata=dict(path=str(path.parent)))
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    return code


def pictures(code):
    """How many pictures the cells have drawn."""
    return sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


def printed(code):
    """All that the cells have printed."""
    return "".join(output.get("text", "") for cell in code for output in cell.outputs)


@pytest.fixture(scope="module")
def public_weights(tmp_path_factory):
    """A tiny CLIP of random weights in transformers' layout, with its tokenizer."""
    folder = tmp_path_factory.mktemp("public")
    goldens.write_talking(folder / "ours")
    convert("big_ssl", folder / "ours", "hf_clip", folder / "clip", {})
    return folder / "clip"


@pytest.mark.slow
@every
def test_a_notebook_runs(path, public_weights, monkeypatch):
    assert pictures(execute(path, monkeypatch, WEIGHTS=public_weights))


@pytest.mark.slow
def test_converted_weights_are_inspected(public_weights, tmp_path, monkeypatch):
    convert("hf_clip", public_weights, "big_ssl", tmp_path / "ours", {})
    code = execute(ROOT / "notebooks/inspect_checkpoint.ipynb", monkeypatch, CHECKPOINT=tmp_path / "ours")
    assert "ours is a folder of weights" in printed(code)
    assert "converted weights have no steps" in printed(code)
    assert pictures(code) == 2  # norms by layer; attention and components


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["align_l2.py:tiny", "clip.py:tiny"])
def test_a_run_in_a_bucket_is_inspected(recipe, gcs_folder, gcs, monkeypatch):
    """With an EfficientNet and with a ViT."""
    flags = [f"--config=configs/{recipe}", f"--workdir={gcs_folder}/run", "--config.evals={}"]
    result = commands.execute(
        ["-m", "big_ssl.main", *flags, "--config.checkpoint.every=5"], **gcs.environment
    )
    assert result.returncode == 0, result.stderr
    variables = dict(gcs.environment, CHECKPOINT=f"{gcs_folder}/run")
    code = execute(ROOT / "notebooks/inspect_checkpoint.ipynb", monkeypatch, **variables)
    assert "the working directory of a run" in printed(code)
    assert ("the image encoder is no ViT" in printed(code)) == ("align" in recipe)
    assert pictures(code) >= 2

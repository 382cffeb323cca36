"""The curate command: its files, messages and exit codes."""

import functools
import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from big_ssl import curate
from big_ssl.curation import records
from big_ssl.curation.limits import Limits
from big_ssl.data.sources import ParquetPairs, TfdsPairs
from tests import commands

ROOT = pathlib.Path(__file__).parents[1]
SAMPLE = ROOT / "tests/data/openclipart_sample.parquet"
SOURCE = (
    "--source.kind=parquet",
    f"--source.path={SAMPLE}",
    "--texts=title,description",
    "--sides=width,height",
)
LIMITS = ("--limits.languages=()", "--limits.min_side=32", "--limits.most_frequent=400")


run = functools.partial(commands.run, "big_ssl.curate")


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """The sample with 50 near-duplicates of an evaluation set: (output folder, the command's output)."""
    folder, rng = tmp_path_factory.mktemp("curated"), np.random.default_rng(0)
    embeddings = rng.normal(size=(201, 16))
    np.savez(folder / "embeddings.npz", embeddings=embeddings)
    np.savez(folder / "references.npz", embeddings=2 * embeddings[100:150])
    near = (f"--embeddings={folder}/embeddings.npz", f"--references={folder}/references.npz")
    done = run(*SOURCE, *LIMITS, *near, f"--output={folder}/out")
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


def test_the_command_writes_a_dataset_and_its_funnel(curated):
    folder, output = curated
    funnel = json.loads((folder / "out/funnel.json").read_text())
    assert funnel["limits"]["min_side"] == 32
    rows = {row["rule"]: row for row in funnel["dropped"]}
    assert rows["evaluation_duplicate"]["images"] == 50
    written = TfdsPairs("curated_pairs", "train", str(folder / "out"))
    assert len(written) == funnel["output"]["images"] > 10
    assert sum(len(written[i]["text"]) for i in range(len(written))) == funnel["output"]["pairs"]
    last = output.splitlines()[-1]
    kept = funnel["output"]
    assert last == f"{kept['images']} of 201 images and {kept['pairs']} of 242 pairs in {folder}/out"
    with Image.open(folder / "out/funnel.png") as image:
        assert min(image.size) > 300
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "curated_pairs",
        "funnel.json",
        "funnel.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source.kind=parket",), "source.kind: 'parket' is unknown; did you mean parquet?"),
        (("--sides=width",), "--sides=width: name two, the width and the height"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    done = run(*SOURCE, *LIMITS, f"--output={tmp_path}/out", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def items():
    source = ParquetPairs(str(SAMPLE), text_keys=("title", "width", "height"))
    return records.Items(source, ("title",), ("width", "height"))


def test_a_dataset_is_not_overwritten(curated, items):
    with pytest.raises(FileExistsError, match="/out already contains curated_pairs; choose another --output"):
        curate.curate(items, Limits(languages=()), str(curated[0] / "out"))


def test_if_no_pair_is_kept_the_funnel_shows_why(items, tmp_path):
    with pytest.raises(ValueError, match=r"no pair passes these limits; .*/funnel.json shows why"):
        curate.curate(items, Limits(languages=(), min_side=10**6), str(tmp_path))
    funnel = json.loads((tmp_path / "funnel.json").read_text())
    assert funnel["input"]["images"] == 201
    assert funnel["output"] == dict(images=0, pairs=0)
    assert not (tmp_path / "curated_pairs").exists()


def test_the_error_without_beam_contains_the_pip_command(items, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(ImportError, match=r"--beam needs Apache Beam: pip install 'big-ssl\[curation\]'"):
        curate.curate(items, Limits(languages=()), str(tmp_path), ["runner=DirectRunner"])

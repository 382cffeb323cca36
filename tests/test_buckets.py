"""Every command with every path in an emulated bucket."""

import json
import os
import pathlib
import subprocess
import sys

import fsspec
import jax
import numpy as np
import pytest

import big_ssl
from big_ssl import convert, curate, evaluate, inference, inspect, io, main, train_tokenizer
from big_ssl.curation.limits import Limits
from big_ssl.curation.records import Items
from big_ssl.data import sources
from big_ssl.training.metrics import read_lines
from big_ssl.training.requirements import RequirementsError, check_workdir
from big_ssl.weights import tensor_files
from configs.align_l2 import get_config

ROOT = pathlib.Path(__file__).parents[1]
SAMPLE = ROOT / "tests" / "data" / "openclipart_sample.parquet"


@pytest.fixture(params=["gcs_folder", "s3_folder"])
def bucket(request):
    """An empty folder in a bucket of each kind."""
    return io.as_path(request.getfixturevalue(request.param))


def test_parquet_files_and_image_folders_are_read(bucket):
    io.write_atomically(bucket / "pairs" / "a.parquet", SAMPLE.read_bytes())
    keys = dict(text_keys=("title", "width"))
    there = sources.build(dict(kind="parquet", path=str(bucket / "pairs"), **keys))
    here = sources.build(dict(kind="parquet", path=str(SAMPLE), **keys))
    assert len(there) == len(here)
    assert there[3] == here[3]
    assert there.label_names("width") == here.label_names("width")
    for name, index in (("cat/1", 0), ("cat/deep/2", 1), ("dog/3", 2)):
        io.write_atomically(bucket / "pictures" / f"{name}.png", here[index]["image"])
    folder = sources.build(dict(kind="image_folder", path=str(bucket / "pictures")))
    assert [[record["label"]] for record in map(folder.__getitem__, range(3))] == [
        ["cat"],
        ["cat"],
        ["dog"],
    ]
    assert folder[1]["image"] == here[1]["image"]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_of_arrays_are_read(bucket, tmp_path, suffix):
    arrays = dict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.ones(4, np.float16))
    if suffix == ".npz":
        np.savez(tmp_path / "x.npz", **arrays)
        io.write_atomically(bucket / "x.npz", (tmp_path / "x.npz").read_bytes())
    else:
        tensor_files.write_safetensors(bucket / "x.safetensors", arrays, {})
    actual = tensor_files.read_tensors(bucket / f"x{suffix}")
    assert actual.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(actual[name], array, strict=True)
    with pytest.raises(FileNotFoundError):
        tensor_files.read_tensors(bucket / f"missing{suffix}")


def test_a_curated_dataset_is_written_and_read(gcs_folder):
    texts, sides = ("title", "description"), ("width", "height")
    items = Items(
        sources.build(dict(kind="parquet", path=str(SAMPLE), text_keys=texts + sides)), texts, sides
    )
    output = f"{gcs_folder}/curated"
    actual = curate.curate(items, Limits(min_side=32, languages=()), output)
    assert json.loads((io.as_path(output) / "funnel.json").read_text())["output"] == actual["output"]
    source = sources.build(dict(kind="tfds", name="curated_pairs", split="train", data_dir=output))
    assert len(source) == actual["output"]["images"]
    assert all(len(source[i]["text"]) for i in range(len(source)))


def test_array_record_on_s3_is_an_error(s3_folder):
    with pytest.raises(ValueError, match="array_record is read from disks and gs:// alone"):
        sources.build(dict(kind="tfds", name="x", split="train", data_dir=s3_folder))
    with pytest.raises(ValueError, match=r"--beam needs a folder on a disk that all workers share"):
        curate.curate((), Limits(languages=()), s3_folder, ["runner=DirectRunner"])


def test_vocabularies_and_plots_are_written(bucket, capsys):
    config = get_config("tiny")
    with config.unlocked():
        config.streams.pairs.data.source.share = 0.05
    assert train_tokenizer.run("wordpiece", config, 300, str(bucket / "vocab.txt")) == 0
    assert "config.tokenizer.size=" in capsys.readouterr().out
    assert (bucket / "vocab.txt").read_text().startswith("[PAD]\n")
    assert inspect.run(config.to_dict(), str(bucket / "schedules.png")) == 0
    assert (bucket / "schedules.png").read_bytes().startswith(b"\x89PNG")


def test_a_workdir_on_s3_is_an_error_before_anything_slow(s3_folder, capsys):
    config = get_config("tiny").to_dict()
    assert main.run(config, s3_folder, "configs/align_l2.py", "command") == 2
    message = f"workdir {s3_folder}: checkpoints can be stored only on disks and in gs://\n"
    assert capsys.readouterr().err == message
    io.write_atomically(io.as_path(s3_folder) / "checkpoints" / "1" / "x", b"x")
    with pytest.raises(RequirementsError, match="checkpoints can be stored only on disks"):
        inference.read(s3_folder)


def test_a_workdir_survives_lost_responses(gcs_folder, monkeypatch):
    """A repeated deletion finds nothing."""
    filesystem = type(fsspec.filesystem("gs"))
    request = filesystem._request

    async def twice(self, method, *arguments, **options):
        if method == "DELETE":
            await request(self, method, *arguments, **options)
        return await request(self, method, *arguments, **options)

    monkeypatch.setattr(filesystem, "_request", twice)
    check_workdir(gcs_folder, 1, 1)
    assert not io.as_path(gcs_folder).exists()


def test_the_error_for_a_missing_client_is_one_line_in_every_command(monkeypatch, capsys):
    there = io.importlib.util.find_spec
    monkeypatch.setattr(
        io.importlib.util, "find_spec", lambda name, *a: None if name == "gcsfs" else there(name, *a)
    )
    needed = "gs://b/x: gs:// needs gcsfs: pip install 'big-ssl[gcs]'"
    assert main.run(get_config("tiny").to_dict(), "gs://b/x", "configs/align_l2.py", "command") == 2
    assert capsys.readouterr().err == f"{needed}\n"
    assert train_tokenizer.run("wordpiece", get_config("tiny"), 300, "gs://b/x") == 2
    assert inspect.run(get_config("tiny").to_dict(), "gs://b/x") == 2
    assert needed in capsys.readouterr().err
    for call in (
        lambda: big_ssl.load("gs://b/x"),
        lambda: convert.convert("hf_clip", "gs://b/x", "big_ssl", "gs://b/y", {}),
        lambda: evaluate.evaluate("nowhere", "emoji", {}, "gs://b/x"),
    ):
        with pytest.raises(OSError, match=r"pip install 'big-ssl\[gcs\]'"):
            call()


@pytest.mark.slow
def test_a_whole_run_in_a_bucket(gcs_folder, tmp_path):
    """Train, resume, load, evaluate and convert, without local files."""
    workdir = f"{gcs_folder}/run"
    arguments = [
        sys.executable,
        "-m",
        "big_ssl.main",
        "--config=configs/align_l2.py:tiny",
        f"--workdir={workdir}",
    ]
    environment = os.environ | dict(
        JAX_PLATFORMS="cpu", JAX_DISABLE_MOST_OPTIMIZATIONS="1", PYTHONPATH=str(ROOT)
    )
    for steps in (10, 20, 20):  # the second resumes, the third only writes the report
        run = subprocess.run(
            [*arguments, f"--config.total_steps={steps}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert run.stdout.endswith(f"Report: {workdir}/report/index.html\n")
    lines = read_lines(f"{workdir}/metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [5, 10, 15, 20]
    assert sorted({line["step"] for line in lines if "eval/zero_shot/twemoji/top1" in line}) == [10, 20]
    assert "train/loss" not in lines[-1]
    assert lines[-1]["time/compute"] > 0
    page = (io.as_path(workdir) / "report" / "index.html").read_text()
    assert "zero-shot" in page.lower()
    _use(workdir, gcs_folder)


def _use(workdir, folder):
    model = big_ssl.load(workdir)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    expected = model.encode_image(images)
    metrics = evaluate.evaluate(workdir, "emoji", dict(styles=("twemoji",)), f"{folder}/emoji.json")
    record = json.loads(io.as_path(f"{folder}/emoji.json").read_text())
    assert record["metrics"] == metrics
    assert convert.convert("big_ssl", workdir, "big_ssl", f"{folder}/ours", {}) > 0
    np.testing.assert_allclose(big_ssl.load(f"{folder}/ours").encode_image(images), expected, atol=1e-5)
    assert jax.tree.leaves(inference.read(f"{folder}/ours")[1])

"""A run on images of four channels: trained, evaluated, reported, loaded."""

import json

import numpy as np
import pytest
from PIL import Image

import big_ssl
from big_ssl import main
from big_ssl.training import build
from configs import ibot

CLASSES, SIDE = ("fields", "water"), 40


@pytest.fixture
def folder(tmp_path):
    """PNGs of mode RGBA, whose fourth channel, which is no transparency, tells the classes apart."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 256, (SIDE, SIDE, 4), np.uint8)
            pixels[..., 3] = pixels[..., 3] // 4 + 180 * number
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "fields.global_crops.channels is 3; encoders.image.channels is 4"),
        (
            dict(channels=4, mean=(0.5,), std=(0.5,)),
            "eval_transform.mean is .*; encoders.image reads 4 channels",
        ),
    ],
)
def test_channels_that_do_not_fit_together(changes, message):
    config = ibot.get_config("tiny").to_dict()
    config["encoders"]["image"]["channels"] = 4
    for field in config["streams"]["images"]["data"]["fields"].values():
        field.update(changes)
    with pytest.raises(ValueError, match=message):
        build.system(config, None)


@pytest.mark.slow
def test_a_run_on_four_channels(folder, tmp_path):
    config = ibot.get_config("tiny").to_dict()
    config.update(total_steps=6, eval_every=6, log_every=2)
    config["encoders"]["image"]["channels"] = 4
    pixels = dict(mean=(0.5,), std=(0.25,))
    config["eval_transform"].update(pixels)
    data = config["streams"]["images"]["data"]
    source = dict(kind="image_folder", path=str(folder))
    data["source"] = source
    for field in data["fields"].values():
        field.update(channels=4, **pixels)
    config["evals"] = dict(
        bands=dict(kind="knn", label="label", ks=(3,), pixels=True, train=source, test=source)
    )
    assert main.run(config, str(tmp_path / "run"), "configs/ibot.py:tiny", "a command") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [key for line in lines for key in line if key.startswith("eval/knn/bands")]
    assert {"attention.png", "patches.png"} <= {path.name for path in (tmp_path / "run" / "report").iterdir()}
    model = big_ssl.load(tmp_path / "run")
    with pytest.raises(ValueError, match="is a run, which states all of its settings: drop channels"):
        big_ssl.load(tmp_path / "run", options=dict(channels=4))
    features = model.encode_image([folder / name / "0.png" for name in CLASSES])
    assert features.shape == (2, 32)
    # The fourth channel alone changes the features: it was not laid over white, nor dropped.
    pixels = np.asarray(Image.open(folder / "fields" / "0.png"))
    other = np.concatenate([pixels[..., :3], 255 - pixels[..., 3:]], -1)
    assert np.abs(np.diff(model.encode_image([pixels, other]), axis=0)).max() > 1e-3

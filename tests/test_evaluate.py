"""The command: what it writes for a converted model, its messages and its exit codes."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

import big_ssl
from big_ssl import evaluate, inference
from big_ssl.config import ConfigError
from tests import commands
from tests.parity import goldens

STYLES = ("fxemoji",)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return goldens.write_talking(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return big_ssl.load(checkpoint)


@pytest.fixture
def loaded(model, monkeypatch):
    """One model for all, compiled once."""
    monkeypatch.setattr(inference, "Model", lambda *_: model)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of three pictures: the folder and the pictures."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 24, 24, 3), np.uint8)
    for name, some in zip(("cat", "red_dog"), images, strict=True):
        (folder / name).mkdir()
        for i, image in enumerate(some):
            Image.fromarray(image).save(folder / name / f"{i}.png")
    return folder, images.reshape(6, 24, 24, 3)


run = functools.partial(commands.run, "big_ssl.evaluate")


def test_the_command(checkpoint, model, pictures, tmp_path):
    folder, images = pictures
    done = run(
        f"--checkpoint={checkpoint}", "--eval=zero_shot", "--eval.data.kind=image_folder",
        f"--eval.data.path={folder}", "--eval.templates=a {}", "--name=mine",
        f"--output={tmp_path}/o/out.json",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "o" / "out.json").read_text())
    assert (record["checkpoint"], record["eval"]) == (str(checkpoint), "zero_shot")
    assert record["options"]["templates"] == "a {}"
    best = model.zero_shot(images, ["cat", "red dog"], ["a {}"]).argmax(1)
    top1 = (best == [0, 0, 0, 1, 1, 1]).mean()
    assert record["metrics"]["eval/zero_shot/mine/top1"] == pytest.approx(top1)
    assert f"eval/zero_shot/mine/top1 {top1:.4g}\n" in done.stdout


def test_a_mistake_is_one_line_and_exit_code_2(checkpoint, tmp_path):
    done = run(
        f"--checkpoint={checkpoint}", "--eval=emoji", "--eval.style=x", f"--output={tmp_path}/out.json"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "eval.style is no known key; did you mean styles?\n"


def test_emoji(loaded, checkpoint, tmp_path):
    found = evaluate.evaluate(checkpoint, "emoji", dict(styles=STYLES), tmp_path / "out.json")
    assert 0 <= found["eval/zero_shot/fxemoji/top1"] <= found["eval/zero_shot/fxemoji/top5"] < 1
    assert found["eval/retrieval/fxemoji_no_flags/image_to_text_r10"] < 1
    assert not any("pixel" in key for key in found)
    assert json.loads((tmp_path / "out.json").read_text())["metrics"] == found


@pytest.mark.parametrize(("source", "printed"), [("auto", "read as hf_clip\n"), ("hf_clip", "")])
def test_a_guessed_format_is_printed(source, printed, loaded, tmp_path, capsys):
    path = goldens.write_checkpoint("hf_clip", tmp_path / "in")
    evaluate.evaluate(path, "emoji", dict(styles=STYLES), tmp_path / "out.json", source=source)
    assert capsys.readouterr().out == printed


def test_our_own_format_is_no_guess(loaded, checkpoint, tmp_path, capsys):
    evaluate.evaluate(checkpoint, "emoji", dict(styles=STYLES), tmp_path / "out.json")
    assert capsys.readouterr().out == ""


def test_retrieval(loaded, checkpoint, tmp_path):
    given = dict(data=dict(kind="emoji", styles=STYLES, concepts="unseen"), captions=("label", "name"))
    found = evaluate.evaluate(checkpoint, "retrieval", given, tmp_path / "out.json")
    assert set(found) == {f"eval/retrieval/emoji/{way}_r{k}" for way in ("image_to_text", "text_to_image")
                          for k in (1, 5, 10)}  # fmt: skip


def test_linear_probe(loaded, checkpoint, model, pictures, tmp_path):
    """Six random pictures of more dimensions than that: what was learnt by heart is known."""
    data = dict(kind="image_folder", path=str(pictures[0]))
    given = dict(train=data, test=data, validation=data, grid=(1.0, 1e3))
    found = evaluate.evaluate(checkpoint, "linear_probe", given, tmp_path / "out.json")
    name = f"eval/linear_probe/{pictures[0].name}"
    assert (found[f"{name}/top1"], found[f"{name}/validation_top1"]) == (1, 1)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("zero_shoot", {}, "eval.kind: 'zero_shoot' is unknown; did you mean zero_shot?"),
        ("zero_shot", {}, "eval.data is missing"),
        ("zero_shot", dict(data="x"), "eval.data is 'x', of type str; it must be dict"),
        ("zero_shot", dict(data={}), "eval.data.kind is missing; it must be one of emoji"),
        ("zero_shot", dict(data=dict(kind="folder")), "eval.data.kind: 'folder' is unknown"),
        ("zero_shot", dict(data=dict(kind="image_folder")), "eval.data.path is missing"),
        ("zero_shot", dict(data=dict(kind="image_folder", path=3)), "eval.data.path is 3, of type int"),
        ("zero_shot", dict(data=dict(kind="emoji", styles=["x"])), "emoji: no style 'x'"),
        ("zero_shot", dict(data=dict(kind="emoji", styles=STYLES), name="x"), "eval.name is no known key"),
        ("retrieval", dict(data=dict(kind="emoji", styles=STYLES)), "captions: the records have no 'text'"),
        ("linear_probe", dict(train=dict(kind="emoji", styles=STYLES)), "eval.test is missing"),
        ("emoji", dict(styles=["twemojis"]), "emoji: no style 'twemojis'"),
    ],
)
def test_options_that_do_not_fit_are_errors_before_the_model_is_read(kind, given, message, tmp_path):
    with pytest.raises((ConfigError, ValueError)) as caught:
        evaluate.evaluate("nowhere", kind, given, tmp_path / "out.json")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_no_model_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="has neither checkpoints of a run nor weights"):
        evaluate.evaluate(tmp_path, "emoji", dict(styles=STYLES), tmp_path / "out.json")


def test_public_weights_are_read_as_they_are(tmp_path):
    path = goldens.write_checkpoint("hf_clip", tmp_path / "in")
    config, _ = inference.read(path, "hf_clip")
    assert config["encoders"]["image"]["kind"] == "vit"
    (path / "merges.txt").write_text("#version: 0.2\n")
    assert inference.read(path, "hf_clip")[0]["tokenizer"]["vocabulary"] == str(path / "merges.txt")


def test_options_on_the_command_line():
    arguments = [
        "--eval.a=1",
        "--eval.b.c=x y",
        "--eval.b.d=('p',)",
        "-eval.e=true",
        "--eval.f=1e-3",
        "--eval.g=",
    ]
    assert evaluate.parse(arguments) == dict(a=1, b=dict(c="x y", d=("p",)), e=True, f=1e-3, g="")
    # Braces alone are a template's place for the name, and no empty dict.
    braces = ["--eval.a={}", "--eval.b=('{}', 'x')"]
    assert evaluate.parse(braces) == dict(a="{}", b=("{}", "x"))
    for bad in ("--eval.a", "word", "--eval.=1"):
        with pytest.raises(ValueError, match=r"write --eval\.KEY=VALUE"):
            evaluate.parse([bad])


def test_names_of_datasets():
    assert evaluate.dataset(dict(data=dict(kind="tfds", name="imagenet_v2"))) == "imagenet_v2"
    assert evaluate.dataset(dict(data=dict(kind="image_folder", path="a/val/"))) == "val"
    assert evaluate.dataset(dict(test=dict(kind="emoji"))) == "emoji"


def test_a_model_of_images_alone_lacks_what_zero_shot_requires(model, monkeypatch, checkpoint, tmp_path):
    image = dict(encoders=dict(image=model.config["encoders"]["image"]), head=None, tokenizer=None)
    alone = inference.Model(model.config | image, model.variables)
    monkeypatch.setattr(inference, "Model", lambda *_: alone)
    given = dict(data=dict(kind="emoji", styles=STYLES), label="category")
    with pytest.raises(
        ValueError,
        match=r"^zero_shot requires encode_text; the model has encode_image, patch_feat",
    ):
        evaluate.evaluate(checkpoint, "zero_shot", given, tmp_path / "out.json")

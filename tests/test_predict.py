"""The command that draws predictions: what it writes, its messages, and its exit codes."""

import json
import types

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from big_ssl import inference, predict
from big_ssl.evals import drawings

NAMES = ("cat", "dog")


class Fixed:
    """A model whose predictions are fixed fractions of an image; every method is there but one."""

    methods = ("detect", "segment", "depth", "encode_image")
    channels = 3
    system = types.SimpleNamespace(terms={})

    def detect(self, images, class_names=None):
        self.class_names = class_names
        width, height = images[0].shape[1], images[0].shape[0]
        boxes = np.float32([[0, 0, width / 2, height / 2], [width / 4, height / 4, width, height]])
        return [dict(boxes=boxes, scores=np.float32([0.9, 0.4]), labels=np.int32([1, 7]))]

    def segment(self, images):
        classes = np.zeros(images[0].shape[:2], np.uint8)
        classes[:, classes.shape[1] // 2 :] = 1
        classes[0] = 255
        return [classes]

    def depth(self, images):
        height, width = images[0].shape[:2]
        return [np.float32(np.linspace(1, 5, height * width).reshape(height, width))]


@pytest.fixture(autouse=True)
def model(monkeypatch):
    """The model that the command reads."""
    model = Fixed()
    monkeypatch.setattr(inference, "read", lambda *_: ({}, {}))
    monkeypatch.setattr(inference, "Model", lambda *_: model)
    return model


@pytest.fixture
def photos(tmp_path):
    """Three images of several sizes, one in a subfolder, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (30, 40)), ("more/a.jpg", (50, 20)), ("more/a.png", (300, 260))):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def run(photos, tmp_path, task, **options):
    result = predict.predict("x", task, photos, tmp_path / "out", source="big_ssl", **options)
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    return result, record, tmp_path / "out"


def test_boxes(photos, tmp_path, model, capsys):
    result, record, out = run(photos, tmp_path, "detect", classes=NAMES)
    assert result == (3, 1)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith(f"{photos}/broken.jpg: not read: UnidentifiedImageError: in no format")
    # Suffixes tell apart what would be one drawing.
    drawings_of = {entry["image"]: entry["drawing"] for entry in record["predictions"]}
    assert drawings_of == {
        "a.png": "a.png",
        "more/a.jpg": "more/a.jpg.png",
        "more/a.png": "more/a.png.png",
    }
    assert [entry["image"] for entry in record["failed"]] == ["broken.jpg"]
    first = record["predictions"][0]["objects"]
    assert first[0] == dict(box=[0, 0, 20, 15], score=pytest.approx(0.9), label=1, name="dog")
    assert "name" not in first[1]
    # Small images are enlarged by a whole factor; others are drawn at their size.
    sizes = [Image.open(out / name).size for name in drawings_of.values()]
    assert sizes == [(240, 180), (100, 250), (260, 300)]
    page = (out / "index.html").read_text()
    assert page.count("<img") == 3
    assert model.class_names is None
    assert 'src="more/a.jpg.png"' in page
    assert "broken.jpg: UnidentifiedImageError" in page


def test_a_large_photograph_is_drawn_small_and_predicted_whole(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (3200, 2000)).save(tmp_path / "photos" / "large.png")
    _, record, out = run(tmp_path / "photos", tmp_path, "detect")
    (entry,) = record["predictions"]
    assert Image.open(out / entry["drawing"]).size == (1600, 1000)
    assert entry["objects"][1]["box"] == [800, 500, 3200, 2000]
    drawn = np.asarray(Image.open(out / entry["drawing"]))
    assert drawn[500:900, 400].any(-1).all()  # the left edge of the second box


def test_boxes_by_names_alone(photos, tmp_path, model):
    run(photos, tmp_path, "detect", classes=NAMES, zero_shot=True)
    assert model.class_names == ["cat", "dog"]
    fails("^--zero_shot is of --task=detect, with --classes$", "detect", photos, tmp_path, zero_shot=True)


def test_class_maps(photos, tmp_path):
    _, record, out = run(photos, tmp_path, "segment", classes=NAMES)
    entry = record["predictions"][0]
    classes = np.asarray(Image.open(out / entry["map"]))
    np.testing.assert_array_equal(np.unique(classes, return_counts=True), [[0, 1, 255], [580, 580, 40]])
    assert entry["fractions"] == {
        "cat": pytest.approx(580 / 1200),
        "dog": pytest.approx(580 / 1200),
        "255": pytest.approx(1 / 30),
    }


def test_depths(photos, tmp_path):
    _, record, out = run(photos, tmp_path, "depth")
    entry = record["predictions"][0]
    depth = np.load(out / entry["map"])
    assert (depth.shape, depth.dtype) == ((30, 40), np.float32)
    assert (entry["nearest"], entry["median"], entry["farthest"]) == (1, pytest.approx(3), 5)
    # The drawing has the image, its map and a bar.
    drawn = np.asarray(Image.open(out / entry["drawing"]))
    assert drawn.shape[0] == 180
    assert drawn.shape[1] > 480
    image = np.asarray(Image.open(photos / "a.png")).repeat(6, 0).repeat(6, 1)
    np.testing.assert_array_equal(drawn[:, :240], image)
    expected = drawings.depth_colours(depth, 1, 5).repeat(6, 0).repeat(6, 1)
    np.testing.assert_array_equal(drawn[:, 240:480], expected)


def test_one_file(photos, tmp_path):
    result, record, _ = run(photos / "more" / "a.jpg", tmp_path, "depth")
    assert (result, record["predictions"][0]["drawing"]) == ((1, 0), "a.png")


def fails(match, *arguments, **options):
    with pytest.raises((OSError, ValueError), match=match):
        predict.predict("x", *arguments, source="big_ssl", **options)


def test_what_does_not_fit_is_one_line_before_the_model_is_read(photos, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("slow work")

    monkeypatch.setattr(inference, "read", never)
    fails("^--images=nowhere: there is no such file or folder$", "depth", "nowhere", tmp_path / "out")
    fails("^--output=.* lies in --images=.*photos, where", "depth", photos, photos / "out")
    (tmp_path / "empty").mkdir()
    fails("^image_folder: .*empty has no images$", "depth", tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_the_task_is_named(photos, tmp_path, model, monkeypatch):
    monkeypatch.setattr(model, "methods", ("encode_image",))
    message = "^--task=depth requires depth; the model has encode_image$"
    fails(message, "depth", photos, tmp_path / "out")


def test_exit_codes(photos, tmp_path, capsys):
    values = dict(checkpoint="x", task="depth") | {"from": "big_ssl"}
    with flagsaver.as_parsed(**values, images=str(photos), output=str(tmp_path / "out")):
        predict.main([])
    assert capsys.readouterr().out == f"3 images drawn, 1 not read: {tmp_path}/out/index.html\n"
    broken = str(photos / "broken.jpg")
    none = flagsaver.as_parsed(**values, images=broken, output=str(tmp_path / "none"))
    with none, pytest.raises(SystemExit) as exit_:
        predict.main([])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"none of the 1 images of {broken} can be read"


def test_a_colour_drawing_has_the_colours_of_its_classes():
    classes = np.zeros((300, 300), np.int32)
    classes[:, 150:] = 3
    image = np.full((300, 300, 3), 200, np.uint8)
    drawn = drawings.draw_classes(image, classes, ("road",))
    for label, column in ((0, 0), (3, 200)):
        expected = np.round(0.4 * 200 + 0.6 * np.array(drawings.class_colour(label)))
        np.testing.assert_allclose(drawn[10, column], expected, atol=1)
    # The legend has the class's own colours.
    legend = drawn[:, 300:].reshape(-1, 3).tolist()
    assert [*drawings.class_colour(0)] in legend
    assert [*drawings.class_colour(3)] in legend


def test_colours_of_neighbouring_classes_differ():
    colours = np.array([drawings.class_colour(i) for i in range(40)], float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e3 * np.eye(40)
    assert distances.min() >= 10
    assert np.diagonal(distances, 1).min() > 100


def test_depth_colours_are_in_order_and_unknown_is_grey():
    colours = drawings.depth_colours(np.float32([[0, 1, 2, 3]]), 1, 3)
    assert colours[0, 0].tolist() == [128] * 3
    near, far = colours[0, 1].astype(int), colours[0, 3].astype(int)
    assert near[0] > near[2]
    assert far[2] > far[0]
    assert drawings.depth_range([np.zeros((2, 2))]) == (0, 1)

"""Typed fields: geometric transforms that images, boxes, masks and depths share, labels, texts, answers."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from big_ssl.data import decode, fields
from big_ssl.data.pipeline import BadRecord, LoadExample
from big_ssl.data.tokenizers import WordPiece, vocabulary_path

TOKENIZER = WordPiece(vocabulary_path("emoji"), 8)
COLORS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
PIXELS = dict(mean=(0.0,), std=(1.0,))
CROPS = dict(
    stretched=dict(kind="random_crop", resize=48, size=40, resize_mode="stretch"),
    square=dict(kind="random_crop", resize=40, size=40),
    resized=dict(kind="random_resized_crop", size=40, scale=(0.3, 1.0), count=3),
    jittered=dict(kind="random_scale_crop", size=40, scale=(0.5, 2.0), fill=0),
)


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


class Rectangles(list):
    """Records whose boxes are coloured rectangles; mask and depth mark the same pixels at half the size."""

    def __init__(self, count=6, seed=0):
        rng = np.random.default_rng(seed)
        for _ in range(count):
            height, width = (int(side) for side in 2 * rng.integers(40, 90, 2))
            classes, boxes = np.zeros((height, width), np.uint8), []
            for number in (1, 2, 3):
                top, left = rng.integers(0, (height // 2 - 8, width // 2 - 8)) * 2
                bottom, right = top + 2 * rng.integers(6, 20), left + 2 * rng.integers(6, 20)
                bottom, right = min(bottom, height), min(right, width)
                # What a later one covers would not be a rectangle.
                if not classes[top:bottom, left:right].any():
                    classes[top:bottom, left:right] = number
                    boxes.append((number, top / height, left / width, bottom / height, right / width))
            self.append(
                dict(
                    image=_png(COLORS[classes]),
                    boxes=np.array([box[1:] for box in boxes]),
                    ids=np.array([box[0] for box in boxes]),
                    mask=_png(classes[::2, ::2]),
                    depth=classes[::2, ::2].astype(np.uint16) * 1000,
                )
            )

    def label_names(self, key):
        assert key == "ids"
        return ["none", "red", "green", "blue"]


def _fields(crop, source=None, **options):
    made = fields.build(
        dict(
            image=dict(kind="image", crop=crop, flip=True, **PIXELS),
            boxes=dict(kind="boxes", image="image", key="boxes", class_key="ids", max_boxes=4) | options,
            mask=dict(kind="mask", image="image", key="mask", num_classes=4),
            depth=dict(kind="depth", image="image", key="depth", scale=0.001),
        ),
        8,
    )
    return fields.opened(made, source, None)


def _batch(crop, seed=0, **options):
    source = Rectangles()
    made = _fields(crop, source, **options)
    load, rng = LoadExample(source, made), np.random.default_rng(seed)
    examples = [load.load(i, rng) for i in range(len(source)) for _ in range(4)]
    return made, jax.tree.map(lambda *each: np.stack(each), *examples)


def _check_pixels(images, value):
    """Boxes, mask and depth of [N, H, W] images agree with their coloured pixels to one pixel."""
    flat = images.reshape(-1, *images.shape[-3:])
    shapes = dict(boxes=(-1, 4, 4), labels=(-1, 4), valid=(-1, 4))
    boxes = {key: np.asarray(x).reshape(shapes[key]) for key, x in value["boxes"].items()}
    masks = np.asarray(value["mask"]).reshape(-1, *images.shape[-3:-1])
    masks = np.where(masks == 255, 0, masks)  # padding, of the background's colour
    depths = np.asarray(value["depth"]).reshape(masks.shape)
    seen = 0
    for i, image in enumerate(flat):
        nearest = np.argmin(np.abs(image[:, :, None].astype(int) - COLORS).sum(-1), -1)
        for number in (1, 2, 3):
            there = boxes["valid"][i] & (boxes["labels"][i] == number)
            rows, columns = np.nonzero(nearest == number)
            if there.sum() == 0:  # dropped, or never there: at most a pixel's width is left of it
                assert not len(rows) or min(np.ptp(rows), np.ptp(columns)) <= 1
                continue
            seen += 1
            (box,) = boxes["boxes"][i][there] * nearest.shape[0]
            found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_allclose(box, found, atol=1)
        # Only along edges, where a pixel is between two of the mask's.
        assert np.mean(masks[i] != nearest) < 0.15
        shifts = [np.roll(nearest, s, a) for a in (0, 1) for s in (-1, 1)] + [
            np.roll(np.roll(nearest, s, 0), t, 1) for s in (-1, 0, 1) for t in (-1, 1)
        ]
        assert np.all((masks[i] == nearest) | np.any([masks[i] == s for s in shifts], 0))
        np.testing.assert_allclose(depths[i], masks[i])
    return seen


@pytest.mark.parametrize("crop", CROPS)
def test_boxes_masks_and_depths_follow_their_image(crop):
    _, batch = _batch(CROPS[crop])
    assert batch["mask"].shape == batch["image"].shape[:-1]
    assert batch["boxes"]["boxes"].shape[:-2] == batch["image"].shape[:-3]
    assert (batch["mask"].dtype, batch["depth"].dtype) == (np.uint8, np.float32)
    assert _check_pixels(batch["image"], batch) > 20


@pytest.mark.parametrize("crop", ["square", "resized", "jittered"])
def test_a_flip_on_the_device_is_that_of_the_image(crop):
    made, batch = _batch(CROPS[crop])
    key = jax.random.key(5)
    images = np.asarray(made["image"].transform(batch["image"], key)) * 255
    flips = made["image"].flips(key, batch["image"].shape[:-3])
    assert 0.2 < flips.mean() < 0.8
    value = {name: made[name].mirror(batch[name], flips) for name in ("boxes", "mask", "depth")}
    assert _check_pixels(images.round(), value) > 20
    with pytest.raises(AssertionError):
        _check_pixels(images.round(), batch)


@pytest.mark.parametrize("order", ["xyxy", "yxyx", "xywh"])
@pytest.mark.parametrize("normalized", [True, False])
def test_box_formats(order, normalized):
    """All are the same box."""
    left, top, right, bottom = 0.1, 0.2, 0.5, 0.8
    box = dict(
        xyxy=(left, top, right, bottom), yxyx=(top, left, bottom, right),
        xywh=(left, top, right - left, bottom - top),
    )[order]  # fmt: skip
    scale = np.array([1, 1, 1, 1] if normalized else [[100, 200], [200, 100]][order == "yxyx"] * 2)
    source = [dict(image=_png(np.zeros((200, 100, 3), np.uint8)), boxes=np.array([box]) * scale)]
    made = _fields(dict(kind="random_crop", resize=8, size=8, resize_mode="stretch"), source)
    boxes = dataclasses.replace(made["boxes"], class_key="", order=order, normalized=normalized)
    load = LoadExample(source, dict(image=made["image"], boxes=boxes))
    value = load.load(0, np.random.default_rng(0))["boxes"]
    np.testing.assert_allclose(value["boxes"][0], (left, top, right, bottom), atol=1e-6)
    assert value["valid"].tolist() == [True, False, False, False]
    assert not value["boxes"][1:].any()


def _cut(boxes, part, **options):
    made = _fields(CROPS["square"], Rectangles(), **options)["boxes"]
    return made._cut(np.array(boxes, float), np.arange(len(boxes)), part)


def test_boxes_are_clipped_and_dropped_below_a_pixel():
    part = (0.5, 0.0, 1.0, 1.0)
    pixel = 0.5 / 40
    value = _cut(
        [(0, 0, 0.4, 1), (0.25, 0.5, 0.75, 2), (0.5, 0, 0.5 + 0.9 * pixel, 1), (0.5, 0, 0.5 + pixel, 1)], part
    )
    assert value["valid"].tolist() == [True, True, False, False]
    np.testing.assert_allclose(value["boxes"][:2], [(0, 0.5, 0.5, 1), (0, 0, 1 / 40, 1)], atol=1e-6)
    assert value["labels"].tolist() == [1, 3, 0, 0]


def test_of_too_many_boxes_the_first_stay():
    value = _cut([(0, 0, 0.5, 0.1 * i) for i in range(1, 9)], (0, 0, 1, 1))
    assert value["valid"].all()
    assert value["labels"].tolist() == [0, 1, 2, 3]


class Turned(list):
    """A photo whose EXIF turns it by 90 degrees, with its mask and depth as it is stored."""

    def __init__(self, orientation, turn_annotations):
        self.decode_options = decode.Options(orientation)
        classes = np.zeros((60, 40), np.uint8)
        classes[:20, :20] = 1
        exif = Image.Exif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        Image.fromarray(COLORS[classes]).save(buffer, "PNG", exif=exif)
        annotation = np.rot90(classes, -1) if turn_annotations else classes
        self.append(dict(image=buffer.getvalue(), mask=_png(annotation[::2, ::2]), depth=annotation * 1000.0))


@pytest.mark.parametrize(("orientation", "turn"), [("", True), ("exif", True), ("stored", False)])
def test_an_upright_image_and_its_annotations(orientation, turn):
    source = Turned(orientation, turn)
    made = _fields(dict(kind="random_crop", resize=40, size=40, resize_mode="stretch"), source)
    load = LoadExample(source, {name: made[name] for name in ("image", "mask", "depth")})
    value = load.load(0, np.random.default_rng(0))
    red = (value["image"] == COLORS[1]).all(-1)
    assert 100 < red.sum() < 400
    corner = value["mask"][:12, -12:] if turn else value["mask"][:12, :12]
    assert (corner == 1).all()
    assert (value["mask"][red] == 1).all()
    np.testing.assert_allclose(value["depth"], value["mask"])


@pytest.mark.parametrize(("orientation", "turn"), [("", False), ("stored", True)])
def test_an_annotation_that_is_turned_against_its_image_is_refused(orientation, turn):
    source = Turned(orientation, turn)
    made = _fields(CROPS["square"], source)
    load = LoadExample(source, {name: made[name] for name in ("image", "mask")})
    with pytest.raises(BadRecord, match=r"'mask' has the shape .*, and its image .*: its EXIF") as error:
        load.load(0, np.random.default_rng(0))
    assert error.value.counter == "replaced_masks"


def _padded(record, factor):
    """The example of an image that is resized to `factor` of its crop's size."""
    crop = dict(kind="random_scale_crop", size=40, scale=(factor, factor), fill=7)
    source = Rectangles(1)
    source[0] |= record
    return LoadExample(source, _fields(crop, source)).load(0, np.random.default_rng(0))


def test_padding_has_no_box_no_class_and_no_depth():
    white = _png(np.full((60, 60, 3), 255, np.uint8))
    record = dict(image=white, mask=np.full((30, 30), 2), depth=np.full((30, 30), 5000))
    # A box that reaches beyond the image by as much as the padding does.
    record |= dict(boxes=[[0.5, 0.5, 2.0, 2.0]], ids=[1])
    value, inside = _padded(record, 0.5), np.zeros((40, 40), bool)
    inside[:20, :20] = True
    assert (value["image"][inside] == 255).all()
    assert (value["image"][~inside] == 7).all()
    np.testing.assert_array_equal(value["mask"], np.where(inside, 2, 255))
    np.testing.assert_array_equal(value["depth"], np.where(inside, np.float32(5), 0))
    np.testing.assert_allclose(value["boxes"]["boxes"][0], [0.25, 0.25, 0.5, 0.5])


def test_a_box_outside_the_image_or_without_area_is_dropped():
    boxes = [[1.2, 0.1, 1.5, 0.4], [-1, -1, -0.1, 0.5], [0.5, 0.5, 0.5, 0.8], [0.2, 0.2, 0.6, 0.6]]
    value = _padded(dict(boxes=boxes, ids=[1, 1, 1, 3]), 0.5)
    assert value["boxes"]["valid"].tolist() == [True, False, False, False]
    assert value["boxes"]["labels"][0] == 3


def test_flagged_boxes_are_left_out():
    source = Rectangles(1)
    count = len(source[0]["ids"])
    source[0]["crowd"] = np.arange(count) == 1
    load = LoadExample(source, _fields(CROPS["stretched"], source, ignore_key="crowd"))
    value = load.load(0, np.random.default_rng(0))["boxes"]
    assert 2 not in value["labels"][value["valid"]]
    source[0]["crowd"] = [True]
    with pytest.raises(BadRecord, match=f"{count} boxes, and 1 flags under 'crowd'"):
        load.load(0, np.random.default_rng(0))


def test_a_source_with_more_boxes_than_max_boxes_is_a_line_at_the_start(caplog):
    source = Rectangles(3)
    source_with_counts = type("Counted", (Rectangles,), dict(counts=lambda self, key: [4, 7, 9]))(3)
    for opened in (source, source_with_counts):
        _fields(CROPS["square"], opened)["boxes"].check()
    assert [record.getMessage() for record in caplog.records] == [
        "data: fields.boxes.max_boxes is 4; 2 of 3 records have more, up to 9; they lose some"
    ]


def test_a_label_of_zero_can_be_no_class():
    options = dict(
        image=dict(kind="image", crop=dict(kind="random_crop", resize=4, size=4), **PIXELS),
        mask=dict(kind="mask", image="image", key="mask", num_classes=150, reduce_zero_label=True),
    )
    record = dict(image=_png(np.zeros((4, 4, 3), np.uint8)))
    record["mask"] = _png(np.array([[0, 1, 150, 255]] * 4, np.uint8))
    load = LoadExample([record], fields.opened(fields.build(options, 8), [record], None))
    value = load.load(0, np.random.default_rng(0))["mask"]
    assert value.tolist() == [[255, 0, 149, 255]] * 4  # 0 - 1 is no 255 by chance: 255 - 1 is no class 254
    assert value.dtype == np.uint8
    record["mask"] = _png(np.full((4, 4), 151, np.uint8))
    with pytest.raises(BadRecord, match="a pixel of class 151"):
        load.load(0, np.random.default_rng(0))


def test_a_depth_may_be_a_npy_file():
    buffer = io.BytesIO()
    np.save(buffer, np.full((30, 30), 2500.0))
    record = dict(image=_png(np.zeros((60, 60, 3), np.uint8)), mask=np.zeros((60, 60)))
    value = _padded(record | dict(depth=buffer.getvalue()), 1.0)
    assert (value["depth"] == 2.5).all()


def test_a_picture_of_30_megapixels_and_its_annotations():
    mask = np.kron(np.array([[0, 1, 2], [3, 1, 0]], np.uint8), np.ones((2500, 2000), np.uint8))
    jpeg = io.BytesIO()
    Image.fromarray(COLORS[mask]).save(jpeg, "JPEG")
    record = dict(image=jpeg.getvalue(), mask=mask, boxes=[[0, 1 / 3, 0.5, 2 / 3]], ids=[1])
    value = _padded(record | dict(depth=mask.astype(np.uint16) * 1000), 1.0)
    nearest = np.argmin(np.abs(value["image"][:33, :, None].astype(int) - COLORS).sum(-1), -1)
    assert np.mean(nearest == value["mask"][:33]) > 0.9
    np.testing.assert_allclose(value["depth"][:33], value["mask"][:33])
    assert (value["mask"][33:] == 255).all()
    np.testing.assert_allclose(value["boxes"]["boxes"][0], [1 / 3, 0, 2 / 3, 0.5 * 33 / 40], rtol=1e-6)


def test_an_image_without_boxes_is_no_fault():
    source = Rectangles(1)
    source[0] |= dict(boxes=np.zeros((0, 4)), ids=np.zeros(0, int))
    value = LoadExample(source, _fields(CROPS["square"], source)).load(0, np.random.default_rng(0))
    assert not value["boxes"]["valid"].any()


@pytest.mark.parametrize(
    ("changes", "counter", "message"),
    [
        (dict(boxes=None), "replaced_boxes", "no 'boxes'"),
        (dict(boxes=np.full((1, 4), np.nan)), "replaced_boxes", "not finite"),
        (dict(boxes=np.zeros(6)), "replaced_boxes", "'boxes' holds no boxes of four numbers"),
        (dict(boxes=[[0, 0, 1, 1], [0, 0, 1]]), "replaced_boxes", "'boxes' holds no boxes of four numbers"),
        (dict(boxes=[[None, 0, 1, 1]]), "replaced_boxes", "holds a box that is not finite"),
        (dict(boxes=[["left", 0, 1, 1]]), "replaced_boxes", "'boxes' holds no boxes of four numbers"),
        (dict(ids=np.array([1])), "replaced_boxes", "boxes, and 1 classes under 'ids'"),
        (dict(ids=np.array([9, 9, 9])), "replaced_boxes", "no class"),
        (dict(mask=b"no image"), "replaced_masks", "UnidentifiedImageError"),
        (dict(mask=lambda shape: np.full(shape, 7)), "replaced_masks", "'mask' has a pixel of class 7"),
        (
            dict(mask=lambda shape: np.full(shape, np.nan)),
            "replaced_masks",
            "'mask' has a pixel of class nan",
        ),
        (dict(mask=lambda shape: np.zeros((shape[0], shape[1] + 9))), "replaced_masks", "not the aspect of"),
        (
            dict(depth=lambda shape: np.zeros((shape[0] - 9, shape[1]))),
            "replaced_depths",
            "not the aspect of",
        ),
        (dict(mask=np.zeros((4, 4, 3))), "replaced_masks", "it must have one channel"),
        (dict(mask=[[1, 2], [3]]), "replaced_masks", "'mask': "),
        (dict(mask=[["a", "b"]]), "replaced_masks", "'mask' holds no numbers"),
        (dict(ids=[[1], [2], [3]]), "replaced_boxes", "no class"),
        (dict(depth=[[1.0, None]]), "replaced_depths", "'depth' holds no numbers"),
        (dict(depth=None), "replaced_depths", "no 'depth'"),
        (dict(image=b"no image"), "replaced_images", "UnidentifiedImageError"),
        (dict(image=None), "replaced_images", "no encoded image under 'image'"),
    ],
)
def test_a_bad_value_is_counted_under_its_kind(changes, counter, message):
    source = Rectangles(2)
    shape = source[0]["depth"].shape
    source[0] |= {key: value(shape) if callable(value) else value for key, value in changes.items()}
    load = LoadExample(source, _fields(CROPS["square"], source))
    with pytest.raises(BadRecord, match=message) as error:
        load.load(0, np.random.default_rng(0))
    assert error.value.counter == counter
    example = load.random_map(0, np.random.default_rng(0))
    assert [name for name, there in example["data_errors"].items() if there] == [counter]


def test_pixels_that_are_ignored_or_unknown():
    source = Rectangles(1)
    shape = source[0]["depth"].shape
    depth = np.resize([np.nan, -1.0, 0.0, np.inf], shape)
    source[0] |= dict(mask=np.full(shape, 255), depth=depth)
    value = LoadExample(source, _fields(CROPS["square"], source)).load(0, np.random.default_rng(0))
    assert (value["mask"] == 255).all()
    assert not value["depth"].any()


@pytest.mark.parametrize("crop", CROPS)
def test_zeros_have_the_shapes_and_dtypes_of_values(crop):
    made, batch = _batch(CROPS[crop])
    for name, field in made.items():
        expected = jax.tree.map(lambda x: (x.shape[1:], x.dtype), batch[name])
        assert jax.tree.map(lambda x: (np.shape(x), x.dtype), field.zeros()) == expected


# Labels, texts, answers.


class _Words(list):
    def label_names(self, key):
        return dict(kind=["cat", "dog", "fox"], kinds=["a", "b", "c"])[key]


def _one(options, record, name="field"):
    source = _Words([record])
    made = fields.opened(fields.build({name: options}, 8), source, TOKENIZER)
    made[name].check()
    value = LoadExample(source, made).load(0, np.random.default_rng(0))[name]
    assert jax.tree.map(lambda x: (np.shape(x), x.dtype), made[name].zeros()) == jax.tree.map(
        lambda x: (np.shape(x), x.dtype), value
    )
    return value


def test_labels_are_numbers_of_names():
    assert _one(dict(kind="label", key="kind"), dict(kind="fox")) == 2
    assert _one(dict(kind="label", key="kind"), dict(kind=np.int64(1))) == 1


def test_multilabels_are_all_classes_of_a_record():
    options = dict(kind="multilabel", key="kinds", num_classes=3)
    assert _one(options, dict(kinds=["c", "a"])).tolist() == [True, False, True]
    assert _one(options, dict(kinds=[])).tolist() == [False, False, False]
    with pytest.raises(ValueError, match="num_classes is 4; 'kinds' of the data has 3"):
        _one(options | dict(num_classes=4), dict(kinds=[]))


def test_answers_are_the_first_of_a_record():
    value = _one(dict(kind="answers", key="a", count=3), dict(a=["red", "a cat"]))
    assert value["valid"].tolist() == [True, True, False]
    np.testing.assert_array_equal(value["ids"][:2], TOKENIZER(["red", "a cat"])["ids"])
    longer = _one(dict(kind="answers", key="a", count=1), dict(a=["red", "a cat"]))
    np.testing.assert_array_equal(longer["ids"], value["ids"][:1])
    for record in (dict(), dict(a=[]), dict(a=[3])):
        with pytest.raises(BadRecord):
            _one(dict(kind="answers", key="a"), record)


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(kind="image", crop=dict(kind="pad"), **PIXELS),
            "fields.x.crop: kind is 'pad'; there are random_",
        ),
        (
            dict(kind="image", crop=CROPS["square"], blur_prob=(1.0, 0.1), **PIXELS),
            r"fields.x.blur_prob is \(1.0, 0.1\); it must have a value for each of 1 crops",
        ),
        (
            dict(kind="image", crop=CROPS["square"], downsample=3, **PIXELS),
            "fields.x.downsample is 3; it must d",
        ),
        (
            dict(kind="image", crop=CROPS["square"], mask=dict(grid=4), **PIXELS),
            "fields.x.mask: it needs crop.kind random_resized_crop",
        ),
        (
            dict(kind="text", captions=dict(a=0.0)),
            "fields.x.captions: one of them must have a weight above 0",
        ),
        (
            dict(kind="boxes", image="image", key="b", order="yx"),
            "fields.x.order is 'yx'; use xyxy, yxyx, xywh",
        ),
        (
            dict(kind="boxes", image="picture", key="b"),
            "fields.x.image is 'picture'; there are the image fields i",
        ),
        (
            dict(kind="boxes", image="mixed", key="b"),
            "fields.x: mixup and cutmix of its image mixed would not",
        ),
        (dict(kind="mask", image="image", key="m", num_classes=256), "num_classes is 256 and ignore 255"),
        (
            dict(kind="mask", image="image", key="m", num_classes=255, reduce_zero_label=True),
            "num_classes is 255 and ignore 255",
        ),
    ],
)
def test_options_that_can_not_be(options, message):
    image = dict(kind="image", crop=CROPS["square"], **PIXELS)
    with pytest.raises(ValueError, match=message):
        fields.build(dict(image=image, mixed=image | dict(mixup=0.5), x=options), 8)

"""COCO's, PASCAL VOC's and folders' annotations: what they hold, and what damaged ones lead to."""

import copy
import io
import json

import numpy as np
import pytest
from PIL import Image

from big_ssl import config
from big_ssl.data import fields, pipeline, sources

PIXELS = dict(mean=(0.0,), std=(1.0,))


def _encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(buffer, kind)
    return buffer.getvalue()


# Two of COCO's ids with their gap, and a category of stuff.
COCO = dict(
    images=[
        dict(id=9, file_name="b.png", width=40, height=20),
        dict(id=3, file_name="a/none.png", width=8, height=8),
        dict(id=5, file_name="a.png", width=20, height=40),
    ],
    categories=[
        dict(id=90, name="toothbrush"),
        dict(id=1, name="person"),
        dict(id=44, name="sky", isthing=0),
    ],
    annotations=[
        dict(id=1, image_id=5, category_id=90, bbox=[5, 10, 10, 20], area=77.5, iscrowd=0),
        dict(id=2, image_id=9, category_id=1, bbox=[0, 0, 40, 10], area=300, iscrowd=1),
        dict(id=3, image_id=5, category_id=1, bbox=[0.5, 0, 4, 4]),
        dict(id=4, image_id=5, category_id=44, bbox=[0, 0, 4, 4]),
    ],
)


@pytest.fixture
def coco(tmp_path):
    """A function: the source of a file with changes."""
    for name, shape in (("a.png", (40, 20, 3)), ("b.png", (20, 40, 3)), ("a/none.png", (8, 8, 3))):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(_encoded(np.zeros(shape, np.uint8)))

    def build(**changes):
        (tmp_path / "instances.json").write_text(json.dumps(copy.deepcopy(COCO) | changes))
        paths = dict(annotations=str(tmp_path / "instances.json"), images=str(tmp_path / "images"))
        return sources.build(dict(kind="coco") | paths)

    return build


def test_a_coco_file_gives_images_with_their_objects(coco):
    source = coco()
    assert [source[i]["image/id"] for i in range(3)] == [9, 3, 5]
    record = source[2]
    assert record["objects/label"].tolist() == [1, 0]
    np.testing.assert_allclose(
        record["objects/bbox"], [[0.25, 0.25, 0.75, 0.75], [0, 0.025, 0.1, 0.225]], rtol=1e-12
    )
    assert record["objects/area"].tolist() == [77.5, 16]
    assert source[0]["objects/is_crowd"].tolist() == [True]
    assert source[1]["objects/bbox"].shape == (0, 4)  # an image without annotations is an image
    assert source.label_names("objects/label") == ["person", "toothbrush"]
    assert source.category_ids == [1, 90]
    assert sources.record_name(source, 1) == "a/none.png"
    assert sources.summary(source) == "3 images with 3 boxes of 2 categories; left out: 1 boxes of stuff"
    assert source[-1]["image/id"] == 5
    with pytest.raises(IndexError):
        source[3]


def test_boxes_of_a_coco_file_in_a_batch(coco):
    source = coco()
    options = dict(
        image=dict(kind="image", crop=dict(kind="random_scale_crop", size=40, scale=(1.0, 1.0)), **PIXELS),
        boxes=dict(
            kind="boxes",
            image="image",
            key="objects/bbox",
            class_key="objects/label",
            ignore_key="objects/is_crowd",
            max_boxes=2,
        ),
    )
    load = pipeline.LoadExample(source, fields.opened(fields.build(options, 8), source, None))
    examples = [load.load(i, np.random.default_rng(0))["boxes"] for i in range(3)]
    assert [example["valid"].sum() for example in examples] == [0, 0, 2]  # a crowd is left out
    np.testing.assert_allclose(examples[2]["boxes"][0] * 40, [5, 10, 15, 30])


def test_more_boxes_than_max_boxes_are_a_line_at_the_start(coco, caplog):
    source = coco()
    crop = dict(kind="random_crop", resize=8, size=8)
    options = dict(
        image=dict(kind="image", crop=crop, **PIXELS),
        boxes=dict(kind="boxes", image="image", key="objects/bbox", max_boxes=1),
    )
    fields.opened(fields.build(options, 8), source, None)["boxes"].check()
    assert [record.getMessage() for record in caplog.records] == [
        "data: fields.boxes.max_boxes is 1; 1 of 3 records have more, up to 2; they lose some"
    ]


@pytest.mark.parametrize(
    "source",
    [
        dict(kind="coco", annotations="a.json", images="images"),
        dict(kind="voc", path="VOC2012", image_set="Segmentation/train", classes=("cat",)),
        dict(kind="image_maps", images="{}.jpg", maps=dict(mask="{}.png")),
        dict(kind="composited_scenes", split="test", concepts="all", objects=(0, 3), classes=(), styles=()),
    ],
    ids=lambda source: source["kind"],
)
def test_a_config_may_have_these_sources(source):
    config.validate_source(source, "source")
    with pytest.raises(config.ConfigError, match=r"source.pth is no known key"):
        config.validate_source(source | dict(pth="x"), "source")


def _annotation(**changes):
    return dict(annotations=[COCO["annotations"][0] | changes])


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        (_annotation(bbox=[20, 0, 5, 5]), "1 boxes outside their image"),
        (_annotation(bbox=[5, 5, 0, 5]), "1 boxes without area"),
        (_annotation(bbox=[5, 5, 5, -2]), "1 boxes without area"),
        (_annotation(bbox=[5, float("nan"), 5, 5]), "1 boxes that are not finite"),
        (_annotation(image_id=77), "1 boxes of no listed image"),
    ],
)
def test_boxes_of_a_coco_file_that_are_left_out_are_counted(coco, changes, left_out):
    source = coco(**changes)
    assert sources.summary(source) == f"3 images with 0 boxes of 2 categories; left out: {left_out}"
    assert len(source[2]["objects/bbox"]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (_annotation(category_id=2), "annotation 1 has the category_id 2, which is none of the 3 categories"),
        (_annotation(bbox=[1, 2, 3]), r"annotation 1 has the bbox \[1, 2, 3\]; it must be four numbers"),
        (_annotation(bbox=None), "annotation 1 has the bbox None; it must be four numbers"),
        (_annotation(segments_info=[]), "it is of COCO's panoptic format; instances are read"),
        (dict(images=[*COCO["images"], COCO["images"][0] | dict(file_name="c.png")]), "b.png and c.png both"),
        (dict(images=[dict(id=1, file_name="x", width=3)]), "'width': 3} has no height"),
        (dict(images=[dict(id=1, file_name="x", width=3, height=0)]), "image 1 is 3 x 0 pixels"),
        (dict(images=[]), "it has no images"),
        (dict(images=[7]), "image 7 is no object"),
        (dict(annotations=[7]), "annotation 7 is no object"),
        (
            dict(annotations=[dict(id=7, category_id=1)]),
            "annotation {'id': 7, 'category_id': 1} has no image_id",
        ),
        (dict(categories=[dict(id=1)]), "category {'id': 1} has no name"),
        (dict(images=None), "has no list of images"),
        (dict(categories=[COCO["categories"][0]] * 2), "two of its categories have one id"),
    ],
)
def test_a_coco_file_that_can_not_be_used_is_one_line(coco, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        coco(**changes)
    assert "instances.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_or_missing_coco_file_is_one_line(coco, tmp_path):
    coco()
    file, options = tmp_path / "instances.json", dict(kind="coco", images=str(tmp_path / "images"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"instances.json is no JSON file, or it is truncated: .*line 1"):
        sources.build(options | dict(annotations=str(file)))
    with pytest.raises(FileNotFoundError, match=r"coco: no file .*none.json"):
        sources.build(options | dict(annotations=str(tmp_path / "none.json")))
    with pytest.raises(FileNotFoundError, match=r"coco: no folder nowhere"):
        sources.build(options | dict(annotations=str(file), images="nowhere"))
    with pytest.raises(ValueError, match="coco: annotations is not set"):
        sources.build(options | dict(annotations=""))


def test_a_missing_file_of_a_coco_image_is_replaced_and_counted(coco, tmp_path):
    source = coco()
    (tmp_path / "images" / "b.png").unlink()
    crop = dict(kind="random_crop", resize=8, size=8)
    made = fields.build(dict(image=dict(kind="image", crop=crop, **PIXELS)), 8)
    load = pipeline.LoadExample(source, fields.opened(made, source, None))
    errors = load.random_map(0, np.random.default_rng(0))["data_errors"]
    assert errors == dict(replaced_records=True, replaced_images=False, missing_examples=False)


_XML = """<annotation><size><width>20</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>10</xmax>
<ymax>30</ymax></bndbox></object>
<object><name>cat</name><bndbox><xmin>11</xmin><ymin>1</ymin><xmax>20</xmax><ymax>40.0</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def voc(tmp_path):
    """The folder of two images, of which one has a mask."""
    mask = Image.fromarray(np.array([[0, 8] * 10] * 39 + [[255] * 20], np.uint8), "P")
    mask.putpalette([i // 3 for i in range(768)])
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    for name, content in {
        "ImageSets/Main/train.txt": b"2008_1\n2008_2\n",
        "ImageSets/Main/dog_train.txt": b"2008_1  1\n",
        "ImageSets/Main/empty.txt": b"\n",
        "JPEGImages/2008_1.jpg": _encoded(np.zeros((40, 20, 3), np.uint8), "JPEG"),
        "JPEGImages/2008_2.jpg": _encoded(np.zeros((40, 20, 3), np.uint8), "JPEG"),
        "Annotations/2008_1.xml": _XML.encode(),
        "Annotations/2008_2.xml": (_XML.partition("<object>")[0] + "</annotation>").encode(),
        "SegmentationClass/2008_1.png": buffer.getvalue(),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def _voc(folder, image_set="Main/train"):
    return sources.build(dict(kind="voc", path=str(folder), image_set=image_set))


def test_a_voc_folder_gives_boxes_and_masks(voc):
    source = _voc(voc)
    record = source[0]
    np.testing.assert_allclose(record["objects/bbox"], [[0.25, 0, 0.75, 0.5], [0, 0.5, 1, 1]])
    assert record["objects/label"] == ["dog", "cat"]
    assert record["objects/is_difficult"].tolist() == [True, False]
    assert source[1]["objects/bbox"].shape == (0, 4)
    assert "mask" not in source[1]
    assert source.label_names("mask")[8] == "cat"
    assert len(source.label_names("objects/label")) == 20
    assert len(_voc(voc, "Main/dog_train")) == 1
    options = dict(
        image=dict(kind="image", crop=dict(kind="random_crop", resize=20, size=20), **PIXELS),
        boxes=dict(kind="boxes", image="image", key="objects/bbox", class_key="objects/label"),
        mask=dict(kind="mask", image="image", key="mask", num_classes=21),
    )
    load = pipeline.LoadExample(source, fields.opened(fields.build(options, 8), source, None))
    example = load.load(0, np.random.default_rng(0))
    assert example["boxes"]["labels"][:2].tolist() == [11, 7]
    assert set(np.unique(example["mask"])) <= {0, 8, 255}


@pytest.mark.parametrize(
    ("old", "new", "counter", "message"),
    [
        ("</annotation>", "", "replaced_records", "its XML file can't be read: no element found"),
        ("<xmax>10</xmax>", "<xmax>0</xmax>", "replaced_records", "its XML file has a box without area"),
        ("<xmax>10</xmax>", "", "replaced_records", "its XML file has a box without area"),
        ("<xmax>10</xmax>", "<xmax>ten</xmax>", "replaced_records", "its XML file can't be read: could not"),
        ("<width>20</width>", "", "replaced_records", "its XML file states no size"),
        (">dog<", ">griffin<", "replaced_boxes", "'griffin', which is no class"),
    ],
)
def test_a_damaged_voc_annotation_is_replaced_and_counted(voc, old, new, counter, message):
    file = voc / "Annotations" / "2008_1.xml"
    file.write_text(file.read_text().replace(old, new))
    source = _voc(voc)
    options = dict(
        image=dict(kind="image", crop=dict(kind="random_crop", resize=20, size=20), **PIXELS),
        boxes=dict(kind="boxes", image="image", key="objects/bbox", class_key="objects/label"),
    )
    load = pipeline.LoadExample(source, fields.opened(fields.build(options, 8), source, None))
    with pytest.raises(pipeline.BadRecord, match=message):
        load.load(0, np.random.default_rng(0))
    errors = load.random_map(0, np.random.default_rng(0))["data_errors"]
    assert [name for name, there in errors.items() if there] == [counter]


def test_a_voc_folder_that_can_not_be_used_is_one_line(voc):
    with pytest.raises(FileNotFoundError, match=r"voc: no file .*Main/val.txt"):
        _voc(voc, "Main/val")
    with pytest.raises(ValueError, match=r"empty.txt has no images"):
        _voc(voc, "Main/empty")
    with pytest.raises(ValueError, match="voc: path is not set"):
        _voc("")


def test_maps_are_found_by_the_names_of_their_images(tmp_path):
    depth = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000
    files = {"kitchen{1}/rgb_07.png": _encoded(np.zeros((3, 4, 3), np.uint8)), "kitchen{1}/other.png": b""}
    files |= {"kitchen{1}/depth_07.png": _encoded(depth), "hall/rgb_1.png": files["kitchen{1}/rgb_07.png"]}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    patterns = dict(
        images=f"{tmp_path}/{{}}/rgb_{{}}.png", maps=dict(depth=f"{tmp_path}/{{}}/depth_{{}}.png")
    )
    source = sources.build(dict(kind="image_maps") | patterns)
    assert [sources.record_name(source, i).rpartition(str(tmp_path))[2] for i in range(len(source))] == [
        "/hall/rgb_1.png",
        "/kitchen{1}/rgb_07.png",
    ]
    options = dict(
        image=dict(kind="image", crop=dict(kind="random_crop", resize=3, size=3), **PIXELS),
        depth=dict(kind="depth", image="image", key="depth", scale=0.001),
    )
    load = pipeline.LoadExample(source, fields.opened(fields.build(options, 8), source, None))
    # The first image has no map: the next one stands in for it.
    example = load.random_map(0, np.random.default_rng(0))
    assert example["data_errors"]["replaced_records"]
    assert example["depth"][0, 0] in (0, 1)
    assert example["depth"][2, 2] - example["depth"][0, 0] == pytest.approx(10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(images="x.png", maps={}), "images is 'x.png'; it must have {} for what differs"),
        (
            dict(images="{}/{}.png", maps=dict(mask="{}.png")),
            "maps.mask is '{}.png'; it must have {} 2 times, as images",
        ),
        (dict(images="nowhere/{}.png", maps=dict(mask="{}.png")), "no file is nowhere/{}.png"),
    ],
)
def test_patterns_of_maps_that_can_not_be_used(options, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        sources.build(dict(kind="image_maps") | options)

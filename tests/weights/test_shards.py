"""A sharded checkpoint, as transformers writes large ones, reads like the single file."""

import json
import shutil

import numpy as np
import pytest

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.tensor_files import INDEX, read_tensors, write_safetensors
from tests.parity import goldens
from tests.weights.test_tensor_files import tensor, write_archive

ARRAYS = {name: np.full((2, 3), i, np.float32) for i, name in enumerate("abcde")}


def write_torch(path, tensors):
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    content = {
        name: tensor(name, x.shape, tuple(step // x.itemsize for step in x.strides), count=x.size)
        for name, x in tensors.items()
    }
    write_archive(path, content, tensors)


WRITERS = {
    "model.safetensors": lambda path, tensors: write_safetensors(path, tensors, {}),
    "pytorch_model.bin": write_torch,
}


def split(folder, name, tensors, count=3):
    """Writes `name` as several shards and their index; returns the index's path."""
    stem, _, end = name.rpartition(".")
    weight_map = {}
    for i in range(count):
        file = f"{stem}-{i + 1:05}-of-{count:05}.{end}"
        part = dict(list(tensors.items())[i::count])
        WRITERS[name](folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{name}{INDEX}"
    index.write_text(json.dumps(dict(metadata=dict(total_size=1), weight_map=weight_map)))
    return index


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["hf_clip", "hf_siglip"])
def test_shards_read_like_the_single_file(kind, name, tmp_path):
    path = goldens.write_checkpoint(kind, tmp_path / "one")
    expected_config, expected = read_checkpoint(kind, path)
    (tmp_path / "many").mkdir()
    shutil.copyfile(path / "config.json", tmp_path / "many" / "config.json")
    index = split(tmp_path / "many", name, goldens.golden(kind)[0])
    for source in (tmp_path / "many", index):
        config, actual = read_checkpoint(kind, source)
        assert config == expected_config
        assert actual.keys() == expected.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(actual[path], value, err_msg=path)


@pytest.mark.parametrize("name", WRITERS)
def test_read_tensors_returns_all_shards_arrays(name, tmp_path):
    actual = read_tensors(split(tmp_path, name, ARRAYS))
    assert actual.keys() == ARRAYS.keys()
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(actual[key], value)


def change_map(index, change):
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


def unlink_second(index):
    (index.parent / "model-00002-of-00003.safetensors").unlink()


def truncate_second(index):
    path = index.parent / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def repeat_an_array(index):
    first = index.parent / "model-00001-of-00003.safetensors"
    write_safetensors(first, {name: ARRAYS[name] for name in "ade"}, {})


DAMAGES = [
    (unlink_second, "{index}: its shard model-00002-of-00003.safetensors is missing"),
    (
        truncate_second,
        "{folder}/model-00002-of-00003.safetensors: e ends after the file; the file is truncated",
    ),
    (repeat_an_array, "{index}: e is in model-00002-of-00003.safetensors and in another shard"),
    (
        lambda index: change_map(index, lambda m: m.update(f="model-00001-of-00003.safetensors")),
        "{index}: f is not in model-00001-of-00003.safetensors, where it should be",
    ),
    (
        lambda index: change_map(index, lambda m: m.update(b=m["a"])),
        "{index}: b is not in model-00001-of-00003.safetensors, where it should be",
    ),
    (
        lambda index: change_map(index, lambda m: m.update(a=index.name)),
        "{index}: unknown kind of file; there are .safetensors, .npz, .pt, .pth, .bin",
    ),
    (
        lambda index: index.write_text("{"),
        "{index}: no index of shards: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
    ),
    (
        lambda index: index.write_text("{}"),
        "{index}: no index of shards: it has no weight_map of names to files",
    ),
    (
        lambda index: index.write_text('{"weight_map": ["a"]}'),
        "{index}: no index of shards: it has no weight_map of names to files",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_the_error_for_a_damaged_shard_names_the_file(damage, message, tmp_path):
    index = split(tmp_path, "model.safetensors", ARRAYS)
    damage(index)
    with pytest.raises(WeightsError) as caught:
        read_tensors(index)
    assert str(caught.value) == message.format(index=index, folder=tmp_path)


def test_an_array_missing_from_the_index_is_an_unknown_weight(tmp_path):
    weights = goldens.golden("hf_clip")[0] | {"vision_model.extra": np.zeros(1, np.float32)}
    goldens.write_checkpoint("hf_clip", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    change_map(split(tmp_path, "model.safetensors", weights), lambda m: m.pop("vision_model.extra"))
    with pytest.raises(WeightsError, match=r"vision_model\.extra is no weight of this architecture"):
        read_checkpoint("hf_clip", tmp_path)


def test_one_file_is_preferred_to_shards(tmp_path):
    goldens.write_checkpoint("hf_clip", tmp_path)
    (tmp_path / f"model.safetensors{INDEX}").write_text("{")
    read_checkpoint("hf_clip", tmp_path)

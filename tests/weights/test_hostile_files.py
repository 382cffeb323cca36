"""Files made to mislead a reader: refused by one line that names the file, before they cost memory."""

import json
import zipfile

import numpy as np
import pytest

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from big_ssl.weights.tensor_files import INDEX, read_tensors, write_safetensors
from tests.parity import goldens
from tests.weights.test_tensor_files import (
    TENSOR,
    Global,
    Name,
    pickled,
    tensor,
    with_attributes,
    write_archive,
)

X = dict(x=np.arange(6, dtype=np.float32))


def refusal(read, *arguments):
    with pytest.raises(WeightsError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= 1000
    return message


def write_index(folder, **weight_map):
    index = folder / f"model.safetensors{INDEX}"
    index.write_text(json.dumps(dict(weight_map=weight_map)))
    return index


@pytest.mark.parametrize(
    "name", ["../other/a.safetensors", "{other}/a.safetensors", "sub/a.safetensors", ".."]
)
def test_a_shard_outside_its_folder_is_refused(name, tmp_path):
    for folder in ("in", "in/sub", "other"):
        (tmp_path / folder).mkdir()
        write_safetensors(tmp_path / folder / "a.safetensors", X, {})
    name = name.format(other=tmp_path / "other")
    index = write_index(tmp_path / "in", x=name)
    assert refusal(read_tensors, index) == f"{index}: its shard {name} is outside its folder"


def test_a_shard_that_is_a_link_to_another_folder_is_refused(tmp_path):
    for folder in ("in", "other"):
        (tmp_path / folder).mkdir()
    write_safetensors(tmp_path / "other" / "a.safetensors", X, {})
    (tmp_path / "in" / "a.safetensors").symlink_to("../other/a.safetensors")
    index = write_index(tmp_path / "in", x="a.safetensors")
    assert "its shard a.safetensors is a link to outside its folder" in refusal(read_tensors, index)


def test_a_hubs_cache_of_links_is_read(tmp_path):
    """Links to files in one other folder, the index among them."""
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    write_safetensors(tmp_path / "blobs" / "aa", X, {})
    write_index(tmp_path / "blobs", x="a.safetensors").rename(tmp_path / "blobs" / "bb")
    index = snapshot / f"model.safetensors{INDEX}"
    (snapshot / "a.safetensors").symlink_to("../../blobs/aa")
    index.symlink_to("../../blobs/bb")
    np.testing.assert_array_equal(read_tensors(index)["x"], X["x"])


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"weight_map": {"x": 1}}', "\udc80"])
def test_a_malformed_index_is_refused(content, tmp_path):
    index = tmp_path / f"model.safetensors{INDEX}"
    index.write_bytes(content.encode(errors="surrogateescape"))
    assert f"{index}: no index of shards: " in refusal(read_tensors, index)


def test_a_shards_name_longer_than_a_disk_allows_is_refused(tmp_path):
    index = write_index(tmp_path, x="a" * 300)
    assert f"{index}: its shard aaa" in refusal(read_tensors, index)


def test_a_name_that_cannot_be_printed_is_escaped(tmp_path):
    path = tmp_path / "a.safetensors"
    text = rb'{"a\nb\ud83d": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert refusal(read_tensors, path) == rf"{path}: a\nb\ud83d has 4 bytes, not those of F32[2]"


def test_a_header_longer_than_the_limit_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:  # sparse: it takes no space
        file.write((200_000_000).to_bytes(8, "little") + b"{")
        file.truncate(200_000_100)
    assert "its header has 200,000,000 bytes; at most 100,000,000 are allowed" in refusal(read_tensors, path)


def write_pickle(path, code):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + code + b".")
    return path


def test_strides_that_overflow_are_refused(tmp_path):
    """A pickle may make NumPy's scalars, whose products wrap around, of the names of storages."""
    small = Global("torch", "CharStorage", 100)
    content = {"a": tensor("0", (small, 2), (small, 1))}
    write_archive(tmp_path / "a.pt", content, {"0": X["x"]})
    assert f"{tmp_path}/a.pt: no PyTorch state dict: " in refusal(read_tensors, tmp_path / "a.pt")


def test_a_pickle_does_not_change_the_reader(tmp_path):
    """The instruction b sets attributes of what is on the stack: here a function's defaults."""
    function = b"ctorch._utils\n_rebuild_tensor_v2\n(N" + pickled({"__defaults__": ((6,), (1,))}) + b"tb0}"
    refusal(read_tensors, write_pickle(tmp_path / "a.pt", function))
    incomplete = Global("torch._utils", "_rebuild_tensor_v2", tensor("0", (6,), (1,)), 0)
    write_archive(tmp_path / "b.pt", {"a": incomplete}, {"0": X["x"]})
    assert "_tensor() missing 2 required positional arguments" in refusal(read_tensors, tmp_path / "b.pt")


def test_a_memo_number_beyond_the_instructions_is_refused(tmp_path):
    path = write_pickle(tmp_path / "a.pt", b"}r" + (2**31).to_bytes(4, "little"))
    assert "has a memo number of 2147483648 after 2 instructions" in refusal(read_tensors, path)


@pytest.mark.parametrize(
    ("rebuild", "kind", "message"),
    [
        (Name("collections", "OrderedDict"), Name("torch", "Tensor"), "a tensor of the type Tensor"),
        (TENSOR, Name("argparse", "Namespace"), "Module'>, which is not read"),
        (Name("torch._utils", "_rebuild_wrapper_subclass"), Name("torch", "Tensor"), "no plain ones"),
        (
            TENSOR,
            Name("torch.distributed.tensor", "DTensor"),
            r"no plain ones (DTensor), such as a process's",
        ),
        (Name("os", "system"), Name("torch", "Tensor"), "os.system, which would run code"),
    ],
)
def test_a_tensor_with_attributes_calls_nothing_else(rebuild, kind, message, tmp_path):
    write_archive(tmp_path / "a.pth", {"a": with_attributes(rebuild, kind, X["x"].size)}, {"0": X["x"]})
    assert message in refusal(read_tensors, tmp_path / "a.pth")


def test_a_process_shards_are_refused_with_what_to_do(tmp_path):
    """As torch.save of FSDP's LOCAL_STATE_DICT writes them: slices of flattened parameters."""
    shard = Name("torch.distributed._shard.sharded_tensor.api", "ShardedTensor")
    flat = with_attributes(Name("torch._utils", "_rebuild_wrapper_subclass"), shard)
    content = dict(model={"student.norm.weight": tensor("0", (6,), (1,)), "student._flat_param": flat})
    write_archive(tmp_path / "model_0.rank_0.pth", content, {"0": X["x"]})
    message = refusal(read_tensors, tmp_path / "model_0.rank_0.pth")
    assert f"{tmp_path}/model_0.rank_0.pth" in message
    assert "save FSDP's FULL_STATE_DICT there, or read DINOv2's eval/*/teacher_checkpoint.pth" in message


def test_dicts_that_contain_themselves_are_refused(tmp_path):
    assert "RecursionError" in refusal(read_tensors, write_pickle(tmp_path / "a.pt", b"}q\0K\1h\0s"))


def test_dicts_that_multiply_are_refused(tmp_path):
    """Thirty dicts, each with the one before twice, are 2^30 paths."""
    double = b"".join(
        b"q" + bytes([i]) + b"0}(K\1h" + bytes([i]) + b"K\2h" + bytes([i]) + b"u" for i in range(30)
    )
    path = write_pickle(tmp_path / "a.pt", b"}" + double)
    assert "it has more than 1,000,000 entries" in refusal(read_tensors, path)


def test_two_arrays_of_one_name_are_refused(tmp_path):
    x = tensor("0", (6,), (1,))
    write_archive(tmp_path / "a.pt", {"a": {"b": x}, "a.b": x}, {"0": X["x"]})
    assert "a.b is there twice" in refusal(read_tensors, tmp_path / "a.pt")


def test_a_compressed_storage_is_refused(tmp_path):
    """A file of a megabyte may hold a gigabyte of zeros."""
    path = tmp_path / "a.pt"
    write_archive(path, {"a": tensor("0", (6,), (1,))}, {})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1000))
    assert "archive/data/0 is compressed, which PyTorch does not do" in refusal(read_tensors, path)


def test_big_endian_numbers_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    write_archive(path, {"a": tensor("0", (6,), (1,))}, {"0": X["x"]})
    assert read_tensors(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    assert "its numbers are big-endian" in refusal(read_tensors, path)


@pytest.mark.parametrize("code", [b"0", b"N(tb", b"\x95" + b"\xff" * 8])
def test_a_malformed_pickle_is_refused(code, tmp_path):
    path = write_pickle(tmp_path / "a.pt", code)
    assert f"{path}: no PyTorch state dict: " in refusal(read_tensors, path)


def test_a_member_of_an_npz_file_that_is_no_array_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **X)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("b.txt", "text")
    assert "a.npz: no npz file, or a truncated one: b.txt is no array" in refusal(
        read_tensors, tmp_path / "a.npz"
    )


def change_config(folder, name="config.json", **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / name).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("hf_clip", dict(vision_config="x"), "vision_config is 'x'; it must be an object"),
        (
            "hf_clip",
            dict(vision_config=dict(num_attention_heads="3")),
            "vision_config.num_attention_heads is '3'; it must be a whole number from 1",
        ),
        (
            "hf_siglip",
            dict(text_config=dict(layer_norm_eps=[1])),
            "text_config.layer_norm_eps is [1]; it must be a number above 0",
        ),
        (
            "hf_siglip",
            dict(vision_config=dict(image_size=-224)),
            "vision_config.image_size is -224; it must be a whole number from 1",
        ),
        ("hf_clip", dict(text_config=dict(hidden_act=1)), "text_config.hidden_act is 1; it must be a text"),
        (
            "hf_dinov2",
            dict(num_attention_heads=True),
            "num_attention_heads is True; it must be a whole number",
        ),
        (
            "hf_dinov2",
            dict(layer_norm_eps=float("nan")),
            "layer_norm_eps is nan; it must be a number above 0",
        ),
        ("hf_dinov3", dict(rope_theta=0), "rope_theta is 0; it must be a number above 0"),
        ("hf_dinov3", dict(pos_embed_rescale="2"), "pos_embed_rescale is '2'; it must be a number above 0"),
        ("hf_dinov3", dict(key_bias=0), "key_bias is 0; it must be true or false"),
        ("hf_tipsv2", dict(mlp_ratio=-1), "mlp_ratio is -1; it must be a number above 0"),
        (
            "hf_align",
            dict(vision_config=dict(strides="1")),
            "vision_config.strides is '1'; it must be a whole number from 1, or a list",
        ),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_file(kind, changes, message, tmp_path):
    path = goldens.write_checkpoint(kind, tmp_path)
    change_config(path, **changes)
    assert f"{path / 'config.json'}: {message}" in refusal(read_checkpoint, kind, path)


def test_a_value_of_another_kind_in_the_preprocessing_is_named(tmp_path):
    path = goldens.write_checkpoint("hf_clip", tmp_path)
    for key, value, kind in (
        ("resample", [3], "a text or a whole number"),
        ("do_resize", 1, "true or false"),
    ):
        (path / "preprocessor_config.json").write_text(json.dumps({key: value}))
        message = refusal(read_checkpoint, "hf_clip", path)
        assert message == f"{path / 'preprocessor_config.json'}: {key} is {value!r}; it must be {kind}"


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", "holds a JSON list; it must hold an object"), ("[" * 100_000, "is no JSON: RecursionError")],
)
def test_json_that_is_no_object_is_refused(content, message, tmp_path):
    path = goldens.write_checkpoint("hf_clip", tmp_path)
    (path / "preprocessor_config.json").write_text(content)
    assert f"{path / 'preprocessor_config.json'} {message}" in refusal(read_checkpoint, "hf_clip", path)


def test_an_image_size_costs_no_memory(tmp_path):
    """Shapes are inferred from a picture of this size without making one."""
    path = goldens.write_checkpoint("hf_align", tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["vision_config"]["image_size"] = 10**6
    (path / "config.json").write_text(json.dumps(config))
    assert read_checkpoint("hf_align", path)[0]["image_size"] == 10**6


@pytest.mark.parametrize("written_by", [b"0.2.0\n", b"\xff\n"])
def test_a_key_that_our_own_config_lacks_is_named_with_its_file(written_by, tmp_path):
    """Also where the version that wrote it can't be read."""
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "in"))
    write_checkpoint("big_ssl", tmp_path, config, ours)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["encoders"]["image"]["image_size"], written["image_size"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    (tmp_path / "version.txt").write_bytes(written_by)
    message = refusal(read_checkpoint, "big_ssl", tmp_path)
    assert message.startswith(f"{tmp_path}/model.safetensors, as big_ssl")
    assert message.endswith("KeyError: 'image_size'")

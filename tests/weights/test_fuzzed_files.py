"""A thousand mutations of each kind of file: read properly, or refused by one line that names the file.

The mutations are drawn from seeds, so that a case which fails can be run again by its number.
"""

import json
import zipfile

import numpy as np
import pytest

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from big_ssl.weights.tensor_files import INDEX, read_tensors, write_safetensors
from tests.parity import goldens
from tests.weights.test_tensor_files import ARRAYS, tensor, write_archive

CASES = 1000
# (golden model, format, JSON file).
CONFIGS = [
    ("hf_clip", "hf_clip", "config.json"),
    ("hf_clip", "hf_clip", "preprocessor_config.json"),
    ("hf_clip", "hf_clip", "tokenizer_config.json"),
    ("hf_clip", "open_clip", "open_clip_config.json"),
    ("hf_clip", "big_ssl", "config.json"),
    ("hf_siglip", "hf_siglip", "config.json"),
    ("hf_align", "hf_align", "config.json"),
    ("hf_dinov2", "hf_dinov2", "config.json"),
    ("hf_dinov3", "hf_dinov3", "config.json"),
    ("hf_tipsv2", "hf_tipsv2", "config.json"),
]
TOKENIZER_CONFIG = dict(
    added_tokens_decoder={"48": dict(content="<|startoftext|>")},
    additional_special_tokens=["<|startoftext|>"],
    bos_token=dict(content="<|startoftext|>"),
    eos_token="<|endoftext|>",
    model_max_length=9,
    padding_side="right",
    tokenizer_class="CLIPTokenizer",
)
# What a writer of malformed files tries first.
VALUES = [
    *(
        None,
        True,
        -1,
        0,
        1,
        2,
        3,
        7,
        10**6,
        2**31,
        2**63,
        2**70,
        -(2**70),
        0.5,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        "x",
        "0",
        "../a",
        "/",
        "\ud83d",
        "a\nb",
        "F32",
        "gelu",
        [],
        [1],
        ["x"],
        [-1, -1],
        [[]],
        {},
        {"x": 1},
    ),
]


def changed(value, rng):
    """JSON with one value, chosen at random at any depth, replaced, removed, renamed or repeated."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return VALUES[rng.integers(len(VALUES))]
    if isinstance(value, list):
        i = rng.integers(len(value))
        options = [value[:i] + value[i + 1 :], value + value[i : i + 1]]
        options += 3 * [[*value[:i], changed(value[i], rng), *value[i + 1 :]]]
        return options[rng.integers(len(options))]
    key = list(value)[rng.integers(len(value))]
    others = {name: entry for name, entry in value.items() if name != key}
    options = [others, others | {key + "x": value[key]}, *4 * [others | {key: changed(value[key], rng)}]]
    return options[rng.integers(len(options))]


def damaged(data: bytes, rng) -> bytes:
    """Bytes with one to eight of them replaced, removed or repeated, or cut short."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        start = rng.integers(max(1, len(data)))
        end = start + rng.integers(1, 9)
        way = rng.integers(5)
        if way == 0:
            del data[start:end]
        elif way == 1:
            data[start:start] = data[start:end]
        elif way == 2 and rng.random() < 0.2:
            del data[start:]
        else:
            data[start:end] = rng.integers(0, 256, len(data[start:end]), np.uint8).tobytes()
    return bytes(data)


def text(value) -> bytes:
    return json.dumps(value).encode()


def damaged_json(value, rng) -> bytes:
    return damaged(text(value), rng) if rng.random() < 0.3 else text(changed(value, rng))


def check(read, folder) -> bool:
    """Whether reading succeeds; otherwise the error is one line with the file's folder."""
    message = None
    try:
        read()
    except (WeightsError, FileNotFoundError) as error:
        message = str(error)
    assert message is None or (message.isprintable() and str(folder) in message), message
    return message is None


def check_arrays(path) -> bool:
    def read():
        for name, array in read_tensors(path).items():
            assert isinstance(name, str)
            # No view reaches beyond what was read: a wrong one would end the process here.
            assert array.size == 0 or array.nbytes > 10**7 or array.tobytes() is not None

    return check(read, path.parent)


def run(case, count=CASES):
    """Runs all cases; some must be refused and some read, otherwise the mutations test nothing."""
    results = [case(np.random.default_rng((2026, i))) for i in range(count)]
    assert 10 < sum(results) < count - 10


def with_header(header: bytes, data: bytes, rng) -> bytes:
    length = len(header) if rng.random() < 0.95 else int(rng.integers(2**63))
    return length.to_bytes(8, "little") + header + data


@pytest.mark.slow
def test_safetensors_headers(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, ARRAYS, dict(format="pt"))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]

    def case(rng):
        path.write_bytes(with_header(damaged_json(header, rng), data, rng))
        return check_arrays(path)

    run(case)


@pytest.mark.slow
def test_indices_of_shards(tmp_path):
    for file in ("a.safetensors", "b.safetensors"):
        write_safetensors(tmp_path / file, {file: np.zeros(3, np.float32)}, {})
    path = tmp_path / f"model.safetensors{INDEX}"
    index = dict(
        metadata=dict(total_size=24), weight_map={file: file for file in ("a.safetensors", "b.safetensors")}
    )

    def case(rng):
        path.write_bytes(damaged_json(index, rng))
        return check_arrays(path)

    run(case)


@pytest.mark.slow
def test_npz_files(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **{name: value for name, value in ARRAYS.items() if name != "brain"})
    content = path.read_bytes()
    np.savez_compressed(path, x=np.arange(100.0))
    compressed = path.read_bytes()

    def case(rng):
        path.write_bytes(damaged(compressed if rng.random() < 0.3 else content, rng))
        return check_arrays(path)

    run(case)


@pytest.mark.slow
def test_torch_archives(tmp_path):
    """Half of them with a damaged pickle in a sound archive, which a damaged archive rarely is."""
    path = tmp_path / "a.pt"
    content = {
        "a": {"weight": tensor("0", (2, 3), (3, 1))},
        "half": tensor("1", (2,), (1,), kind="HalfStorage"),
    }
    storages = {"0": ARRAYS["matrix"], "1": ARRAYS["half"]}
    write_archive(path, content, storages)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def case(rng):
        if rng.random() < 0.5:
            path.write_bytes(damaged(whole, rng))
            return check_arrays(path)
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in members.items():
                archive.writestr(name, damaged(member, rng) if name.endswith(".pkl") else member)
        return check_arrays(path)

    run(case)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind", "name"), CONFIGS)
def test_configs(model, kind, name, tmp_path):
    folder = goldens.write_checkpoint(model, tmp_path / "source")
    if (model, name) != (kind, "config.json"):
        write_checkpoint(kind, tmp_path / "written", *read_checkpoint(model, folder))
        folder = tmp_path / "written"
    if name == "tokenizer_config.json":
        (folder / name).write_text(json.dumps(TOKENIZER_CONFIG))
    path, config = folder / name, read_config(folder / name)

    def case(rng):
        path.write_bytes(damaged_json(config, rng))
        return check(lambda: read_checkpoint(kind, folder), folder)

    run(case, 1 + CASES // len(CONFIGS))  # a thousand of configs together: the shapes of each are inferred


def read_config(path):
    """The JSON, of transformers' many keys those that describe the architecture."""
    unread = ("_", "return_", "output_", "torch", "dtype", "id2label", "label2id", "num_beam", "prune")

    def essential(value):
        if not isinstance(value, dict):
            return value
        return {key: essential(entry) for key, entry in value.items() if not key.startswith(unread)}

    return essential(json.loads(path.read_text()))

"""transformers' BERT, from which ALIGN's text encoder can start."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import big_ssl
from big_ssl.convert import convert
from big_ssl.training import initial
from big_ssl.training.state import TrainState
from big_ssl.weights import architecture
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.tensor_files import write_safetensors
from tests.parity import goldens

CONFIG = dict(
    model_type="bert",
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=40,
    max_position_embeddings=12,
)


def write(folder, spelling=lambda name: name, arrays=None, **changes):
    """The golden ALIGN's text encoder as a BERT; spelling: of the arrays' names; changes: of config.json."""
    goldens.write_checkpoint("hf_align", folder)
    tensors, prefix = goldens.golden("hf_align")[0], "text_model."
    own = {n.removeprefix(prefix): np.asarray(x) for n, x in tensors.items() if n.startswith(prefix)}
    named = {spelling(name): array for name, array in own.items()} | (arrays or {})
    write_safetensors(folder / "model.safetensors", named, {})
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def first_published(name):
    """As in the files of 2018: TensorFlow's names of norms, below a head."""
    norms = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for ours, theirs in norms.items():
        name = name.replace(ours, theirs)
    return f"bert.{name}"


@pytest.mark.parametrize("spelling", [str, first_published])
def test_the_weights_are_those_of_aligns_text_encoder(spelling, tmp_path):
    heads = {"cls.predictions.bias": np.zeros(50), "embeddings.position_ids": np.zeros((1, 12), int)}
    write(tmp_path / "bert", spelling, arrays=heads)
    assert guess(tmp_path / "bert") == "hf_bert"
    config, ours = read_checkpoint("hf_bert", tmp_path / "bert")
    align, expected = read_checkpoint("hf_align", goldens.write_checkpoint("hf_align", tmp_path / "align"))
    assert config["encoders"] == dict(text=align["encoders"]["text"])
    assert config["tokenizer"] == align["tokenizer"]
    encoder = {path for path in expected if path.startswith("params/encoders/text/")}
    assert ours.keys() == encoder
    assert all(np.array_equal(ours[path], expected[path]) for path in encoder)
    ids, mask = np.array([[2, 7, 3, 0]]), np.array([[True, True, True, False]])
    pooled = big_ssl.load(tmp_path / "bert").encode_text(ids, mask, normalize=False)
    assert pooled.shape == (1, 16)


def test_aligns_text_encoder_starts_from_it(tmp_path):
    """Its texts are shorter, so that the positions beyond are left out."""
    convert("hf_bert", write(tmp_path / "bert"), "big_ssl", tmp_path / "ours", {})
    config, _ = read_checkpoint("hf_align", goldens.write_checkpoint("hf_align", tmp_path / "align"))
    config["encoders"]["text"]["max_len"] = config["tokenizer"]["length"] = 9
    shapes = architecture.shapes(config)
    tree = unflatten_dict({k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}, sep="/")
    state = TrainState(
        step=0,
        params=tree["params"],
        opt_state=(),
        mutable=dict(encoders=tree["encoders"] | dict(text={}), objectives={}),
        ema=None,
        counters={},
    )
    init_from = dict(path=str(tmp_path / "ours"), exclude=("encoders/image/", "heads/"), remap=())
    run = dict(encoders=config["encoders"], tokenizer=config["tokenizer"], dtype="float32", remat="none")
    found = flatten_dict(initial.read(run | dict(init_from=init_from), state)["params"], sep="/")
    _, bert = read_checkpoint("hf_bert", tmp_path / "bert")
    for name, array in found.items():
        if name.startswith("encoders/text/"):
            expected = bert[f"params/{name}"]
            np.testing.assert_array_equal(array, expected[:9] if "text/position/" in name else expected)
        else:
            assert array is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_hidden_layers=3), "config.json: num_hidden_layers is 3; the weights have 2"),
        (dict(vocab_size=51), "config.json: vocab_size is 51; the weights have 50"),
        (dict(hidden_act="gelu_new"), "hidden_act is 'gelu_new'; only 'gelu' is known"),
        (dict(layer_norm_eps=1e-5), "layer_norm_eps is 1e-05; only 1e-12 is known"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type is 'relative_key'"),
        (dict(is_decoder=True), "is_decoder is True; only False is known"),
        (dict(num_attention_heads=3), "num_attention_heads 3 does not divide the width 16"),
        (dict(model_type="roberta"), "model_type is 'roberta'; it must be bert"),
    ],
)
def test_the_error_names_an_unsupported_setting(changes, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        read_checkpoint("hf_bert", write(tmp_path, **changes))


def test_an_array_without_a_place_is_named(tmp_path):
    arrays = {"encoder.layer.0.crossattention.self.query.weight": np.zeros((16, 16), np.float32)}
    with pytest.raises(WeightsError, match=r"crossattention\.self\.query\.weight is no weight"):
        read_checkpoint("hf_bert", write(tmp_path, arrays=arrays))

"""CLIP and SigLIP against PyTorch on the same random weights, through the files they are published in."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from big_ssl.convert import convert
from big_ssl.data import preprocessing
from big_ssl.inference import Model, load
from big_ssl.models.layer_layouts import stack_layers, unstack_layers
from big_ssl.models.position_embedding import resize_position_embedding
from big_ssl.models.vit import ViT
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.tensor_files import read_tensors, write_safetensors

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import clip_peers, clip_reference, peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import REFERENCE, parity_figure  # noqa: E402
from tests.parity.test_clip_goldens import loss, scale_and_bias  # noqa: E402

pytestmark = pytest.mark.parity

# Two float32 networks that add in another order; outputs are of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)
HEADS = dict(num_heads=3, text_num_heads=2)
IMAGES, IDS = clip_peers.images(), clip_peers.ids()


def ours(kind, path, options=None):
    config, weights = read_checkpoint(kind, path, options)
    return Model(config, unflatten_dict(weights, sep="/"))


def assert_same(kind, model, expected, images=IMAGES):
    """Features, patches, logits and loss; expected: as clip_peers.run_hf gives."""
    image, text = model.encode_image(images), model.encode_text(IDS)
    scale, bias = scale_and_bias(model)
    np.testing.assert_allclose(image, expected["image"], **CLOSE)
    np.testing.assert_allclose(text, expected["text"], **CLOSE)
    patches, logits = model.patch_features(images), scale * image @ text.T + bias
    np.testing.assert_allclose(patches, expected["patches"], **CLOSE)
    np.testing.assert_allclose(logits, expected["logits"], **CLOSE)
    np.testing.assert_allclose(loss(model, image, text), expected["loss"], **CLOSE)
    for name, found in (("image", image), ("text", text), ("patches", patches)):
        parity_figure(kind, "architecture", found, expected[name])
    parity_figure(kind, "heads", logits, expected["logits"])


@pytest.mark.parametrize(("activation", "eos_token_id"), [("quick_gelu", 49), ("gelu", 2)])
def test_hf_clip(activation, eos_token_id, tmp_path):
    """2 is the mistaken id of the published files, which means the largest."""
    peer = clip_peers.hf_clip(activation, eos_token_id, seed=3)
    peer.save_pretrained(tmp_path)
    assert_same("hf_clip", ours("hf_clip", tmp_path), clip_peers.run_hf(peer, IMAGES, IDS))


@pytest.mark.parametrize("image_size", [24, 27], ids=["whole", "remainder"])
def test_hf_siglip(image_size, tmp_path):
    """27 pixels are three patches of 8 and a rest, as 384 are 27 of 14 in So400m."""
    peer, images = clip_peers.hf_siglip(image_size, seed=3), clip_peers.images(image_size)
    peer.save_pretrained(tmp_path)
    assert_same("hf_siglip", ours("hf_siglip", tmp_path), clip_peers.run_hf(peer, images, IDS), images)


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_hf_clip_in_shards(end, tmp_path):
    """As transformers splits it, and, as its older versions did, by PyTorch's own files."""
    peer = clip_peers.hf_clip(seed=3)
    peer.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    if end == "bin":
        for file in tmp_path.glob("*.safetensors"):
            state = {name: torch.tensor(value) for name, value in read_tensors(file).items()}
            torch.save(state, file.with_suffix(".bin"))
            file.unlink()
        names = index.read_text().replace(".safetensors", ".bin")
        (tmp_path / "pytorch_model.bin.index.json").write_text(names)
        index.unlink()
    assert len(list(tmp_path.glob(f"*.{end}"))) > 2
    assert_same("hf_clip", ours("hf_clip", tmp_path), clip_peers.run_hf(peer, IMAGES, IDS))


def test_hf_clip_and_back_is_bit_identical(tmp_path):
    peer = clip_peers.hf_clip("gelu", seed=4)
    peer.save_pretrained(tmp_path / "theirs")
    convert("hf_clip", tmp_path / "theirs", "big_ssl", tmp_path / "ours", {})
    convert("big_ssl", tmp_path / "ours", "hf_clip", tmp_path / "back", {})
    back = transformers.CLIPModel.from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    expected, found = peers.state(peer), peers.state(back)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        parity_figure("hf_clip", "export", found[name], value)
    for key, value in clip_peers.run_hf(peer, IMAGES, IDS).items():
        np.testing.assert_array_equal(clip_peers.run_hf(back, IMAGES, IDS)[key], value)
    assert_same("hf_clip", load(tmp_path / "ours"), clip_peers.run_hf(peer, IMAGES, IDS))


def assert_same_as_reference(kind, model, peer, images):
    expected = clip_peers.run_openai(peer, images, IDS)
    found = (model.encode_image(images, normalize=False), model.encode_text(IDS, normalize=False))
    for features, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(features, theirs, **CLOSE)
        parity_figure(kind, "architecture", features, theirs, REFERENCE)
    with torch.no_grad():
        pixels = clip_peers.pixels(images, clip_peers.CLIP_VIEW)
        if isinstance(peer.visual, clip_reference.ResNet):
            patches = peer.visual.map(pixels).permute(0, 2, 3, 1)
        else:
            patches = peer.visual.tokens(pixels)[:, 1:]
    np.testing.assert_allclose(model.patch_features(images), patches, **CLOSE)
    scale = model.variables["params"]["heads"]["contrastive"]["logit_scale"]
    np.testing.assert_array_equal(scale, peer.logit_scale.detach())
    parity_figure(kind, "heads", scale, peer.logit_scale.detach(), REFERENCE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("archive", ["state_dict", "torchscript"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_openai_clip(kind, archive, tmp_path):
    images = IMAGES if kind == "vit" else clip_peers.images(64)
    peer = clip_peers.openai_clip(kind, seed=5)
    half = clip_peers.openai_clip(kind, seed=5).half()
    if archive == "state_dict":
        torch.save(half.state_dict(), tmp_path / "clip.pt")
    else:
        example = clip_peers.pixels(images, clip_peers.CLIP_VIEW).half(), torch.tensor(IDS)
        torch.jit.trace(half, example).save(tmp_path / "clip.pt")
    options = HEADS if kind == "vit" else dict(text_num_heads=2)
    model = ours("openai_clip", tmp_path / "clip.pt", options)
    assert_same_as_reference("openai_clip", model, peer, images)


MODEL_CFG = dict(
    embed_dim=12,
    vision_cfg=dict(image_size=24, layers=2, width=24, patch_size=8, head_width=8),
    text_cfg=dict(context_length=9, vocab_size=50, width=16, heads=2, layers=2),
)


@pytest.mark.parametrize("spelling", ["plain", "text."])
def test_open_clip(spelling, tmp_path):
    """Its activation is GELU where the config does not say otherwise."""
    peer = clip_peers.openai_clip(seed=6, activation=torch.nn.functional.gelu)
    state = peers.state(peer)
    if spelling == "text.":
        theirs = ("visual.", "logit_scale")
        state = {name if name.startswith(theirs) else f"text.{name}": value for name, value in state.items()}
        state["logit_scale"] = state["logit_scale"][None]
    write_safetensors(tmp_path / "open_clip_model.safetensors", state, {})
    config = dict(model_cfg=MODEL_CFG, preprocess_cfg=dict(mean=clip_peers.CLIP_VIEW["mean"]))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert_same_as_reference("open_clip", ours("open_clip", tmp_path), peer, IMAGES)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_openai_to_open_clip_has_the_same_arrays(kind, tmp_path):
    peer = clip_peers.openai_clip(kind, seed=7)
    torch.save(peer.state_dict(), tmp_path / "clip.pt")
    options = HEADS if kind == "vit" else dict(text_num_heads=2)
    convert("openai_clip", tmp_path / "clip.pt", "open_clip", tmp_path / "out", options)
    found = read_tensors(tmp_path / "out" / "open_clip_model.safetensors")
    expected = {k: v for k, v in peers.state(peer).items() if not k.endswith("num_batches_tracked")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        parity_figure("open_clip", "export", found[name], value, REFERENCE)
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]
    assert config["quick_gelu"]
    assert config["text_cfg"] == MODEL_CFG["text_cfg"]
    if kind == "vit":
        assert config["vision_cfg"] == MODEL_CFG["vision_cfg"]
    images = IMAGES if kind == "vit" else clip_peers.images(64)
    assert_same_as_reference("open_clip", ours("open_clip", tmp_path / "out"), peer, images)


def big_vision_arrays(state, heads):
    """transformers' SigLIP under big_vision's names, by the correspondence that the model's paper and
    code describe; heads: {"img": n, "txt": n}. Written apart from what it tests."""
    found = dict(
        t=state["logit_scale"],
        b=state["logit_bias"],
    )
    for ours, theirs, tower, blocks in (
        ("img", "vision_model", "Transformer", 2),
        ("txt", "text_model", "Encoder_0", 2),
    ):
        for i in range(blocks):
            layer = functools.partial("{}.encoder.layers.{}.{}".format, theirs, i)
            block = f"{ours}/{tower}/encoderblock_{i}"
            for n in (0, 1):
                _norm(found, f"{block}/LayerNorm_{n}", state, layer(f"layer_norm{n + 1}"))
                _dense(found, f"{block}/MlpBlock_0/Dense_{n}", state, layer(f"mlp.fc{n + 1}"))
            for name, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
                weight, bias = (state[layer(f"self_attn.{short}_proj.{leaf}")] for leaf in ("weight", "bias"))
                _head(found, f"{block}/MultiHeadDotProductAttention_0/{name}", weight, bias, heads[ours])
        final = "post_layernorm" if ours == "img" else "final_layer_norm"
        _norm(found, f"{ours}/{tower}/encoder_norm", state, f"{theirs}.{final}")
        found[f"{ours}/pos_embedding"] = state[f"{theirs}.embeddings.position_embedding.weight"][None]
    patch = "vision_model.embeddings.patch_embedding"
    found["img/embedding/kernel"] = state[f"{patch}.weight"].transpose(2, 3, 1, 0)
    found["img/embedding/bias"] = state[f"{patch}.bias"]
    found["txt/Embed_0/embedding"] = state["text_model.embeddings.token_embedding.weight"]
    _dense(found, "txt/head", state, "text_model.head")
    head, pool = "vision_model.head", "img/MAPHead_0"
    found[f"{pool}/probe"] = state[f"{head}.probe"]
    _norm(found, f"{pool}/LayerNorm_0", state, f"{head}.layernorm")
    for n in (0, 1):
        _dense(found, f"{pool}/MlpBlock_0/Dense_{n}", state, f"{head}.mlp.fc{n + 1}")
    weights, biases = (np.split(state[f"{head}.attention.in_proj_{leaf}"], 3) for leaf in ("weight", "bias"))
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        _head(found, f"{pool}/MultiHeadDotProductAttention_0/{name}", weight, bias, heads["img"])
    out = [state[f"{head}.attention.out_proj.{leaf}"] for leaf in ("weight", "bias")]
    _head(found, f"{pool}/MultiHeadDotProductAttention_0/out", *out, heads["img"])
    return found


def _norm(found, name, state, theirs):
    found[f"{name}/scale"], found[f"{name}/bias"] = state[f"{theirs}.weight"], state[f"{theirs}.bias"]


def _dense(found, name, state, theirs):
    found[f"{name}/kernel"], found[f"{name}/bias"] = state[f"{theirs}.weight"].T, state[f"{theirs}.bias"]


def _head(found, name, weight, bias, heads):
    width, size = len(weight), len(weight) // heads
    if name.endswith("out"):
        found[f"{name}/kernel"], found[f"{name}/bias"] = weight.T.reshape(heads, size, width), bias
    else:
        found[f"{name}/kernel"] = weight.T.reshape(width, heads, size)
        found[f"{name}/bias"] = bias.reshape(heads, size)


@pytest.mark.parametrize("layout", ["apart", "scanned", "params/"])
def test_siglip_npz(layout, tmp_path):
    peer = clip_peers.hf_siglip(seed=8)
    arrays = big_vision_arrays(peers.state(peer), dict(img=3, txt=2))
    if layout == "params/":
        arrays = {f"params/{name}": array for name, array in arrays.items()}
    if layout == "scanned":
        for name in [name for name in arrays if "/encoderblock_0/" in name]:
            layers = [arrays.pop(name.replace("encoderblock_0", f"encoderblock_{i}")) for i in (0, 1)]
            arrays[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    np.savez(tmp_path / "siglip.npz", **arrays)
    expected = clip_peers.run_hf(peer, IMAGES, IDS)
    assert_same("siglip_npz", ours("siglip_npz", tmp_path / "siglip.npz"), expected)


@pytest.mark.parametrize("options", [{}, dict(scan=True, remat="full")], ids=["unrolled", "scanned"])
def test_gradients_of_the_vit(options, tmp_path):
    """Of a fixed projection of the pooled output, with respect to all its weights."""
    peer = clip_peers.hf_clip(seed=9)
    peer.save_pretrained(tmp_path)
    config, weights = read_checkpoint("hf_clip", tmp_path)
    tower = {k: v for k, v in config["encoders"]["image"].items() if k != "kind"}
    params = unflatten_dict(weights, sep="/")["params"]["encoders"]["image"]
    pixels = clip_peers.pixels(IMAGES, clip_peers.CLIP_VIEW)
    direction = np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32)
    (peer.vision_model(pixels).pooler_output * torch.tensor(direction)).sum().backward()
    state = peers.state(peer)
    state |= {name: p.grad.numpy() for name, p in peer.named_parameters() if p.grad is not None}
    write_safetensors(tmp_path / "model.safetensors", state, {})
    expected = unflatten_dict(read_checkpoint("hf_clip", tmp_path)[1], sep="/")["params"]["encoders"]["image"]

    @jax.jit
    def gradient(params):
        def value(params):
            images = jnp.asarray(pixels.numpy().transpose(0, 2, 3, 1))
            return (ViT(**tower, **options).apply({"params": params}, images)["pooled"] * direction).sum()

        return jax.grad(value)(params)

    # Both ways leave unrolled layers as they are.
    found = unstack_layers(gradient(stack_layers(params, ViT.stacks) if options else params), ViT.stacks)
    expected, found = flatten_dict(expected), flatten_dict(found)
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        assert np.abs(found[path] - value).max() < 1e-4 * max(np.abs(value).max(), 1), path


@pytest.mark.parametrize("new", [(5, 5), (2, 2), (3, 7), (8, 2)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_position_embedding_is_resized_as_by_pytorch(new, prefix):
    table = np.random.default_rng(0).normal(size=(prefix + 4 * 4, 6)).astype(np.float32)
    grid = torch.tensor(table[prefix:].reshape(1, 4, 4, 6).transpose(0, 3, 1, 2))
    expected = torch.nn.functional.interpolate(grid, new, mode="bicubic", antialias=True, align_corners=False)
    found = np.asarray(resize_position_embedding(jnp.asarray(table), (4, 4), new))
    np.testing.assert_array_equal(found[:prefix], table[:prefix])
    expected = expected.numpy()[0].transpose(1, 2, 0).reshape(-1, 6)
    np.testing.assert_allclose(found[prefix:], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 60), (61, 40), (24, 24), (10, 17), (200, 31)])
def test_preprocessing_is_transformers_own(shape):
    """But for a margin of an odd number of pixels, where torchvision, as OpenAI uses it, rounds to the
    nearest even and transformers down: a pixel's shift."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    raw = dict(do_rescale=False, do_normalize=False, return_tensors="np")
    square = dict(height=24, width=24)
    squash = SiglipImageProcessorPil(size=square)(list(images), **raw)["pixel_values"]
    np.testing.assert_array_equal(preprocessing.resize(images, 24, "stretch"), squash.transpose(0, 2, 3, 1))
    crop = CLIPImageProcessorPil(size=dict(shortest_edge=24), crop_size=square)(list(images), **raw)
    found, expected = preprocessing.resize(images, 24, "crop"), crop["pixel_values"].transpose(0, 2, 3, 1)
    margin = (max(24 * max(shape) // min(shape), 24) - 24) % 4
    if margin == 3:
        axis = 1 if shape[0] > shape[1] else 2
        found, expected = (np.moveaxis(x, axis, 0) for x in (found, expected))
        found, expected = found[:-1], expected[1:]
    np.testing.assert_array_equal(found, expected)

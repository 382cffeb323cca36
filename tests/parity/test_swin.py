"""Swin, Swin V2 and CoSwin against transformers' modules, all parameters random."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from big_ssl.inference import Model
from big_ssl.models.map_embeddings import ConvEmbedding
from big_ssl.models.swin import Swin
from big_ssl.weights import architecture
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.tensor_files import write_safetensors
from tests.parity.other_sizes import CLOSE

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import dino_peers, swin_peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import parity_figure  # noqa: E402

pytestmark = pytest.mark.parity


def converted(kind, peer, folder):
    """(our module, its variables) of a peer that transformers has saved."""
    peer.save_pretrained(folder)
    config, ours = read_checkpoint(kind, folder)
    module = architecture.modules(config).image
    return module, architecture.encoder_variables(unflatten_dict(ours, sep="/"), "image")


def check(kind, module, variables, images, expected, **options):
    maps, tokens = expected
    result = jax.jit(module.apply)(variables, images, **options)
    assert len(result["pyramid"]) == len(maps)
    for ours, theirs in zip(result["pyramid"], maps, strict=True):
        scale = theirs.std()
        np.testing.assert_allclose(ours / scale, theirs / scale, **CLOSE)
    np.testing.assert_allclose(result["patches"], tokens, **CLOSE)
    np.testing.assert_allclose(result["pooled"], tokens.mean(1), **CLOSE)
    if kind:
        column = "architecture" if images.shape[1:3] in ((32, 32), (64, 64)) else "other sizes"
        parity_figure(kind, column, result["patches"], tokens)


# For windows of 4 on maps of strides 4 and 8: the second clamps, and with another side; whole windows; both
# maps are padded, and are odd; no whole patches. transformers takes no map that is smaller than its table.
@pytest.mark.parametrize("size", [(32, 32), (32, 80), (64, 96), (44, 60), (51, 70)])
def test_swin(size, tmp_path):
    """A fresh peer for each size: it keeps the windows of the first one that it has seen."""
    peer, images = swin_peers.swin(), dino_peers.images(size)
    module, variables = converted("hf_swin", peer, tmp_path)
    check("hf_swin", module, variables, images, swin_peers.run(peer, images))


def test_masked_swin(tmp_path):
    """Its mask is of the first map, ours of the last."""
    peer, images = swin_peers.swin(mask_token=True), dino_peers.images((44, 60))
    module, variables = converted("hf_swin", peer, tmp_path)
    mask = np.random.default_rng(3).random((2, 6, 8)) < 0.5
    fine = mask.repeat(2, 1).repeat(2, 2)[:, :11, :15].reshape(2, -1)
    expected = swin_peers.run(peer, images, fine)
    assert np.abs(expected[1] - swin_peers.run(peer, images)[1]).max() > 0.1
    check("hf_swin", module, variables, images, expected, mask=mask.reshape(2, -1))


def test_swin_of_three_stages_at_another_resolution(tmp_path):
    """Weights for 48 pixels, windows of 3, in a model for 96 pixels and windows of 6: tables as PyTorch's
    interpolation resizes them."""
    shape = dict(depths=(2, 2, 2), num_heads=(1, 2, 4), window_size=3, image_size=48)
    module, variables = converted("hf_swin", swin_peers.swin(**shape), tmp_path)
    large = swin_peers.swin(**shape | dict(window_size=6, image_size=96))
    state = swin_peers.swin(**shape).state_dict()
    for name, table in state.items():
        if name.endswith("relative_position_bias_table"):
            grid = table.T.reshape(1, -1, 5, 5)
            grid = torch.nn.functional.interpolate(grid, (11, 11), mode="bicubic", align_corners=False)
            state[name] = grid.reshape(-1, 121).T
    large.load_state_dict(state)
    module = module.clone(window=6)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))["params"]
    flat, resized = flatten_dict(variables["params"], sep="/"), 0
    for name, leaf in flatten_dict(shapes, sep="/").items():
        if flat[name].shape != leaf.shape:
            flat[name] = module.resize_params(name, flat[name], leaf.shape)
            resized += 1
    assert resized == 6
    images = dino_peers.images((96, 96))
    expected = swin_peers.run(large, images)
    check("hf_swin", module, dict(params=unflatten_dict(flat, sep="/")), images, expected)


# For windows of 4: whole windows, padded ones, odd maps, no whole patches.
@pytest.mark.parametrize("size", [(64, 64), (44, 60), (70, 51)])
@pytest.mark.parametrize("pretrained", [(0, 0), (6, 3)])
def test_swin_v2(size, pretrained, tmp_path):
    peer = swin_peers.swinv2(image_size=64, pretrained_window_sizes=pretrained)
    module, variables = converted("hf_swinv2", peer, tmp_path)
    images = dino_peers.images(size)
    check("hf_swinv2", module, variables, images, swin_peers.run(peer, images))


def test_swin_v2_with_clamped_windows(tmp_path):
    """Of 8 on maps of 8 and 4 positions."""
    peer = swin_peers.swinv2(window_size=8)
    module, variables = converted("hf_swinv2", peer, tmp_path)
    assert list(module.window) == [8, 4]
    images = dino_peers.images((32, 32))
    check("hf_swinv2", module, variables, images, swin_peers.run(peer, images))


def test_swin_v2_clamps_as_one_that_is_built_for_the_images(tmp_path):
    """Weights for maps of 16 and 8, on maps of 8 and 4: a clamped window normalises its positions by its own
    side, 4. (A Swinv2Model built for the larger images pads smaller maps instead.)"""
    large = swin_peers.swinv2(image_size=64, window_size=8)
    module, variables = converted("hf_swinv2", large, tmp_path)
    assert module.window == 8
    peer = swin_peers.swinv2(window_size=8)
    peer.load_state_dict(large.state_dict())
    images = dino_peers.images((32, 32))
    check("hf_swinv2", module, variables, images, swin_peers.run(peer, images))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 4, 2), (3, 2, 1)])
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_conv_embedding(kernel, stride, padding, size):
    """CvtModel's, at the strides and paddings of its first and its other stages."""
    peer = dino_peers.randomise(
        transformers.models.cvt.modeling_cvt.CvtConvEmbeddings(kernel, 3, 6, stride, padding), 0
    )
    state = {name: value.numpy() for name, value in peer.state_dict().items()}
    params = dict(
        kernel=state["projection.weight"].transpose(2, 3, 1, 0),
        bias=state["projection.bias"],
        patch_norm=dict(scale=state["normalization.weight"], bias=state["normalization.bias"]),
    )
    module = ConvEmbedding(kernel, stride, padding, 1e-5, jnp.float32, 6)
    images = dino_peers.images(size)
    with torch.no_grad():
        expected = peer(dino_peers.pixels(images)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(module.apply(dict(params=params), images), expected, **CLOSE)


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (44, 61)])
def test_coswin(size, clamp):
    """As put together in swin_peers of transformers' parts, with clamped windows and as detection does."""
    peer = swin_peers.coswin(always=not clamp, **swin_peers.SHAPE)
    module = Swin(width=16, depths=(2, 2), heads=(2, 4), window=4, clamp_window=clamp, embedding="conv")
    params = swin_peers.coswin_params(peer)
    images = dino_peers.images(size)
    check("", module, dict(params=params), images, swin_peers.run(peer, images))


def read(kind, path):
    """(our image encoder, its variables) of a file."""
    config, ours = read_checkpoint(kind, path)
    module = architecture.modules(config).image
    return module, architecture.encoder_variables(unflatten_dict(ours, sep="/"), "image")


def with_buffers(state):
    """With those that Microsoft's code stores."""
    extra = {}
    for name in state:
        if name.endswith("attn.proj.weight"):
            block = name.removesuffix("proj.weight")
            extra[f"{block}relative_position_index"] = np.zeros((16, 16), np.int64)
    return state | extra


def test_official_swin(tmp_path):
    peer, images = swin_peers.swin(mask_token=True), dino_peers.images((44, 60))
    state = {name: torch.tensor(x) for name, x in with_buffers(swin_peers.official(peer)).items()}
    state |= {"head.weight": torch.zeros(3, 32), "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
    torch.save(dict(model=state, epoch=3), tmp_path / "swin.pth")
    assert guess(tmp_path / "swin.pth") == "swin"
    assert read_checkpoint("swin", tmp_path / "swin.pth")[0]["image_size"] == 32
    check("swin", *read("swin", tmp_path / "swin.pth"), images, swin_peers.run(peer, images))


@pytest.mark.parametrize("pretrained", [(0, 0), (6, 3)])
def test_official_swin_v2(pretrained, tmp_path):
    """Its windows are in a buffer: of 8 and, clamped, of 4."""
    peer = swin_peers.swinv2(window_size=8, pretrained_window_sizes=pretrained)
    state = with_buffers(swin_peers.official(peer))
    for i, layer in enumerate(peer.encoder.layers):
        for j, block in enumerate(layer.blocks):
            name = f"layers.{i}.blocks.{j}.attn.relative_coords_table"
            state[name] = block.attention.self.relative_coords_table.numpy()
    torch.save(dict(model={name: torch.tensor(x) for name, x in state.items()}), tmp_path / "swinv2.pth")
    assert guess(tmp_path / "swinv2.pth") == "swin"
    module, variables = read("swin", tmp_path / "swinv2.pth")
    assert list(module.window) == [8, 4]
    images = dino_peers.images((32, 32))
    check("swin", module, variables, images, swin_peers.run(peer, images))


TIMM = dict(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, img_size=64, num_classes=3)


@pytest.mark.parametrize(
    ("model", "architecture_name", "options"),
    [
        ("SwinTransformer", "swin_tiny_patch4_window4_64", {}),
        ("SwinTransformerV2", "swinv2_tiny_window4_64", {}),
        ("SwinTransformerV2", "swinv2_tiny_window2to4_32to64", dict(pretrained_window_sizes=(2, 2))),
    ],
)
def test_timm(model, architecture_name, options, tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    peer = dino_peers.randomise(getattr(timm.models, model)(**TIMM, **options), 0)
    state = {name: value.numpy().copy() for name, value in peer.state_dict().items()}
    write_safetensors(tmp_path / "model.safetensors", state, {})
    settings = dict(input_size=[3, 64, 64], crop_pct=0.9, interpolation="bicubic", mean=[0.1, 0.2, 0.3])
    described = dict(architecture=architecture_name, num_classes=3, pretrained_cfg=settings)
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert guess(tmp_path) == "swin"
    config, _ = read_checkpoint("swin", tmp_path)
    assert (config["image_size"], config["resize"]) == (64, "crop 71")
    assert config["views"]["image"]["mean"] == (0.1, 0.2, 0.3)
    images = dino_peers.images((64, 64))
    with torch.no_grad():
        tokens = peer.forward_features(dino_peers.pixels(images)).flatten(1, 2).numpy()
    module, variables = read("swin", tmp_path)
    result = jax.jit(module.apply)(variables, images)
    np.testing.assert_allclose(result["patches"], tokens, **CLOSE)
    parity_figure("swin", "architecture", result["patches"], tokens, "timm")


@pytest.mark.parametrize("older", [False, True])
def test_unicl(older, tmp_path):
    """Both layouts of its keys; its embeddings of images and texts, and the temperature."""
    image, text, rng = swin_peers.swin(), swin_peers.clip_text(), np.random.default_rng(4)
    state = {f"image_encoder.{name}": x for name, x in with_buffers(swin_peers.official(image)).items()}
    state |= {f"text_encoder.{name}": x for name, x in swin_peers.unicl_text(text).items()}
    state["image_encoder.head.weight"] = np.zeros((3, 32), np.float32)
    state["image_projection"] = rng.normal(size=(32, 24)).astype(np.float32)
    state["text_projection"] = rng.normal(size=(64, 24)).astype(np.float32)
    state["logit_scale"] = np.float32(5.5)
    if older:
        state["vision_projection"] = state.pop("image_projection")
        prefixes = (("image_encoder.", "visual."), ("text_encoder.", "text."))
        for new, old in prefixes:
            state = {name.replace(new, old): x for name, x in state.items()}
    torch.save(dict(model={name: torch.tensor(x) for name, x in state.items()}), tmp_path / "unicl.pth")
    assert guess(tmp_path / "unicl.pth") == "unicl"
    config, ours = read_checkpoint("unicl", tmp_path / "unicl.pth")
    assert (config["image_size"], config["resize"]) == (32, "crop 36")
    assert config["views"]["image"]["mean"] == (0.485, 0.456, 0.406)
    assert config["tokenizer"]["kind"] == "clip_bpe"
    assert config["encoders"]["text"]["epsilon"] == 1e-12
    model = Model(config, unflatten_dict(ours, sep="/"))
    images = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    ids = np.array([[48, 3, 4, 49, 49, 49], [48, 5, 49, 49, 49, 49]])
    view = config["views"]["image"]
    pixels = ((images / 255 - view["mean"]) / view["std"]).astype(np.float32)
    pooled = swin_peers.run(image, pixels)[1].mean(1)
    with torch.no_grad():
        tokens = text(torch.tensor(ids)).last_hidden_state.numpy()
    u = pooled @ state.get("image_projection", state.get("vision_projection"))
    v = tokens[[0, 1], [3, 2]] @ state["text_projection"]
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, v))
    np.testing.assert_allclose(model.encode_image(images, resize=False), u, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(ids), v, rtol=0, atol=1e-5)
    parity_figure("unicl", "architecture", model.encode_image(images, resize=False), u)
    parity_figure("unicl", "architecture", model.encode_text(ids), v)
    assert ours["params/heads/contrastive/logit_scale"] == 5.5


def test_transformers_takes_an_export(tmp_path):
    """A SwinModel of what we write has our features."""
    peer, images = swin_peers.swin(), dino_peers.images((44, 60))
    peer.save_pretrained(tmp_path / "in")
    write_checkpoint("hf_swin", tmp_path / "out", *read_checkpoint("hf_swin", tmp_path / "in"))
    again, report = transformers.SwinModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected, result = (swin_peers.run(model.eval(), images)[1] for model in (peer, again))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
    parity_figure("hf_swin", "export", result, expected)


@pytest.mark.parametrize(("size", "fits"), [(32, True), (28, True), (24, False)])
def test_an_export_at_the_size_of_its_smallest_maps(size, fits, tmp_path):
    """Windows of 4 on last maps of 4 x 4 positions, 28 pixels being padded to that, and of 3 x 3."""
    swin_peers.swin().save_pretrained(tmp_path / "in")
    config, weights = read_checkpoint("hf_swin", tmp_path / "in")
    images = dino_peers.images((size, size))
    if not fits:
        with pytest.raises(RuntimeError, match="must match the size"):
            swin_peers.run(swin_peers.swin(image_size=size), images)
        with pytest.raises(
            WeightsError, match=r"window is 4, but the last map of 24 pixels is 3 x 3; .* 24$"
        ):
            write_checkpoint("hf_swin", tmp_path / "out", config | dict(image_size=size), weights)
        return
    write_checkpoint("hf_swin", tmp_path / "out", config | dict(image_size=size), weights)
    again = transformers.SwinModel.from_pretrained(tmp_path / "out").eval()
    module, variables = converted("hf_swin", again, tmp_path / "again")
    check("hf_swin", module, variables, images, swin_peers.run(again, images))

"""The ViTs of iBOT and DINOv2 against PyTorch on the same random weights, through files as published."""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import big_ssl
from big_ssl.convert import convert
from big_ssl.data import preprocessing
from big_ssl.evals.linear_head import head_input
from big_ssl.models import vit
from big_ssl.models.position_embedding import resize_position_embedding
from big_ssl.weights import architecture
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.linear_heads import read_head, write_head
from big_ssl.weights.tensor_files import write_safetensors

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="it comes with transformers")

from tests.parity import dino_peers, dino_reference, peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import REFERENCE, parity_figure  # noqa: E402

pytestmark = pytest.mark.parity

# Two float32 networks that add in another order; outputs are of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)
# At, above and below the size of the position table, and not square.
SIZES = [(32, 32), (56, 56), (16, 16), (24, 48)]
HEADS = dict(num_heads=3)


def tower(kind, path, options=None):
    """(the module, its variables) of a checkpoint."""
    config, weights = read_checkpoint(kind, path, options)
    variables = unflatten_dict(weights, sep="/")
    return architecture.modules(config).image, architecture.encoder_variables(variables, "image")


@functools.cache
def compiled(module):
    return jax.jit(functools.partial(module.apply, intermediate=(0, 1)))


def assert_same(kind, ours, images, masks, expected, blocks=None, library=REFERENCE):
    """expected: [B, T, D], as dino_peers.run gives; blocks: the same of all of them, where they are known."""
    module, variables = ours
    found = compiled(module)(variables, images, mask=masks)
    first = 1 + module.registers
    np.testing.assert_allclose(found["pooled"], expected[:, 0], **CLOSE)
    np.testing.assert_allclose(found["patches"], expected[:, first:], **CLOSE)
    column = "architecture" if images.shape[1:3] == SIZES[0] else "other sizes"
    parity_figure(kind, column, found["patches"], expected[:, first:], library)
    if blocks is not None:
        np.testing.assert_allclose(found["layers"]["cls"], blocks[:, :, 0], **CLOSE)
        np.testing.assert_allclose(found["layers"]["patches"], blocks[:, :, first:], **CLOSE)


@pytest.mark.parametrize("swiglu", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 3])
def test_hf_dinov2(registers, swiglu, tmp_path):
    peer = dino_peers.hf_dinov2(registers, swiglu, seed=3)
    peer.save_pretrained(tmp_path)
    ours = tower("hf_dinov2", tmp_path)
    assert ours[0].mlp_dim == (32 if swiglu else 48)
    for size in SIZES:
        images = dino_peers.images(size)
        for masks in (None, dino_peers.masks(size)):
            expected = dino_peers.run(peer, images, masks)
            assert_same("hf_dinov2", ours, images, masks, expected, library="transformers")


@pytest.mark.parametrize("mask_token", [False, True])
def test_hf_vit(mask_token, tmp_path):
    peer = dino_peers.hf_vit(seed=3, mask_token=mask_token, pooler=True)
    peer.save_pretrained(tmp_path)
    ours = tower("hf_vit", tmp_path)
    for size in SIZES:
        images, masks = dino_peers.images(size), dino_peers.masks(size) if mask_token else None
        expected = dino_peers.run(peer, images, masks)
        assert_same("hf_vit", ours, images, masks, expected, library="transformers")


@pytest.mark.parametrize("options", [{}, dict(swiglu=True), dict(registers=3, antialias=True, swiglu=True)])
def test_dinov2(options, tmp_path):
    peer = dino_peers.reference(seed=4, **options)
    torch.save(peer.state_dict(), tmp_path / "dinov2.pth")
    ours = tower("dinov2", tmp_path / "dinov2.pth", HEADS)
    for size in SIZES:
        images, masks = dino_peers.images(size), dino_peers.masks(size)
        blocks = dino_peers.run_reference(peer, images, masks)
        assert_same("dinov2", ours, images, masks, blocks[-1], blocks)


def head_of_ones():
    """The arrays of a projection head of a training."""
    shapes = {"mlp.0": (7, 24), "mlp.2": (7, 7), "mlp.4": (3, 7)}
    arrays = {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    arrays |= {f"{name}.bias": torch.ones(shape[0]) for name, shape in shapes.items()}
    return arrays | {"last_layer.weight_g": torch.ones(5, 1), "last_layer.weight_v": torch.ones(5, 3)}


def test_dinov2_of_a_training(tmp_path):
    """Blocks in chunks, as its FSDP wraps them, and the heads beside; positions as an option says."""
    peer = dino_peers.reference(seed=5, depth=4)
    state = {}
    for name, value in peer.state_dict().items():
        _, block, rest = name.split(".", 2) if name.startswith("blocks") else (None, "0", name)
        chunked = f"blocks.{int(block) // 2}.{block}.{rest}" if name.startswith("blocks") else name
        state[f"backbone.{chunked}"] = value
    for head in ("dino_head", "ibot_head"):
        state |= {f"{head}.{name}": value for name, value in head_of_ones().items()}
    torch.save(dict(teacher=state), tmp_path / "teacher_checkpoint.pth")
    assert guess(tmp_path / "teacher_checkpoint.pth") == "dinov2"
    module, variables = tower("dinov2", tmp_path / "teacher_checkpoint.pth", HEADS)
    assert module.depth == 4
    images = dino_peers.images((16, 16))
    expected = dino_peers.run_reference(peer, images)[-1]
    assert_same("dinov2", (module, variables), images, None, expected)
    options = HEADS | dict(position_resize="bicubic_antialias")
    peer.antialias = True
    ours = tower("dinov2", tmp_path / "teacher_checkpoint.pth", options)
    assert_same("dinov2", ours, images, None, dino_peers.run_reference(peer, images)[-1])
    with pytest.raises(WeightsError, match="position_resize is 'cubic'; there are bicubic_antialias, dinov2"):
        tower("dinov2", tmp_path / "teacher_checkpoint.pth", dict(position_resize="cubic"))


@pytest.fixture
def process_group(tmp_path):
    """PyTorch's group of one process."""
    where = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # FSDP's of one process, and of state dicts that will go
def test_dinov2_of_its_trainer(process_group, tmp_path):
    """model_*.rank_0.pth under FSDP's LOCAL_STATE_DICT: whole for one process, otherwise without shapes."""
    from torch.distributed import fsdp
    from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards

    networks = torch.nn.ModuleDict()
    for seed, name in enumerate(("student", "teacher")):
        networks[name] = torch.nn.ModuleDict(dict(backbone=dino_peers.reference(seed=seed)))
    images = dino_peers.images((24, 48))
    expected = {name: dino_peers.run_reference(networks[name]["backbone"], images)[-1] for name in networks}
    wrapped = fsdp.FullyShardedDataParallel(networks, use_orig_params=True, device_id=torch.device("cpu"))
    with fsdp.FullyShardedDataParallel.state_dict_type(wrapped, fsdp.StateDictType.LOCAL_STATE_DICT):
        state = wrapped.state_dict()
    path = tmp_path / "model_0000001.rank_0.pth"
    torch.save(dict(model=state, optimizer={}, iteration=1), path)
    assert guess(path) == "dinov2"
    for network, tokens in expected.items():
        assert_same("dinov2", tower("dinov2", path, HEADS | dict(network=network)), images, None, tokens)
    slices = [Shard.from_tensor_and_offsets(torch.ones(6), [0], 0)]
    torch.save(dict(model=state | {"_flat_param": init_from_local_shards(slices, 6)}), path)
    with pytest.raises(
        WeightsError, match="such as a process's shards, which lack the shapes of the weights"
    ):
        tower("dinov2", path, HEADS)


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_linear_head(blocks, tmp_path):
    """As PyTorch saves one, on what the reference's layers give; and PyTorch takes ours for one."""
    peer = dino_peers.reference(seed=7, depth=4, registers=3, antialias=True)
    linear = torch.nn.Linear((blocks + 1) * 24, 10)
    torch.save(peer.state_dict(), tmp_path / "dinov2.pth")
    torch.save(linear.state_dict(), tmp_path / "head.pth")
    module, variables = tower("dinov2", tmp_path / "dinov2.pth", HEADS)
    weight, bias = read_head(tmp_path / "head.pth")
    images = dino_peers.images()
    found = head_input(module, variables, images, weight.shape[1]) @ weight.T + bias
    tokens = torch.from_numpy(dino_peers.run_reference(peer, images))
    read = torch.cat([*tokens[4 - blocks :, :, 0], tokens[-1, :, 4:].mean(1)], 1)
    with torch.no_grad():
        np.testing.assert_allclose(found, linear(read), **CLOSE)
        parity_figure("dinov2", "heads", found, linear(read), REFERENCE)
    write_head(tmp_path / "head.safetensors", weight + 1, bias)
    linear.load_state_dict(safetensors_torch.load_file(tmp_path / "head.safetensors"))
    np.testing.assert_array_equal(linear.weight.detach(), weight + 1)


@pytest.mark.parametrize("options", [dict(swiglu=True), dict(registers=3, antialias=True)])
def test_timm_dinov2(options, tmp_path):
    """timm's positions are always antialiased; with registers the class token has its own added."""
    peer = dino_peers.reference(seed=6, **options)
    peer.antialias = True
    state = peers.state(peer)
    del state["mask_token"]
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] += state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    state = {name.replace("w12", "fc1").replace("w3", "fc2"): value for name, value in state.items()}
    write_safetensors(tmp_path / "model.safetensors", state, {})
    ours = tower("timm_dinov2", tmp_path, HEADS)
    for size in SIZES:
        images = dino_peers.images(size)
        assert_same("timm_dinov2", ours, images, None, dino_peers.run_reference(peer, images)[-1])


def ibot_checkpoint(student, teacher):
    """What main_ibot.py saves, but for sizes."""
    head = head_of_ones()
    head |= {name.replace("last_layer", "last_layer2"): x for name, x in head.items() if "last_" in name}
    wrapped = [
        {f"{prefix}backbone.{name}": value for name, value in network.state_dict().items()}
        | {f"{prefix}head.{name}": value for name, value in head.items()}
        for prefix, network in (("module.", student), ("", teacher))
    ]
    optimizer = torch.optim.AdamW(student.parameters())
    sum(value.sum() for value in student.parameters()).backward()
    optimizer.step()
    return dict(
        student=wrapped[0],
        teacher=wrapped[1],
        optimizer=optimizer.state_dict(),
        epoch=3,
        args=argparse.Namespace(arch="vit_small", lr=1e-3, local_crops_scale=(0.05, 0.4)),
        fp16_scaler=dict(scale=65536.0, growth_factor=2.0),
        ibot_loss=dict(center=torch.zeros(1, 5), center2=torch.zeros(1, 1, 5)),
    )


def test_ibot(tmp_path):
    student = dino_peers.reference(seed=7, layer_scale=False, mask_token="masked_embed")
    teacher = dino_peers.reference(seed=8, layer_scale=False, mask_token=None)
    checkpoint = ibot_checkpoint(student, teacher)  # moves the student
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / "checkpoint_teacher.pth")
    for file, options, peer in (
        ("checkpoint.pth", {}, teacher),
        ("checkpoint.pth", dict(network="teacher"), teacher),
        ("checkpoint.pth", dict(network="student"), student),
        ("checkpoint_teacher.pth", {}, teacher),
    ):
        ours = tower("ibot", tmp_path / file, HEADS | options)
        assert ours[0].mask_token == (peer is student)
        for size in SIZES[::2]:
            images, masks = dino_peers.images(size), dino_peers.masks(size) if peer is student else None
            expected = dino_peers.run_reference(peer, images, masks)[-1]
            assert_same("ibot", ours, images, masks, expected)
    with pytest.raises(WeightsError, match="network is 'student'; the file holds a backbone alone"):
        tower("ibot", tmp_path / "checkpoint_teacher.pth", dict(network="student"))
    with pytest.raises(WeightsError, match="network is 'both'; there are teacher, student"):
        tower("ibot", tmp_path / "checkpoint.pth", dict(network="both"))


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("hf_dinov2", dino_peers.hf_dinov2),
        (
            "hf_dinov2",
            functools.partial(dino_peers.hf_dinov2, registers=3, swiglu=True, layerscale_value=0.1),
        ),
        ("hf_vit", dino_peers.hf_vit),
        ("hf_vit", functools.partial(dino_peers.hf_vit, mask_token=False)),
    ],
    ids=["dinov2", "registers", "vit", "vit without mask token"],
)
def test_there_and_back_is_bit_identical(kind, make, tmp_path):
    peer = make(seed=9)
    peer.save_pretrained(tmp_path / "theirs")
    convert(kind, tmp_path / "theirs", "big_ssl", tmp_path / "ours", {})
    convert("big_ssl", tmp_path / "ours", kind, tmp_path / "back", {})
    mask_token = peer.embeddings.mask_token is not None
    options = dict(add_pooling_layer=False, use_mask_token=mask_token) if kind == "hf_vit" else {}
    back, info = type(peer).from_pretrained(
        tmp_path / "back", attn_implementation="eager", output_loading_info=True, **options
    )
    assert not any(info.values())
    expected, found = peers.state(peer), peers.state(back)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        parity_figure(kind, "export", found[name], value)
    for size in SIZES[1:3]:
        images = dino_peers.images(size)
        np.testing.assert_array_equal(dino_peers.run(back.eval(), images), dino_peers.run(peer, images))
    theirs = peer.config.to_dict()
    for key, value in back.config.to_dict().items():
        assert value == theirs[key] or key in ("_name_or_path", "encoder_stride"), key
    features = big_ssl.load(tmp_path / "ours").patch_features(
        np.zeros((1, 40, 24, 3), np.uint8), resize=False
    )
    assert features.shape == (1, 15, 24)


@pytest.mark.parametrize("new", [(5, 5), (2, 2), (3, 7), (8, 2), (4, 6)])
def test_positions_are_resized_as_by_pytorch(new):
    """(4, 6): of an axis that keeps its length the coordinates move all the same."""
    table = np.random.default_rng(0).normal(size=(1 + 4 * 4, 6)).astype(np.float32)
    squares = torch.tensor(table[1:].reshape(1, 4, 4, 6).transpose(0, 3, 1, 2))
    by_size = torch.nn.functional.interpolate(squares, new, mode="bicubic")
    by_factor = dino_reference.resized_positions(torch.tensor(table)[None], new)[0, 1:]
    by_size = by_size[0].flatten(1).T
    for how, expected in (("bicubic", by_size), ("dinov2", by_factor)):
        found = resize_position_embedding(jnp.asarray(table), (4, 4), new, how)
        np.testing.assert_array_equal(found[0], table[0])
        np.testing.assert_allclose(found[1:], expected, rtol=1e-5, atol=1e-5)
    assert (by_factor - by_size).abs().max() > 1e-2


def test_attention_is_transformers_own(tmp_path):
    peer = dino_peers.hf_dinov2(registers=3, seed=10)
    peer.save_pretrained(tmp_path)
    images = dino_peers.images((24, 48))
    with torch.no_grad():
        expected = peer(dino_peers.pixels(images), output_attentions=True).attentions[-1].numpy()
    module, variables = tower("hf_dinov2", tmp_path)
    found = vit.attention_maps(module, variables, images)
    assert found.shape == (2, 3, 22, 22)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_preprocessing_is_transformers_own():
    """Of DINOv2: a shorter side of 32, of which 28 are kept; of ViT: squashed, bilinear. Margins are
    even here: tests/parity/test_clip.py tells of odd ones."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    raw = dict(do_rescale=False, do_normalize=False, return_tensors="np")
    square = dict(height=28, width=28)
    for shape in ((40, 60), (28, 28), (64, 44)):
        images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
        crop = BitImageProcessorPil(size=dict(shortest_edge=32), crop_size=square)(list(images), **raw)
        found = preprocessing.resize(images, 28, "crop 32")
        np.testing.assert_array_equal(found, crop["pixel_values"].transpose(0, 2, 3, 1))
        squash = ViTImageProcessorPil(size=square)(list(images), **raw)["pixel_values"]
        found = preprocessing.resize(images, 28, "stretch bilinear")
        np.testing.assert_array_equal(found, squash.transpose(0, 2, 3, 1))

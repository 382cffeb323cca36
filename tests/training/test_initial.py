"""config.init_from: weights into a state, and what does not fit named."""

import copy
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from big_ssl.models.position_embedding import RESIZES, resize_position_embedding
from big_ssl.training import initial, requirements
from big_ssl.training.state import TrainState
from big_ssl.weights import architecture
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from tests.parity import goldens

TABLE = "params/encoders/image/position_embedding"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(folder, ModelConfig, {path: array}) of a small CLIP."""
    where = tmp_path_factory.mktemp("weights")
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", where / "in"))
    write_checkpoint("big_ssl", where / "out", config, ours)
    return where / "out", config, ours


def run_config(config, **init_from):
    """What initial.read reads of a run's config, with the encoders of a ModelConfig."""
    keys = dict(encoders=config["encoders"], tokenizer=config["tokenizer"], dtype="float32", remat="none")
    return keys | dict(init_from=init_from)


def read(weights, exclude=(), remap=(), **image):
    """What initial.read gives a model like the weights', but for its image tower's options."""
    folder, config, _ = weights
    config = copy.deepcopy(architecture.with_defaults(config))
    config["encoders"]["image"].update(image)
    shapes = architecture.shapes(config)
    tree = unflatten_dict({k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}, sep="/")
    mutable = dict(encoders={"image": {}, "text": {}}, objectives={})
    state = TrainState(step=0, params=tree["params"], opt_state=(), mutable=mutable, ema=None, counters={})
    return initial.read(run_config(config, path=str(folder), exclude=exclude, remap=remap), state)


def test_every_array_comes_through(weights):
    found = flatten_dict(read(weights)["params"], sep="/")
    assert {f"params/{name}" for name in found} == set(weights[2])
    for name, array in found.items():
        np.testing.assert_array_equal(array, weights[2][f"params/{name}"])


def test_without_a_path_there_is_nothing(weights):
    assert initial.read(dict(init_from=dict(path="", exclude=(), remap=())), None) is None
    state = object()
    assert initial.replace(state, None) is state


@pytest.mark.parametrize("how", RESIZES)
def test_the_position_table_is_resized_in_the_encoders_way(how, weights):
    table = weights[2][TABLE]
    side = round((len(table) - 1) ** 0.5)
    patch = weights[1]["encoders"]["image"]["patch"]
    params = read(weights, image_size=2 * side * patch, position_resize=how)["params"]
    found = params["encoders"]["image"]["position_embedding"]
    expected = resize_position_embedding(table, (side, side), (2 * side, 2 * side), how)
    np.testing.assert_array_equal(found, expected)
    assert len(found) == 1 + 4 * side**2


def test_layers_go_into_a_stack(weights):
    found = read(weights, scan=True)["params"]["encoders"]["image"]["layer_stack"]["mlp_in"]["kernel"]
    np.testing.assert_array_equal(found[1], weights[2]["params/encoders/image/layer1/mlp_in/kernel"])


def test_what_is_skipped_starts_from_scratch(weights):
    found = read(weights, exclude=("encoders/text/", "heads/"))
    assert all(leaf is None for leaf in flatten_dict(found["params"]["encoders"]["text"]).values())
    assert found["params"]["heads"]["contrastive"]["logit_scale"] is None
    assert all(leaf is not None for leaf in flatten_dict(found["params"]["encoders"]["image"]).values())


def test_arrays_fill_another_place_too(weights):
    """The second layer from the first one's, whose own place is filled as well."""
    found = read(weights, remap=(("image/layer0/", "image/layer1/"),))["params"]["encoders"]["image"]
    expected = weights[2]["params/encoders/image/layer0/mlp_in/kernel"]
    for layer in ("layer0", "layer1"):
        np.testing.assert_array_equal(found[layer]["mlp_in"]["kernel"], expected)


def test_a_tower_can_come_from_another_folder(weights, tmp_path):
    """The images' from there, all else from the first; a pattern that finds nothing there is named."""
    _, config, ours = weights
    others = {name: array + 1 for name, array in ours.items()}
    write_checkpoint("big_ssl", tmp_path, config, others)
    rule = ("encoders/image/", "encoders/image/", str(tmp_path))
    found = flatten_dict(read(weights, remap=(rule,))["params"], sep="/")
    for name, array in found.items():
        origin = others if name.startswith("encoders/image/") else ours
        np.testing.assert_array_equal(array, origin[f"params/{name}"])
    rule = ("encoders/audio/", "encoders/image/", str(tmp_path))
    message = f"{tmp_path} have nothing for remap's 'encoders/audio"
    with pytest.raises(requirements.RequirementsError, match=message):
        read(weights, remap=(rule,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depth=3), "the weights have no params/encoders/image/layer2/"),
        (dict(depth=1), "params/encoders/image/layer1/.* of the weights has no place in this model"),
        (dict(mlp_dim=17), r"params/encoders/image/layer0/mlp_in/bias is \[\d+\] in the weights and \[17\]"),
    ],
)
def test_what_does_not_fit_is_named(weights, options, message):
    with pytest.raises(requirements.RequirementsError, match=f"^init_from: {message}"):
        read(weights, **options)


def test_a_folder_without_weights_is_named(tmp_path):
    config = dict(encoders={}, tokenizer=dict(length=0, size=0))
    config = run_config(config, path=str(tmp_path), exclude=(), remap=())
    state = TrainState(0, {}, (), dict(encoders={}, objectives={}), None, {})
    with pytest.raises(requirements.RequirementsError, match=f"^init_from: {tmp_path} is a folder"):
        initial.read(config, state)


def test_positions_of_longer_texts_are_left_out(tmp_path):
    """As of the published ALIGN, which has BERT's 512, and whose texts are 64 tokens long."""
    config, ours = read_checkpoint("hf_align", goldens.write_checkpoint("hf_align", tmp_path / "in"))
    write_checkpoint("big_ssl", tmp_path, config, ours)
    table = ours["params/encoders/text/position/embedding"]
    shapes = architecture.shapes(config) | {"params/encoders/text/position/embedding": (5, table.shape[1])}
    tree = unflatten_dict({k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}, sep="/")
    mutable = dict(encoders=tree["encoders"] | dict(text={}), objectives={})
    state = TrainState(step=0, params=tree["params"], opt_state=(), mutable=mutable, ema=None, counters={})
    run = run_config(config, path=str(tmp_path), exclude=(), remap=())
    found = initial.read(run, state)["params"]["encoders"]["text"]
    np.testing.assert_array_equal(found["position"]["embedding"], table[:5])


@pytest.mark.slow
def test_a_run_starts_where_another_ended(train, micro_config, set_up, tmp_path, monkeypatch):
    """Weights, statistics and average are those that the first run evaluates; the step is 0."""
    first = train(micro_config(), tmp_path / "first")
    config = micro_config(init_from__path=str(tmp_path / "first"))
    setup = set_up(config)
    state = initial.replace(setup.init(), initial.read(config, setup.abstract_state))
    expected = jax.device_get(first.state.ema)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), expected["params"])
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(state.mutable["encoders"]), expected["encoders"]
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.ema), expected)
    assert int(state.step) == 0
    placed = jax.tree.map(
        lambda x, a: x.sharding.is_equivalent_to(a.sharding, x.ndim), state, setup.abstract_state
    )
    assert all(jax.tree.leaves(placed))
    assert train(config, tmp_path / "second").finished
    # Started again, it does not ask for the weights that it began with.
    shutil.rmtree(tmp_path / "first")
    assert train(config, tmp_path / "second").finished
    with pytest.raises(requirements.RequirementsError, match=r"^init_from: "):
        train(config, tmp_path / "third")


def test_hosts_agree_on_a_runs_checkpoint(tmp_path, monkeypatch):
    """The first host's newest step is read, also by a host that sees a newer one."""
    for step in (4, 8):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").write_text("{}")
    remap = (("a", "b"), ("c", "d", str(tmp_path)))
    config = dict(init_from=dict(path=str(tmp_path / "weights"), exclude=(), remap=remap))
    assert initial.newest_steps(config) == {str(tmp_path): 8}
    read = []
    monkeypatch.setattr(initial.trained, "load", lambda folder, step: (read.append(step), {}))
    initial._read(str(tmp_path), {str(tmp_path): 4})
    assert read == [4]
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    config["init_from"]["path"] = str(tmp_path / "empty")
    with pytest.raises(requirements.RequirementsError, match=r"^init_from: .*empty has no checkpoint yet$"):
        initial.newest_steps(config)

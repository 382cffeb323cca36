"""The number of devices changes the arrays' sharding, and nothing else."""

import jax
import numpy as np
import pytest

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, loop, streams
from big_ssl.training.checkpoints import Checkpoints
from configs.align_l2 import get_config

STEPS = 8
# The order of sums over a batch depends on the devices; the loss is about 10, which float32 resolves to 1e-6,
# and Adam scales the smallest gradients to full steps.
TOLERANCE = 1e-4


def _losses(setup, config, state, start=0, stop=STEPS):
    iterator = batches.iterate(config, streams.open_streams(config, setup.tokenizer), start, setup.mesh)
    losses = []
    for _ in range(start, stop):
        state, metrics = setup.step(state, mesh_lib.global_batch(setup.mesh, next(iterator)))
        losses.append(float(metrics["loss"]))
    iterator.close()
    return np.array(losses), state


def _place(setup, state):
    """Copies the state to `setup`'s devices: initialising again would compile, and the step is the test."""
    return jax.tree.map(
        lambda leaf, abstract: jax.device_put(np.array(leaf), abstract.sharding), state, setup.abstract_state
    )


def _on(devices, set_up, config, state):
    setup = set_up(config, jax.devices()[:devices])
    return _losses(setup, config, _place(setup, state))


@pytest.fixture(scope="module")
def config(micro_config):
    return micro_config()


@pytest.fixture(scope="module")
def initial(config, set_up):
    return jax.device_get(set_up(config).init())


@pytest.fixture(scope="module")
def on_eight(config, set_up, initial):
    return _on(8, set_up, config, initial)


@pytest.mark.smoke
def test_the_number_of_devices_does_not_change_the_loss(config, set_up, initial, on_eight):
    losses, state = _on(1, set_up, config, initial)
    assert np.ptp(losses) > 0.5  # it trains at all
    np.testing.assert_allclose(losses, on_eight[0], rtol=TOLERANCE)
    assert int(state.step) == STEPS


@pytest.mark.slow
def test_sharded_parameters_do_not_change_the_loss(config, set_up, initial, on_eight):
    sharded = config | dict(mesh=dict(data=-1, fsdp=2, tensor=1))
    losses, state = _on(8, set_up, sharded, initial)
    np.testing.assert_allclose(losses, on_eight[0], rtol=TOLERANCE)
    words = state.params["encoders"]["text"]["word"]["embedding"]
    assert words.sharding.shard_shape(words.shape) == (2048, 32)
    moments = state.opt_state[0].mu["encoders"]["text"]["word"]["embedding"]
    assert moments.sharding.shard_shape(words.shape) == (2048, 32)


@pytest.mark.slow
def test_overrides_in_a_scanned_encoder_do_not_change_the_loss(micro_config, set_up):
    """All of a text layer's feed-forward weights are sharded over "tensor"."""
    rules = (
        ("mlp_in/kernel", (None, None, "tensor")),
        ("mlp_in/bias", (None, "tensor")),
        ("mlp_out/kernel", (None, "tensor")),
    )
    config = micro_config(total_steps=STEPS, learning_rate__warmup_steps=5, encoders__text__scan=True)
    split = config | dict(mesh=dict(data=2, fsdp=2, tensor=2), sharding=rules)
    one, eight = set_up(config, jax.devices()[:1]), set_up(split)
    state = jax.device_get(one.init())
    expected, actual = (_losses(setup, config, _place(setup, state), stop=3)[0] for setup in (one, eight))
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE)
    kernel = eight.abstract_state.params["encoders"]["text"]["layer_stack"]["mlp_in"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 32, 64)


@pytest.mark.slow
def test_batch_norm_groups_do_not_depend_on_the_devices(micro_config, set_up, initial, on_eight):
    config = micro_config(encoders__image__bn_group=4)
    losses = {n: _on(n, set_up, config, initial)[0] for n in (1, 8)}
    # With 16 examples on eight devices, a group of four spans two devices.
    np.testing.assert_allclose(losses[1], losses[8], rtol=TOLERANCE)
    assert abs(losses[8] - on_eight[0]).max() > 0.01  # and groups are not the global batch


def test_a_checkpoint_resumes_on_other_devices_at_its_step_of_the_data(
    config, set_up, initial, on_eight, tmp_path
):
    one, eight = (set_up(config, jax.devices()[:n]) for n in (1, 8))
    _, state = _losses(eight, config, _place(eight, initial), 0, 4)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state)
    checkpoints.close()
    moved = Checkpoints(tmp_path, keep=1).restore_latest(lambda step: one.abstract_state)
    assert len(jax.tree.leaves(moved.params)[0].sharding.device_set) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(moved), jax.device_get(state))
    losses, _ = _losses(one, config, moved, int(moved.step))
    np.testing.assert_allclose(losses, on_eight[0][4:], rtol=TOLERANCE)


def test_the_initial_state_does_not_depend_on_the_devices(config, set_up, initial):
    one = set_up(config, jax.devices()[:1]).init()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), initial)


@pytest.mark.slow
def test_the_tiny_presets_losses_do_not_depend_on_the_devices():
    config = get_config("tiny").to_dict()
    losses = {}
    for devices in (1, 2, 4, 8):
        setup = loop.set_up(config, jax.devices()[:devices])
        losses[devices], _ = _losses(setup, config, setup.init())
    for devices in (1, 2, 4):
        np.testing.assert_allclose(losses[devices], losses[8], rtol=TOLERANCE)

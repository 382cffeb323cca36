"""Our towers against transformers' in PyTorch, on the same random weights."""

import jax
import numpy as np
import pytest

from big_ssl.models.efficientnet import B0_STAGES, round_repeats
from tests.parity import hf_names

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import parity_figure  # noqa: E402

pytestmark = pytest.mark.parity

# Two float32 networks that add in another order; outputs are of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)
B0 = dict(width=1.0, depth=1.0, stages=B0_STAGES)


def assert_same_tree(ours, found):
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, ours)


@pytest.mark.parametrize("changes", [{}, dict(num_attention_heads=1, num_hidden_layers=3)])
def test_bert(changes):
    peer, ours = peers.bert(**changes)
    variables = hf_names.bert_variables(peers.state(peer))
    ids, mask = peers.bert_inputs()
    assert_same_tree(jax.eval_shape(ours.init, jax.random.key(0), ids, mask), variables)
    expected = peers.run_bert(peer, ids, mask)
    found = jax.jit(ours.apply)(variables, ids, mask)
    np.testing.assert_allclose(np.asarray(found["tokens"])[mask], expected[mask], **CLOSE)
    np.testing.assert_allclose(found["pooled"], expected[:, 0], **CLOSE)
    assert expected.std() > 0.5


def both(kind, size=(32, 48), **options):
    peer, ours = peers.efficientnet(kind, **options)
    repeats = [round_repeats(s.repeats, ours.depth) for s in ours.stages]
    variables = hf_names.efficientnet_variables(peers.state(peer), repeats)
    images = peers.image_inputs(size)
    assert_same_tree(jax.eval_shape(ours.init, jax.random.key(0), images), variables)
    return peer, ours, variables, images


@pytest.mark.parametrize("kind", ["align", "efficientnet"])
@pytest.mark.parametrize("options", [{}, B0 | dict(size=(64, 96)), dict(depth=1.3, width=0.6)])
def test_efficientnet_in_evaluation(kind, options):
    peer, ours, variables, images = both(kind, **options)
    expected = peers.run_efficientnet(peer, images)
    found = jax.jit(ours.apply)(variables, images)
    np.testing.assert_allclose(found["patches"], expected, **CLOSE)
    assert 0.3 < expected.std() < 30
    if kind == "align":
        scale = expected.std()
        parity_figure("hf_align", "other sizes", found["patches"] / scale, expected / scale)


def test_align_pools_the_blocks_output():
    peer, ours, variables, images = both("align")
    with torch.no_grad():
        expected = peer(torch.tensor(images.transpose(0, 3, 1, 2))).pooler_output
    np.testing.assert_allclose(jax.jit(ours.apply)(variables, images)["pooled"], expected, **CLOSE)


def test_efficientnet_in_training():
    """Batch statistics in place of the running ones, and how the running ones move.

    PyTorch's momentum is one minus ours, and its running variance divides by n - 1.
    """
    peer, ours, variables, images = both("align")
    counts = {}
    for name, module in peer.train().named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1 - ours.bn_momentum
            module.register_forward_pre_hook(
                lambda m, args, name=name: counts.update({name: args[0].numel() // m.num_features})
            )
    old = peers.state(peer)
    expected = peers.run_efficientnet(peer, images)
    run = jax.jit(lambda v, x: ours.apply(v, x, train=True, mutable=["batch_stats"]))
    found, moved = run(variables, images)
    np.testing.assert_allclose(found["patches"], expected, **CLOSE)
    new = peers.state(peer)
    for name, n in counts.items():
        key = f"{name}.running_var"
        unbiased = new[key] - ours.bn_momentum * old[key]
        new[key] = ours.bn_momentum * old[key] + unbiased * (n - 1) / n
    repeats = [s.repeats for s in ours.stages]
    stats = hf_names.efficientnet_variables(new, repeats)["batch_stats"]
    # The step of the statistics is a hundredth of them: the tolerance is 1e-4 of the step.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), moved["batch_stats"], stats
    )


def test_gradients_of_efficientnet_in_training():
    peer, ours, variables, images = both("align")
    weights = np.random.default_rng(5).normal(size=(2, 28 * 2)).astype(np.float32)
    pooled = peer.train()(torch.tensor(images.transpose(0, 3, 1, 2))).pooler_output
    (pooled * torch.tensor(weights)).sum().backward()
    expected = {name: p.grad.numpy() for name, p in peer.named_parameters() if p.grad is not None}
    expected = hf_names.efficientnet_variables(expected, [s.repeats for s in ours.stages])["params"]

    @jax.jit
    def gradient(params):
        def loss(params):
            state = variables | dict(params=params)
            output, _ = ours.apply(state, images, train=True, mutable=["batch_stats"])
            return (output["pooled"] * weights).sum()

        return jax.grad(loss)(params)

    def close(found, theirs):
        # Relative to the largest entry: gradients of batch norm's predecessors cancel to near zero.
        assert np.abs(found - theirs).max() < 2e-4 * max(np.abs(theirs).max(), 1)

    jax.tree.map(close, gradient(variables["params"]), expected)

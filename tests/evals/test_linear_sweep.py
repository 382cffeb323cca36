"""The sweep of linear heads: each against plain SGD, together as alone, on any number of devices."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from big_ssl.evals import linear_sweep
from big_ssl.evals.linear_sweep import LinearSweep, Sweep
from big_ssl.parallel import mesh as mesh_lib

LAYERS, WIDTH, CLASSES, BATCH, STEPS = 3, 4, 3, 16, 40
SWEEP = Sweep((1, LAYERS), (False, True), (0.01, 0.5), CLASSES, STEPS, BATCH)


def _tokens(count, noise, seed):
    """(float32[count, LAYERS + 1, WIDTH], labels): the classes lie apart, in every token by other axes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CLASSES, LAYERS + 1, WIDTH))
    labels = rng.integers(0, CLASSES, count)
    found = centres[labels] + noise * rng.normal(size=(count, LAYERS + 1, WIDTH))
    return found.astype(np.float32), labels


TRAIN, VALIDATION, TEST = (_tokens(count, 0.3, seed) for seed, count in enumerate((400, 200, 1000), 1))


def _mesh(devices):
    return mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])


def _trained(sweep, devices=1, data=TRAIN):
    batches = linear_sweep.fixed_batches(*data, sweep.steps, sweep.batch_size)
    return linear_sweep.train_heads(sweep, batches, _mesh(devices))


@pytest.fixture(scope="module")
def heads():
    return jax.device_get(_trained(SWEEP))


def _by_hand(read, rate):
    """(kernel, bias) by SGD as PyTorch has it, in float64: m = 0.9 m + g, w -= rate m, a cosine to 0."""
    kernel, bias = (np.zeros((read(TRAIN[0]).shape[1], CLASSES)), np.zeros(CLASSES))
    kernel_moment, bias_moment, kernel = 0 * kernel, 0 * bias, _start(read)
    for step, (features, labels) in enumerate(linear_sweep.fixed_batches(*TRAIN, STEPS, BATCH)):
        x = read(features).astype(np.float64)
        logits = x @ kernel + bias
        error = np.exp(logits - logits.max(1, keepdims=True))
        error = error / error.sum(1, keepdims=True) - np.eye(CLASSES)[labels]
        kernel_moment = 0.9 * kernel_moment + x.T @ error / BATCH
        bias_moment = 0.9 * bias_moment + error.mean(0)
        now = rate * BATCH / 256 * (1 + np.cos(np.pi * step / STEPS)) / 2
        kernel, bias = kernel - now * kernel_moment, bias - now * bias_moment
    return kernel, bias


def _start(read):
    """The kernel before the first step: that of a head that nothing moves."""
    kind = next(kind for kind, own in READS.items() if own is read)
    still = Sweep((kind[0],), (kind[1],), (1e-30,), CLASSES, 1, BATCH)
    return np.asarray(_trained(still)[0]["kernel"][0], np.float64)


def _flat(x):
    return x.reshape(len(x), -1)


# By hand again: which tokens a head reads, the last layer's class token before the mean of its patches.
READS = {
    (1, False): lambda x: x[:, 2],
    (1, True): lambda x: _flat(x[:, 2:]),
    (3, False): lambda x: _flat(x[:, :3]),
    (3, True): _flat,
}


def test_every_head_is_plain_sgd(heads):
    assert SWEEP.inputs == list(READS)
    for read, found in zip(READS.values(), heads, strict=True):
        start = _start(read)
        assert 0.007 < start.std() < 0.013
        for i, rate in enumerate(SWEEP.rates):
            kernel, bias = _by_hand(read, rate)
            assert np.abs(kernel - start).max() > 0.003
            np.testing.assert_allclose(found["kernel"][i], kernel, atol=2e-5)
            np.testing.assert_allclose(found["bias"][i], bias, atol=2e-5)


def test_a_head_does_not_depend_on_the_others(heads):
    alone = Sweep((LAYERS,), (True,), (0.5,), CLASSES, STEPS, BATCH)
    (found,) = _trained(alone)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(found[name][0], heads[3][name][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_change_nothing(devices, heads):
    found = _trained(SWEEP, devices)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(heads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    expected = linear_sweep.predictions(SWEEP, heads, TEST[0], _mesh(1))
    np.testing.assert_array_equal(linear_sweep.predictions(SWEEP, found, TEST[0], _mesh(devices)), expected)


def test_the_winner_is_as_good_as_logistic_regression(heads):
    """On features that lines part almost: within a point. Chosen on validation, whatever test says."""
    best, validated = linear_sweep.choose(SWEEP, heads, VALIDATION, _mesh(1))
    found = linear_sweep.evaluate(SWEEP, heads, best, TEST, _mesh(1))
    fit = LogisticRegression(max_iter=1000).fit(_flat(TRAIN[0]), TRAIN[1])
    assert found["top1"] == pytest.approx(fit.score(_flat(TEST[0]), TEST[1]), abs=0.01)
    named = linear_sweep.predictions(SWEEP, heads, VALIDATION[0], _mesh(1))
    accuracies = (named == VALIDATION[1][:, None]).mean(0)
    assert validated == accuracies.max() > accuracies.min()
    assert best == accuracies.argmax()
    head = SWEEP.heads[best]
    assert (found["rate"], found["blocks"], found["patches"]) == (head.rate, head.blocks, head.patches)
    # With labels turned round the same head is right about nothing.
    wrong = linear_sweep.evaluate(SWEEP, heads, best, (TEST[0], (TEST[1] + 1) % CLASSES), _mesh(1))
    assert wrong["top1"] < 0.1


def test_a_saved_head_predicts_as_in_the_sweep(heads):
    """Each of them, on its class tokens and the mean of the patches, read or not."""
    named = linear_sweep.predictions(SWEEP, heads, TEST[0], _mesh(1))
    for i, head in enumerate(SWEEP.heads):
        weight, bias = linear_sweep.published(SWEEP, heads, i)
        assert (weight.shape, bias.shape) == ((CLASSES, (head.blocks + 1) * WIDTH), (CLASSES,))
        logits = _flat(TEST[0][:, LAYERS - head.blocks :]) @ weight.T + bias
        np.testing.assert_array_equal(logits.argmax(1), named[:, i])


def test_each_epoch_shows_every_example_once():
    """In another order each time, over the ends of epochs too."""
    numbers = np.arange(10)
    seen = [labels for _, labels in linear_sweep.fixed_batches(numbers[:, None], numbers, 5, 4)]
    order = np.concatenate(seen)
    assert [len(x) for x in seen] == [4] * 5
    assert sorted(order[:10]) == sorted(order[10:]) == list(numbers)
    assert not np.array_equal(order[:10], order[10:])


def _set(folder, name, count=24):
    shades, rng = {"red": (200, 20, 20), "green": (20, 200, 20)}, np.random.default_rng(len(name))
    pictures = {
        c: [tuple(map(int, shades[c] + rng.integers(0, 50, 3))) for _ in range(count)] for c in shades
    }
    return dict(kind="image_folder", path=folder(pictures, name))


@pytest.mark.parametrize("augment", [False, True])
def test_whole_sets(folder, predictor, augment):
    """Colours through a small tower; a part of train chooses where nothing else is given."""
    train, test = _set(folder, "train"), _set(folder, "test")
    options = dict(rates=(1e-3, 0.5), blocks=(1, 2), steps=20, batch_size=16, augment=augment, name="x")
    evaluator = LinearSweep(train, test, validation_fraction=0.3, **options)
    found = evaluator.metrics(predictor)
    assert set(found) == {
        f"linear_sweep/x/{key}"
        for key in ("top1", "mean_per_class", "chance", "validation_top1", "rate", "blocks", "patches")
    }
    assert found["linear_sweep/x/top1"] == found["linear_sweep/x/validation_top1"] == 1
    assert evaluator.metrics(predictor) == found


def test_a_split_is_two_sets(folder, predictor):
    evaluator = LinearSweep(_set(folder, "train"), _set(folder, "test"), blocks=(1,), batch_size=8, name="x")
    kept, held = (evaluator._features(predictor, split) for split in ("train", "validation"))
    assert len(kept[1]) + len(held[1]) == 48
    assert 0 < len(held[1]) < 15


def test_what_does_not_fit_is_named(folder):
    train, other = _set(folder, "train", 2), _set(folder, "a", 2)
    with pytest.raises(ValueError, match=r"linear_sweep: rates is \(\); it must hold different positive num"):
        LinearSweep(train, other, rates=(), name="x")
    with pytest.raises(ValueError, match=r"linear_sweep: blocks is \(0,\)"):
        LinearSweep(train, other, blocks=(0,), validation=other, name="x")
    with pytest.raises(ValueError, match=r"batch_size 12; both must .* a multiple of the 8 devices"):
        LinearSweep(train, other, batch_size=12, validation=other, name="x")
    with pytest.raises(
        ValueError, match=r"linear_sweep: save is 'a\.pth'; heads are written as \.safetensors"
    ):
        LinearSweep(train, other, validation=other, save="a.pth", name="x")
    with pytest.raises(ValueError, match=r"blocks is \(1, 2\); a head to save has one of \(1, 4\)"):
        LinearSweep(train, other, validation=other, blocks=(1, 2), save="a.safetensors", name="x")
    strange = dict(kind="image_folder", path=folder({"blue": ["blue"]}, "strange"))
    with pytest.raises(ValueError, match="linear_sweep: test has other labels than train"):
        LinearSweep(train, strange, name="x")

"""The linear probe: its fits against scikit-learn's, its choice of C, its splits."""

import builtins

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from big_ssl.evals import linear_probe
from big_ssl.evals.linear_probe import CLIP_GRID, LinearProbe, probe, split_off, sweep


def _blobs(count, noise, seed):
    """Three classes around three points of eight dimensions."""
    rng = np.random.default_rng(seed)
    centres = np.eye(3, 8)
    labels = rng.integers(0, 3, count)
    return centres[labels] + noise * rng.normal(size=(count, 8)), labels


def test_a_separable_problem_is_solved():
    data = dict(train=_blobs(60, 0.05, 0), validation=_blobs(30, 0.05, 1), test=_blobs(60, 0.05, 2))
    found = probe(**data, grid=(1e-3, 1.0, 1e3))
    assert (found["top1"], found["mean_per_class"], found["validation_top1"]) == (1, 1, 1)


def test_it_is_scikit_learns_with_the_best_c_fitted_on_train_and_validation():
    train, validation, test = (_blobs(n, 0.5, seed) for seed, n in enumerate((60, 200, 300)))
    grid = tuple(10.0 ** np.arange(-4, 5))

    def fit(pair, c):
        return LogisticRegression(C=c, max_iter=1000).fit(*pair)

    accuracies = [fit(train, c).score(*validation) for c in grid]
    best = grid[int(np.argmax(accuracies))]
    assert 0 < grid.index(best) < len(grid) - 1
    both = [np.concatenate(pair) for pair in zip(train, validation, strict=True)]
    options = dict(max_iter=1000)
    found = probe(train, validation, test, grid=grid, every_c=True, options=options)
    assert found["c"] == best
    assert found["validation_top1"] == pytest.approx(max(accuracies))
    assert found["top1"] == pytest.approx(fit(both, best).score(*test))
    assert found["top1"] != fit(train, best).score(*test)


@pytest.mark.parametrize("peak", [0, 1, 31, 48, 63, 95, 96])
def test_the_sweep_finds_a_single_peak_in_few_fits(peak):
    tried = []

    def score(c):
        tried.append(c)
        return -abs(np.log10(c) - np.log10(CLIP_GRID[peak]))

    best, _ = sweep(score, CLIP_GRID)
    assert best == CLIP_GRID[peak]
    assert tried[:7] == pytest.approx([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
    assert len(tried) == len(set(tried)) <= 15
    tried.clear()
    assert sweep(score, CLIP_GRID, every_c=True)[0] == CLIP_GRID[peak]
    assert tried == list(CLIP_GRID)


def test_clips_grid_has_eight_steps_a_decade():
    assert (len(CLIP_GRID), CLIP_GRID[0], CLIP_GRID[-1]) == (97, 1e-6, 1e6)
    np.testing.assert_allclose(np.diff(np.log10(CLIP_GRID)), 1 / 8)


def test_of_equally_good_values_the_smallest_is_taken():
    assert sweep(lambda c: 1.0, CLIP_GRID)[0] == 1e-6
    assert sweep(lambda c: min(c, 1.0), tuple(10 ** np.linspace(-6, 5, 45)), every_c=True)[0] == 1.0
    assert sweep(lambda c: c, (3.0,)) == (3.0, 3.0)


def test_validation_is_split_off_always_alike():
    features, labels = np.arange(1000)[:, None], np.arange(1000)
    parts = split_off(features, labels, 0.1)
    again = split_off(features, labels, 0.1)
    assert 70 < len(parts["validation"][1]) < 130
    assert sorted(np.concatenate([labels for _, labels in parts.values()])) == list(range(1000))
    for name, (some, own) in parts.items():
        np.testing.assert_array_equal(some[:, 0], own)
        np.testing.assert_array_equal(own, again[name][1])
    with pytest.raises(ValueError, match="validation_fraction is 1; it leaves one part empty"):
        split_off(features, labels, 1)


def _set(folder, name, count, classes=("red", "green")):
    shades = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
    rng = np.random.default_rng(len(name))
    pictures = {
        c: [tuple(map(int, shades[c] + rng.integers(0, 50, 3))) for _ in range(count)] for c in classes
    }
    return dict(kind="image_folder", path=folder(pictures, name))


def test_whole_sets(folder, predictor):
    train, test, validation = (_set(folder, name, 12) for name in ("train", "test", "validation"))
    options = dict(grid=(1e-6, 1e-3, 1.0), name="x")
    found = LinearProbe(train, test, validation, **options).metrics(predictor)
    assert found["linear_probe/x/top1"] == 1
    assert found["linear_probe/x/chance"] == 1 / 2
    assert found["linear_probe/x/c"] in options["grid"]
    assert (
        LinearProbe(train, test, validation_fraction=0.3, **options).metrics(predictor)["linear_probe/x/top1"]
        == 1
    )
    for features in ("pooled", "images"):
        metrics = LinearProbe(train, test, features=features, **options).metrics(predictor)
        assert metrics["linear_probe/x/top1"] == 1


def test_what_does_not_fit_is_named(folder, monkeypatch):
    train, other = _set(folder, "train", 2), _set(folder, "other", 2, ("red", "blue"))
    with pytest.raises(ValueError, match="linear_probe: test has other labels than train"):
        LinearProbe(train, other, name="x")
    with pytest.raises(ValueError, match="features is 'cls'; use pooled or images"):
        LinearProbe(train, train, features="cls", name="x")
    with pytest.raises(ValueError, match="the grid of C is empty"):
        sweep(float, ())
    missing = builtins.__import__

    def without(name, *rest):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return missing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs scikit-learn: pip install 'big-ssl\[eval\]'"):
        linear_probe.LinearProbe(train, train, name="x")

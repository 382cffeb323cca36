"""A run of two contrastive objectives and two classifiers on two streams, with real evaluators.

On earlier versions the second objective of a kind replaced the first, and the evaluators read the head that
came first in sorted order.
"""

import copy
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

import big_ssl
from big_ssl.config import ConfigError, validate
from big_ssl.evals import suite
from big_ssl.models import vit
from big_ssl.training import evaluation, loop, requirements, run_report
from big_ssl.training import state as state_lib
from big_ssl.training.metrics import read_lines

DRAWINGS = dict(kind="emoji", styles=("fxemoji",))
EVALS = dict(
    categories=dict(kind="zero_shot", data=DRAWINGS, label="category", templates="{}"),
    photos=dict(kind="classification", data=DRAWINGS, label="category"),
    near=dict(
        kind="knn", train=DRAWINGS, test=DRAWINGS | dict(concepts="unseen"), label="category", ks=(1, 20)
    ),
)
CHOICES = dict.fromkeys(("encode_image", "encode_text", "zero_shot"), "other") | dict(classify="category")


@pytest.fixture(scope="module")
def config(micro_config):
    config = micro_config(total_steps=2, evals=EVALS, predictors=CHOICES)
    config["learning_rate"].update(warmup_steps=1)
    config["encoders"]["image"] = dict(
        kind="vit", patch=8, image_size=16, width=16, depth=1, heads=2, **vit.DINO
    )
    pairs = config["streams"]["pairs"]
    pairs["data"]["fields"]["label"] = dict(kind="label", key="category")
    contrastive, second = dict(pairs["objectives"]["contrastive"], embed_dim=16), copy.deepcopy(pairs)
    classifier = dict(kind="classification", weight=1.0, classes=10)
    pairs["objectives"] = dict(itc=contrastive, category=classifier)
    colder = dict(contrastive, temperature=contrastive["temperature"] / 2)
    second["objectives"] = dict(other=colder, again=dict(classifier))
    config["streams"]["more"] = second
    return config


@pytest.fixture(scope="module")
def run(config, set_up, tmp_path_factory):
    """(result, workdir)."""
    workdir = tmp_path_factory.mktemp("mixture")
    with pytest.MonkeyPatch.context() as patch:
        one = functools.partial(set_up, devices=jax.devices()[:1])  # compiles faster than for eight
        patch.setattr(loop, "set_up", one)
        return loop.train(config, workdir), workdir


@pytest.fixture(scope="module")
def metrics(run):
    """All metrics of the last step."""
    return {key: value for line in read_lines(run[1] / "metrics.jsonl") for key, value in line.items()}


def with_choices(run, config, **choices):
    """The run's predictor with other choices of objectives."""
    setup = run[0].setup
    system = dataclasses.replace(setup.system, predictors=CHOICES | choices)
    predictor = evaluation.predictor(config, setup._replace(system=system))
    return predictor.for_evaluation(state_lib.evaluation_variables(run[0].state))


@pytest.mark.slow
def test_metrics_of_objectives_of_one_kind_stand_side_by_side(metrics):
    for metric, names in (("temperature", ("itc", "other")), ("accuracy", ("category", "again"))):
        assert {f"train/{name}/{metric}" for name in names} <= set(metrics)
    assert metrics["train/other/temperature"] < 0.6 * metrics["train/itc/temperature"]


@pytest.mark.slow
def test_the_chosen_contrastive_head_makes_the_zero_shot_numbers(run, config, metrics):
    evaluator = suite.build(dict(categories=EVALS["categories"]))["categories"]
    chosen = with_choices(run, config)
    expected = {f"eval/{key}": value for key, value in evaluator.metrics(chosen).items()}
    assert expected == {key: metrics[key] for key in expected}
    first = with_choices(run, config, **dict.fromkeys(("encode_image", "encode_text", "zero_shot"), "itc"))
    assert np.abs(chosen.encode_text(["a cat"]) - first.encode_text(["a cat"])).max() > 1e-3


@pytest.mark.slow
def test_the_chosen_classifier_makes_the_classification_numbers(run, config, metrics):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    logits = {}
    for name in ("category", "again"):
        predictor = with_choices(run, config, classify=name)
        linear = predictor.variables["params"]["heads"][name]["linear"]
        pooled = predictor.pooled_features(images, resize=False)
        logits[name] = predictor.classify(images, resize=False)
        expected = pooled @ np.asarray(linear["kernel"]) + np.asarray(linear["bias"])
        np.testing.assert_allclose(logits[name], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(logits["category"] - logits["again"]).max() > 0
    evaluator = suite.build(dict(photos=EVALS["photos"]))["photos"]
    found = evaluator.metrics(with_choices(run, config))
    assert found["classification/photos/top1"] == metrics["eval/classification/photos/top1"]


@pytest.mark.slow
def test_a_loaded_run_has_the_chosen_heads(run, config):
    """Whatever their names; the stored layout is that of converted models."""
    model, predictor = big_ssl.load(run[1]), with_choices(run, config)
    assert set(model.variables["params"]["heads"]) == {"contrastive", "classification"}
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
    close = dict(rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.encode_text(["a cat"]), predictor.encode_text(["a cat"]), **close)
    np.testing.assert_allclose(model.encode_image(images), predictor.encode_image(images), **close)
    np.testing.assert_allclose(model.classify(images), predictor.classify(images), **close)
    probabilities = [each.zero_shot(images, ["cat", "dog"]) for each in (model, predictor)]
    np.testing.assert_allclose(*probabilities, **close)


@pytest.mark.slow
def test_the_report_has_the_sections_of_every_evaluator(run, config):
    page = run_report.write_run_report(config, run[1], "command", run[0]).read_text(encoding="utf-8")
    assert 'data-set="categories"' in page
    assert 'data-set="photos" data-kind="classification"' in page
    headings = re.findall(r'<h2 id="([^"]*)"', page)
    sections = ["attention", "patches", "neighbours_near"]
    assert headings == ["task", "curves", "zero-shot", "further", *sections]
    assert "the 20 nearest training images vote" in page
    for task in ("An image encoder and a text encoder", "A linear classifier on the image encoder"):
        assert task in page
    assert "Self-distillation" not in page


@pytest.mark.parametrize(
    ("predictors", "message"),
    [
        ({}, r"^predictors\.classify must be one of category, again: each of these objectives provides it$"),
        (
            CHOICES | dict(classify="itc"),
            r"^predictors\.classify is 'itc'; the objectives that provide it: category, again$",
        ),
    ],
)
def test_choices_that_decide_nothing_are_errors_before_anything_slow(predictors, message, config, tmp_path):
    with pytest.raises(requirements.RequirementsError, match=message):
        loop.train(config | dict(predictors=predictors), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("predictors", "message"),
    [
        (dict(classifyy="category"), r"^predictors\.classifyy is no method; did you mean classify\?$"),
        (
            dict(classify="categories"),
            r"^predictors\.classify is 'categories', no objective; did you mean",
        ),
    ],
)
def test_choices_of_unknown_names(predictors, message, config):
    with pytest.raises(ConfigError, match=message):
        validate(config | dict(predictors=predictors))

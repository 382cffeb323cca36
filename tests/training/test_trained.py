"""What a run of images alone has trained, with a classifier or without one, and what is done with it."""

import contextlib
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import big_ssl
from big_ssl import convert, evaluate, inference
from big_ssl.training import batches, build, loop, trained
from big_ssl.training.checkpoints import Checkpoints
from big_ssl.training.metrics import read_lines
from big_ssl.training.state import TrainState
from big_ssl.weights import architecture
from configs import align_l2, finetune_ibot_imagenet, ibot

RNG = np.random.default_rng(0)


def tiny(recipe=finetune_ibot_imagenet):
    """Its smallest preset with a smaller tower, as a run's config.json gives it."""
    config = recipe.get_config("tiny").to_dict()
    config["encoders"]["image"].update(width=8, heads=1)
    return json.loads(json.dumps(config))


def variables(config):
    """Random, of all that the run would keep."""
    made = build.system(config, None)
    params, mutable = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))
    given = dict(params=params, encoders=mutable["encoders"])
    return jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), given)


@pytest.mark.parametrize(("recipe", "classes"), [(finetune_ibot_imagenet, 10), (ibot, None)])
def test_a_run_of_images_alone_is_described(recipe, classes):
    """Its arrays are those of the ModelConfig: a head of self-distillation is none of them."""
    config = tiny(recipe)
    described = trained.describe(config)
    assert (described["head"], described["tokenizer"], described.get("classes")) == (None, None, classes)
    assert (described["image_size"], described["resize"]) == (32, "crop 32 bicubic")
    kept = trained.exported(config, variables(config))
    shapes = {path: leaf.shape for path, leaf in flatten_dict(kept, sep="/").items()}
    assert shapes == architecture.shapes(described)
    assert any("classification" in path for path in shapes) == bool(classes)


def test_of_a_mixture_both_heads_are_kept():
    config = align_l2.get_config("tiny").to_dict()
    options = dict(kind="classification", weight=1.0, classes=7)
    config["streams"]["pairs"]["data"]["fields"]["label"] = dict(kind="label", key="category")
    config["streams"]["pairs"]["objectives"]["classification"] = options
    described = trained.describe(config)
    kept = trained.exported(config, variables(config))
    assert set(kept["params"]["heads"]) == {"contrastive", "classification"}
    assert {p: x.shape for p, x in flatten_dict(kept, sep="/").items()} == architecture.shapes(described)


def test_a_run_without_an_image_encoder_is_named():
    config = tiny()
    config["streams"], config["encoders"] = {}, {}
    with pytest.raises(ValueError, match=r"^no objective trains an image encoder, and no encoder is named"):
        trained.describe(config)


def test_a_loaded_classifier_is_the_runs():
    """The logits of the modules applied by hand; a model without a classifier has none."""
    config = tiny()
    described = trained.describe(config)
    kept = trained.exported(config, variables(config))
    model = inference.Model(described, kept)
    images = RNG.integers(0, 256, (3, 32, 32, 3), np.uint8)
    pooled = model.encode_image(images, normalize=False)
    linear = kept["params"]["heads"]["classification"]["linear"]
    wanted = pooled @ linear["kernel"] + linear["bias"]
    np.testing.assert_allclose(model.classify(images), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.for_evaluation().classify(images), wanted, rtol=1e-4, atol=1e-4)
    kept["params"]["heads"] = {}
    without = inference.Model(described | dict(classes=None), kept)
    assert "classify" not in without.methods
    with pytest.raises(
        ValueError, match=r"^this model has no classifier: none was trained; it has encode_image"
    ):
        without.classify(images)


def _save(workdir, step, current, ema=None):
    """Saves a checkpoint of these variables, with some optimizer's state."""
    state = TrainState(
        step=np.int32(step),
        params=current["params"],
        opt_state=(current["params"],),
        mutable=dict(encoders=current["encoders"], objectives={}),
        ema=ema,
        counters={},
    )
    with contextlib.closing(Checkpoints(workdir, keep=1)) as checkpoints:
        checkpoints.save(jax.device_put(state))


@pytest.mark.parametrize("averaged", [True, False])
def test_a_run_is_read_by_each_host_for_itself(averaged, tmp_path):
    """As NumPy arrays on no device, of the newest whole checkpoint, without what evaluation does not use."""
    config = tiny()
    given = jax.device_put(variables(config))
    other = jax.tree.map(lambda x: x + 1, given)
    params = other["params"] if averaged else given["params"]
    statistics = (other if averaged else given)["encoders"]
    _save(tmp_path, 3, dict(params=params, encoders=statistics), ema=given if averaged else None)
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = trained.load(tmp_path)[1]
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found))
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(given))


def test_a_run_of_stages_is_that_of_its_newest_checkpoint(tmp_path):
    config = tiny()
    steps = config["total_steps"]
    larger = dict(encoders=dict(image=dict(image_size=64)))
    config["stages"] = (dict(name="a", steps=3), dict(name="b", steps=steps - 3, **larger))
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = []
    for step in (3, 4):
        _save(tmp_path, step, variables(config))
        sizes.append(trained.load(tmp_path)[0]["encoders"]["image"]["image_size"])
    assert sizes == [config["encoders"]["image"]["image_size"], 64]


def test_a_run_without_a_checkpoint_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path} has no checkpoint yet$"):
        trained.load(tmp_path)


@pytest.mark.slow
def test_from_a_run_to_the_next_and_to_the_commands(tmp_path):
    """The evaluator, the command and a converted copy find the same; a second run starts from the first."""
    config = finetune_ibot_imagenet.get_config("tiny").to_dict()
    config["encoders"]["image"].update(scan=True, depth=2, patch=16, width=8, heads=1)
    first = loop.train(config, tmp_path / "run")
    (*_, line) = (
        x for x in read_lines(tmp_path / "run" / "metrics.jsonl") if "eval/classification/fxemoji/top1" in x
    )
    options = dict(data=dict(kind="emoji", styles=("fxemoji",)), label="category")
    convert.convert("big_ssl", tmp_path / "run", "big_ssl", tmp_path / "converted", {})
    for folder in ("run", "converted"):
        found = evaluate.evaluate(
            tmp_path / folder, "classification", options, tmp_path / "o.json", "fxemoji"
        )
        assert len(found) == 4
        for key, value in found.items():
            assert line[key] == pytest.approx(value, abs=0.01), key
    images = RNG.integers(0, 256, (3, 40, 30, 3), np.uint8)
    logits = [big_ssl.load(tmp_path / folder).classify(images) for folder in ("run", "converted")]
    assert logits[0].shape == (3, 10)
    np.testing.assert_array_equal(*logits)

    # ALIGN's first phase: the tower as it was, its layers apart this time, and a classifier that goes on.
    config["init_from"] = dict(path=str(tmp_path / "run"), exclude=(), remap=())
    config["lr_multipliers"] = (("encoders/", 0.0),)
    config["encoders"]["image"].update(scan=False)
    second = loop.train(config, tmp_path / "second")
    before, after = (flatten_dict(trained.load(tmp_path / name)[1], sep="/") for name in ("run", "second"))
    for name, array in before.items():
        assert np.array_equal(array, after[name]) == name.startswith("params/encoders"), name
    assert int(second.state.step) == int(first.state.step) == 10

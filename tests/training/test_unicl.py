"""UniCL: captions and classes in one stream, with positives by identity, through the step and a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import big_ssl
from big_ssl.config import validate
from big_ssl.data.fields.identity import Identity
from big_ssl.data.fields.text import Text
from big_ssl.objectives import build as objectives
from big_ssl.objectives.base import Context
from big_ssl.parallel.mesh import batch_shards, global_batch, make_mesh
from big_ssl.training import batches, build, loop, stages, streams, train_step
from big_ssl.training.metrics import read_lines
from big_ssl.training.requirements import RequirementsError
from big_ssl.training.system import System, Term
from tests.training.toys import Tower, microbatched

# The step: GradCache's microbatches and several devices.

OBJECTIVE = dict(kind="contrastive", embed_dim=5, image_projection=True, temperature=0.2, positives="same")


def toy_system(implementation, mesh):
    """Two towers of texts, random in training."""
    context = Context(mesh, "float32", None, {})
    objective = objectives.build(OBJECTIVE | dict(implementation=implementation), context)
    text = Text(dict(text=1.0))
    fields = dict(pairs=dict(image=text, text=text, same=Identity()))
    encoders = dict(image=Tower(), text=Tower())
    return System(encoders, fields, dict(itc=Term("pairs", objective, lambda step: 0.5)))


def toy_batch():
    rng = np.random.default_rng(0)
    texts = (dict(ids=rng.integers(0, 5, (16, 3)), mask=rng.random((16, 3)) < 0.6) for _ in range(2))
    same = dict(key=rng.integers(0, 2, (16, 2), np.uint32), valid=np.arange(16) % 5 > 0)
    return dict(pairs=dict(zip(("image", "text"), texts, strict=True), same=same))


@pytest.mark.parametrize(
    ("devices", "implementation"),
    [
        pytest.param(1, "ring", marks=pytest.mark.slow),
        (2, "ring"),
        pytest.param(4, "gathered", marks=pytest.mark.slow),
        pytest.param(8, "ring", marks=pytest.mark.slow),
    ],
)
def test_microbatches_have_the_loss_and_the_gradient_of_the_dense_batch(devices, implementation):
    """Keys and padding belong to the whole batch, in its order; dropout is drawn as in plain autodiff."""
    count, batch = 2, toy_batch()
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])
    dense, system = toy_system("dense", None), toy_system(implementation, mesh)
    params, mutable = jax.jit(dense.init)(jax.random.key(0), batch)
    key, step = jax.random.key(3), jnp.int32(2)
    plain = functools.partial(
        microbatched(dense, count, batch_shards(mesh)), mutable=mutable, batch=batch, key=key, step=step
    )
    (expected, _), expected_grads = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    function = jax.jit(train_step.value_and_grad(system, count, mesh))
    (loss, (metrics, _)), grads = function(params, mutable, global_batch(mesh, batch), key, step)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert 0 < metrics["itc/lower_bound"] < metrics["itc/loss"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4 * np.abs(b).max()),
        grads,
        expected_grads,
    )


# A run.


def drawings(style, weight, **text):
    source = dict(kind="emoji", styles=(style,), concepts="seen")
    return dict(source=source, weight=weight, fields=dict(text=text))


@pytest.fixture(scope="module")
def config(micro_config):
    """Of half the batch the captions, of the other half the names of ten categories, in prompts."""
    config = micro_config(total_steps=4, learning_rate__warmup_steps=1)
    pairs = config["streams"]["pairs"]
    pairs["data"].pop("source")
    pairs["data"]["sources"] = (
        drawings("fxemoji", 1.0),
        drawings("fxemoji", 1.0, captions=dict(), class_key="category"),
    )
    pairs["data"]["fields"] |= dict(
        text=dict(kind="text", captions=dict(name=1.0), prompts="unicl"), same=dict(kind="identity")
    )
    pairs["objectives"]["contrastive"].update(
        weight=0.5,
        label_smoothing=0.0,
        temperature=0.3678794411714423,
        temperature_form="log",
        temperature_clamp=False,
        positives="same",
    )
    drawn = dict(kind="emoji", styles=("fxemoji",), share=0.1)
    config["evals"] = dict(categories=dict(kind="zero_shot", data=drawn, label="category", templates="unicl"))
    validate(config)
    return config


@pytest.mark.slow
def test_a_run_on_captions_and_classes_trains_and_is_evaluated(config, set_up, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "set_up", functools.partial(set_up, devices=jax.devices()[:1]))
    result = loop.train(config, tmp_path)
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if "train/loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        # Half of 16 examples are in ten categories: rarely two captions are equal, always two classes.
        assert 0.1 < line["train/contrastive/lower_bound"] < line["train/contrastive/loss"]
    (evaluated,) = [
        x for x in read_lines(tmp_path / "metrics.jsonl") if "eval/zero_shot/categories/top1" in x
    ]
    assert evaluated["eval/zero_shot/categories/chance"] == 0.1
    assert result.state.counters["replaced_texts"] == 0
    head = big_ssl.load(tmp_path).variables["params"]["heads"]["contrastive"]
    assert 0.8 < head["logit_scale"] < 1.2  # from 1, in four steps


def first_batch(config):
    iterator = batches.iterate(
        config,
        streams.open_streams(config, build.tokenizer(config)),
        0,
        make_mesh(config["mesh"], jax.devices()[:1]),
    )
    batch = next(iterator)["pairs"]
    iterator.close()
    return batch


def test_a_later_stage_reads_the_same_descriptions_without_prompts(config):
    plain = dict(streams=dict(pairs=dict(data=dict(fields=dict(text=dict(augment=False))))))
    staged = config | dict(
        stages=(dict(name="all", steps=2), dict(name="plain", steps=2, **plain)), total_steps=4
    )
    validate(staged)
    with_prompts, without = (first_batch(stage.config | dict(seed=0)) for stage in stages.resolve(staged))
    assert with_prompts["text"]["mask"].sum() > without["text"]["mask"].sum() + 16
    np.testing.assert_array_equal(with_prompts["same"]["key"], without["same"]["key"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (dict(captions={}, class_key="name"), "text: emoji: 'name' is no label; there are label, category"),
        (dict(captions={}, class_key="kind"), "text.class_key: the records have no 'kind'; there are image"),
        (
            dict(captions={}, class_key="category", label_set=["a"]),
            "text: classes: there are 1 names for the 10",
        ),
        (dict(prompts=("a photo",)), "text: templates: 'a photo' has no {}, the place of the class name"),
        (dict(prompts="nowhere.txt"), "text: .*nowhere.txt"),
    ],
)
def test_texts_that_a_source_can_not_give_are_named_before_anything_slow(text, message, config):
    data = config["streams"]["pairs"]["data"]
    wrong = dict(data, sources=(data["sources"][0], drawings("fxemoji", 1.0, **text)))
    changed = config | dict(streams=dict(pairs=dict(config["streams"]["pairs"], data=wrong)))
    with pytest.raises(RequirementsError, match=rf"^streams\.pairs\.data\.sources\.1\.fields\.{message}"):
        streams.open_streams(changed, build.tokenizer(changed))

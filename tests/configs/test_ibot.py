"""iBOT's recipes: the published values, and presets that are small changes to them."""

import jax
import pytest

from big_ssl.config import validate
from big_ssl.models.flops import forward_flops
from big_ssl.parallel.mesh import make_mesh
from big_ssl.training import batches, build, flops, schedules
from big_ssl.training import state as state_lib
from configs import ibot


def get(arg=""):
    return ibot.get_config(arg).to_dict()


@pytest.mark.parametrize(
    ("model", "epochs", "peak", "millions"),
    [("vits16", 800, 2e-3, 21.7), ("vitb16", 400, 3e-3, 85.8), ("vitl16", 250, 3e-3, 303.3)],
)
def test_the_published_values(model, epochs, peak, millions):
    config = get(model)
    validate(config)
    images = config["streams"]["images"]
    assert (images["batch_size"], config["total_steps"] // 1_251) == (1_024, epochs)
    assert config["learning_rate"]["peak"] == peak
    fields = images["data"]["fields"]
    assert [fields[name]["crop"]["count"] for name in ("global_crops", "local_crops")] == [2, 10]
    assert fields["global_crops"]["blur_prob"] == (1.0, 0.1)
    assert fields["global_crops"]["solarize_prob"] == (0.0, 0.2)
    assert images["objectives"]["dino"]["head"]["prototypes"] == 8_192
    system = build.system(config, make_mesh(config["mesh"], jax.devices()[:1]))
    params, _ = jax.eval_shape(lambda: system.init(jax.random.key(0), batches.abstract_batch(config)))
    tower = params["encoders"]["image"]
    assert sum(leaf.size for leaf in jax.tree.leaves(tower)) / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_schedules_of_the_small_model():
    config = get("vits16")
    total, epoch = config["total_steps"], 1_251
    average, decay = (
        schedules.build(value, total) for value in (config["ema"], config["optimizer"]["weight_decay"])
    )
    assert [float(average(step)) for step in (0, total)] == pytest.approx([0.996, 1.0])
    assert [float(decay(step)) for step in (0, total)] == pytest.approx([0.04, 0.4])
    patch = schedules.build(config["streams"]["images"]["objectives"]["ibot"]["teacher_temperature"], total)
    assert [float(patch(step)) for step in (0, 15 * epoch, 30 * epoch, total)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )
    ((pattern, factor),) = config["lr_multipliers"]
    last_layer = schedules.build(factor, total)
    assert (pattern, [float(last_layer(step)) for step in (0, epoch - 1, epoch)]) == (
        "/prototype",
        [0, 0, 1],
    )


@pytest.mark.parametrize("model", ["vits16", "vitb16", "vitl16"])
@pytest.mark.parametrize("preset", ["demo", "tiny"])
def test_presets_have_the_keys_of_the_recipe_and_are_valid(model, preset):
    full, small = get(model), get(f"{model},{preset}")
    validate(small)
    assert full.keys() == small.keys()
    for key in ("mesh", "optimizer", "learning_rate", "checkpoint", "failure_limits", "eval_transform"):
        assert full[key].keys() == small[key].keys()
    assert full["encoders"]["image"].keys() == small["encoders"]["image"].keys()


def test_what_no_objective_reads_is_not_loaded():
    """With the first objective's small crops off, nothing reads them."""
    config = get("tiny")
    assert set(build.stream_fields("images", config)) == {"global_crops", "local_crops"}
    config["streams"]["images"]["objectives"]["dino"]["local"] = False
    assert set(build.stream_fields("images", config)) == {"global_crops"}
    assert set(batches.abstract_batch(config)["images"]) == {"global_crops"}


def test_a_teachers_arithmetic_is_counted_once():
    """Of a step: three times the student's forward pass, and once the teacher's."""
    config = get("tiny")
    for width in (64, 128):
        config["encoders"]["image"]["width"] = width
        made = build.system(config, make_mesh(config["mesh"], jax.devices()[:1]))
        batch = batches.abstract_global_batch(config, None)
        params, mutable = jax.eval_shape(
            lambda made=made: made.init(jax.random.key(0), batches.abstract_batch(config))
        )
        state = state_lib.TrainState(
            step=jax.ShapeDtypeStruct((), int), params=params, opt_state=(), mutable=mutable,
            ema=state_lib.averaged(params, mutable), counters={},
        )  # fmt: skip
        total = flops.model_flops_per_step(made, state, batch)
        key = jax.eval_shape(lambda: jax.random.key(0))
        teacher = forward_flops(made.teacher_features, state.ema, batch, key)
        # The teacher sees two crops of 16 patches, the student those and two of 4.
        tokens = {"teacher": 2 * 17, "student": 2 * 17 + 2 * 5}
        layer = 2 * 12 * width**2
        for who, found in (("teacher", teacher), ("student", (total - teacher) / 3)):
            assert found > 16 * tokens[who] * layer
            assert found < 1.6 * 16 * tokens[who] * layer + 16 * 50_000

"""DINOv2's recipes: the published values; and the hybrid, which lists objectives and adds nothing."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from big_ssl.config import validate
from big_ssl.models.vit import ViT
from big_ssl.parallel.mesh import make_mesh
from big_ssl.training import batches, build, initial, schedules
from big_ssl.training.lr_multipliers import LrMultipliers
from configs import dinov2, dinov2_continue, dinov2_distill, hybrid_clip_dinov2

PRESETS = ("", "as_released", "highres", "demo", "tiny")
HALVES = tuple(f"{size}{half}" for size in ("demo", "tiny") for half in ("_contrastive", "_self_supervised"))


def get(*words):
    return dinov2.get_config(",".join(filter(None, words))).to_dict()


def system(config):
    return build.system(config, make_mesh(config["mesh"], jax.devices()[:1]))


def counts(config):
    """{part: number of parameters}."""
    made = system(config)
    params, _ = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))
    parts = params["encoders"] | params["heads"]
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in parts.items()}


@pytest.mark.parametrize(
    ("model", "batch", "steps", "peak", "drop_path", "average", "decay"),
    [
        ("vitl16_short", 2_048, 125_000, 5.66e-3, 0.3, 0.992, 0.4),
        ("vitl14", 3_072, 625_000, 3.46e-4, 0.4, 0.994, 0.2),
        ("vitg14", 3_072, 625_000, 3.46e-4, 0.4, 0.994, 0.2),
    ],
)
def test_the_published_values(model, batch, steps, peak, drop_path, average, decay):
    config = get(model)
    images = config["streams"]["images"]
    assert (images["batch_size"], config["total_steps"]) == (batch, steps)
    assert config["learning_rate"]["peak"] == pytest.approx(peak, rel=2e-3)
    assert config["encoders"]["image"]["drop_path"] == drop_path
    assert float(schedules.build(config["ema"], steps)(0)) == pytest.approx(average)
    assert float(schedules.build(config["optimizer"]["weight_decay"], steps)(steps)) == pytest.approx(decay)
    fields = images["data"]["fields"]
    assert [fields[name]["crop"]["count"] for name in ("global_crops", "local_crops")] == [2, 8]
    assert {name: term["weight"] for name, term in images["objectives"].items()} == dict(
        dino=1.0, ibot=1.0, koleo=0.1
    )
    temperature = schedules.build(images["objectives"]["dino"]["teacher_temperature"], steps)
    assert [float(temperature(i)) for i in (0, 37_500, steps)] == pytest.approx([0.04, 0.07, 0.07])


@pytest.mark.parametrize("model", ["vitl16_short", "vitl14", "vitg14"])
def test_the_last_phase_has_the_same_schedules_in_fewer_steps(model):
    config, full = get(model, "highres"), get(model)
    shorter = config["total_steps"] / full["total_steps"]
    for name in ("dino", "ibot"):
        before, after = (
            each["streams"]["images"]["objectives"][name]["teacher_temperature"]["warmup_steps"]
            for each in (full, config)
        )
        assert after == int(before * shorter)
    assert config["learning_rate"]["warmup_steps"] == int(full["learning_rate"]["warmup_steps"] * shorter)


def test_the_number_of_parameters_at_518_pixels():
    """Published: 1,136,480,768 of the backbone; the heads' from their layers."""
    found = counts(get("vitg14", "highres"))
    assert found == dict(image=1_136_480_768, dino=58_593_664, ibot=41_554_176, koleo=0)
    assert set(counts(get("vitl16_short"))) == {"image", "dino", "koleo"}  # one head for both


@pytest.mark.parametrize("model", ["vitl16_short", "vitl14", "vitg14"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_keys_of_the_recipe_and_are_valid(model, preset):
    full, config = get(model), get(model, preset)
    validate(config)
    assert full.keys() == config.keys()
    for key in ("mesh", "optimizer", "learning_rate", "checkpoint", "failure_limits", "eval_transform"):
        assert full[key].keys() == config[key].keys()
    assert full["encoders"]["image"].keys() == config["encoders"]["image"].keys()


def test_the_released_codes_blur_is_the_papers_turned_round():
    for preset, probs in (("", (1.0, 0.1)), ("as_released", (0.0, 0.9))):
        fields = get("vitl14", preset)["streams"]["images"]["data"]["fields"]
        assert fields["global_crops"]["blur_prob"] == probs


@pytest.mark.parametrize("preset", ["", "contrastive", "self_supervised", "demo", "tiny", *HALVES])
def test_the_hybrids_presets_are_valid(preset):
    validate(hybrid_clip_dinov2.get_config(preset).to_dict())


def test_the_hybrid_runs_each_pass_once(monkeypatch):
    """Four objectives: the picture with its text, masked crops, small crops, and the teacher's crops."""
    config = hybrid_clip_dinov2.get_config("tiny").to_dict()
    made = system(config)
    params, mutable = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))
    batch = batches.abstract_global_batch(config, None)
    seen, original = [], ViT.__call__

    def spy(self, images, train=False, mask=None, **rest):
        several = isinstance(images, tuple)
        pairs = zip(images, mask, strict=True) if several else [(images, mask)]
        seen.append((train, [(*x.shape[:2], m is not None) for x, m in pairs]))
        return original(self, images, train=train, mask=mask, **rest)

    monkeypatch.setattr(ViT, "__call__", spy)
    teacher = dict(params=params, encoders=mutable["encoders"])
    jax.eval_shape(lambda p, b, t: made.features(p, mutable, b, jax.random.key(0), t), params, batch, teacher)
    assert seen == [
        (True, [(16, 32, False), (32, 32, True), (32, 16, False)]),  # all of the student's, together
        (False, [(32, 32, False)]),
    ]
    assert set(made.terms) == {"contrastive", "dino", "ibot", "koleo"}


def test_what_fits_twelve_pictures_is_not_kept_of_sixty_four():
    assert get("vitg14")["remat"] == "dots"
    assert get("vitg14", "highres")["remat"] == "full"
    for student in ("vits14", "vitb14", "vitl14"):
        assert dinov2_distill.get_config(student)["remat"] == "full"


def test_a_distilled_student_has_a_frozen_teacher_that_sees_the_large_crops():
    """No average teaches, nothing is masked, and only the student's half of the heads learns."""
    for student in ("vits14", "vitb14", "vitl14"):
        for preset in ("", "demo", "tiny"):
            config = dinov2_distill.get_config(f"{student},{preset}".rstrip(",")).to_dict()
            validate(config)
            passes = [(i.encoder, i.view, i.masked, i.teacher) for _, i in system(config).encoder_calls()]
            assert passes == [
                ("image", "global_crops", False, False),
                ("image", "local_crops", False, False),
                ("teacher", "global_crops", False, False),
            ]
            lr_multipliers = LrMultipliers.build(config["lr_multipliers"], config["total_steps"])
            assert lr_multipliers.frozen("encoders/teacher/class_token")
            assert lr_multipliers.frozen("heads/ibot/teacher_projection/prototypes")
            assert not lr_multipliers.frozen("heads/ibot/projection/prototypes")


def test_a_student_starts_from_its_teachers_run():
    """The tower and both heads of a run become the teacher's; the student's own start from scratch."""
    config = dinov2_distill.get_config("tiny").to_dict()
    rules = dinov2_distill.get_config("demo").to_dict()["init_from"]
    made = system(config)
    params, _ = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))
    taught = get("vitg14", "tiny")
    weights, _ = jax.jit(lambda: system(taught).init(jax.random.key(1), batches.abstract_batch(taught)))()
    flat = flatten_dict(dict(params=weights), sep="/")
    found = initial._matched(
        flatten_dict(initial._remapped(unflatten_dict(flat, sep="/"), rules["remap"], {}), sep="/"),
        flatten_dict(dict(params=params, encoders={}), keep_empty_nodes=True, sep="/"),
        rules["exclude"],
        made.encoders,
    )["params"]
    table = found["encoders"]["teacher"]["position_embedding"]
    np.testing.assert_array_equal(table, weights["encoders"]["image"]["position_embedding"])
    own, teachers = (found["heads"]["dino"][part] for part in ("projection", "teacher_projection"))
    assert own["prototypes"] is None
    np.testing.assert_array_equal(
        teachers["prototypes"], weights["heads"]["dino"]["projection"]["prototypes"]
    )
    assert found["encoders"]["image"]["class_token"] is None


def test_gram_is_one_more_term():
    """Beside the others it reads passes that are there; with a frozen encoder for a teacher, one more."""
    config = get("vitl14", "tiny")
    objectives = config["streams"]["images"]["objectives"]
    before = list(system(config).encoder_calls())
    objectives["gram"] = dict(kind="gram", weight=2.0)
    validate(config)
    assert list(system(config).encoder_calls()) == before
    config["encoders"]["gram"] = dict(config["encoders"]["image"])
    objectives["gram"].update(teacher="gram")
    added = [item for _, item in system(config).encoder_calls() if ("images", item) not in before]
    assert [(item.encoder, item.masked, item.teacher) for item in added] == [("gram", False, False)]


def test_grams_teacher_may_see_larger_crops():
    """Its pass has the crops as they come, all others the same at half the size; downsample has to be set."""
    config = get("vitl14", "tiny")
    images = config["streams"]["images"]
    images["objectives"] = dict(gram=dict(kind="gram", weight=2.0, teacher="gram", high_res=True))
    config["encoders"]["gram"] = dict(config["encoders"]["image"])
    with pytest.raises(ValueError, match=r"^gram reads global_crops high_res; .*crops.downsample must"):
        system(config)
    images["data"]["fields"]["global_crops"]["crop"].update(size=64)
    images["data"]["fields"]["global_crops"].update(downsample=2)
    made, seen = system(config), {}
    batch = {"images": {"global_crops": np.zeros((2, 2, 64, 64, 3), np.uint8)}}
    params, _ = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))

    def loss(params):
        kept = dict(encoders=dict(image={}, gram={}), objectives=dict(gram={}))
        features, _ = made.features(params, kept, batch, jax.random.key(1))
        found = features["gram"]
        seen.update(own=found["patches"].shape, taught=found["teacher"]["patches"].shape)
        return made.loss(params, kept, batch, jax.random.key(1), 0)[0]

    assert jax.eval_shape(loss, params).shape == ()
    assert (seen["own"][:3], seen["taught"][:3]) == ((2, 2, 16), (2, 2, 64))


@pytest.mark.parametrize(
    ("preset", "registers"), [("vits14", 0), ("vitb14_reg", 4), ("vitl14", 0), ("vitg14_reg", 4)]
)
def test_published_models_train_on_heads_first(preset, registers):
    """The tower is that of the published files, and does not move before the heads know something."""
    config = dinov2_continue.get_config(preset).to_dict()
    validate(config)
    tower = config["encoders"]["image"]
    assert (tower["registers"], tower["image_size"]) == (registers, 518)
    expected = dict(vits14=22_056_576, vitb14=86_580_480, vitl14=304_368_640, vitg14=1_136_480_768)
    assert counts(config)["image"] == expected[preset.partition("_")[0]] + registers * tower["width"]
    lr_multipliers = LrMultipliers.build(config["lr_multipliers"], config["total_steps"])
    params = dict(encoders=dict(image=0.0), heads=dict(dino=0.0))
    factors = [lr_multipliers.factors(params, step) for step in (0, 1_249, 1_250)]
    assert [(float(f["encoders"]["image"]), float(f["heads"]["dino"])) for f in factors] == [
        (0, 1),
        (0, 1),
        (pytest.approx(0.1), 1),
    ]

"""The average's momentum: constant, warmed up, or a schedule; and whose average is kept."""

import jax
import pytest

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import schedules
from big_ssl.training.model import build_model
from configs import dinov2_distill


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.9, [0.9, 0.9, 0.9]),
        (dict(kind="warmup", momentum=0.9), [0.1, 2 / 11, 0.9]),
        (dict(kind="cosine", peak=0.9, warmup_steps=0, final=1.0), [0.9, 0.9, 1.0]),
    ],
)
def test_momentum(value, expected):
    momentum = schedules.ema_momentum(value, 1000)
    assert [float(momentum(step)) for step in (0, 1, 1000)] == pytest.approx(expected, abs=1e-5)


def test_the_teacher_of_a_distillation_is_kept_once():
    mesh = mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    state = jax.eval_shape(build_model(dinov2_distill.get_config("tiny").to_dict(), mesh).init)
    assert set(state.params["encoders"]) == {"image", "teacher"}
    assert set(state.ema["params"]["encoders"]) == {"image"}
    assert set(state.ema["params"]["heads"]["dino"]) == {"projection"}

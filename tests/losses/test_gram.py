"""Gram anchoring against the paper's matrices."""

import jax
import numpy as np

from big_ssl.losses.gram import gram

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 3, 5, 4)), RNG.normal(size=(2, 3, 5, 7))


def cosines(x):
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return x @ x.swapaxes(-1, -2)


def test_the_loss_is_the_mean_squared_difference_of_cosines():
    expected = ((cosines(STUDENT) - cosines(TEACHER)) ** 2).mean()
    np.testing.assert_allclose(gram(STUDENT, TEACHER), expected, rtol=1e-5)


def test_the_loss_is_invariant_to_rotation_and_scale():
    rotation, _ = np.linalg.qr(RNG.normal(size=(4, 4)))
    assert float(gram(STUDENT, 3.0 * STUDENT @ rotation)) < 1e-10


def test_a_larger_teacher_map_is_resized_as_in_pytorch():
    """To half the size: Keys' cubic with a = -0.75 has four taps per axis around a patch's centre."""
    taps = np.array([-3, 19, 19, -3]) / 32
    halving = np.zeros((4, 8))
    for position in range(4):
        for tap, weight in enumerate(taps):
            halving[position, np.clip(2 * position - 1 + tap, 0, 7)] += weight
    student, teacher = RNG.normal(size=(2, 16, 4)), RNG.normal(size=(2, 64, 7))
    smaller = np.einsum("ih,jw,bhwd->bijd", halving, halving, teacher.reshape(2, 8, 8, 7))
    smaller = smaller.reshape(2, 16, 7)
    expected = ((cosines(student) - cosines(smaller)) ** 2).mean()
    np.testing.assert_allclose(gram(student, teacher), expected, rtol=1e-5)


def test_only_the_student_has_a_gradient():
    student_grad, teacher_grad = jax.grad(gram, (0, 1))(np.float32(STUDENT), np.float32(TEACHER))
    assert np.abs(teacher_grad).max() == 0
    step = 1e-5 * RNG.normal(size=STUDENT.shape)
    slope = [((cosines(STUDENT + sign * step) - cosines(TEACHER)) ** 2).mean() for sign in (1, -1)]
    np.testing.assert_allclose((student_grad * step).sum(), (slope[0] - slope[1]) / 2, rtol=1e-3)

"""Gram anchoring against the paper's matrices."""

import jax
import numpy as np

from big_ssl.losses.gram import gram

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 3, 5, 4)), RNG.normal(size=(2, 3, 5, 7))


def cosines(x):
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return x @ x.swapaxes(-1, -2)


def test_the_mean_square_between_matrices_of_cosines():
    expected = ((cosines(STUDENT) - cosines(TEACHER)) ** 2).mean()
    np.testing.assert_allclose(gram(STUDENT, TEACHER), expected, rtol=1e-5)


def test_features_may_turn():
    turn, _ = np.linalg.qr(RNG.normal(size=(4, 4)))
    assert float(gram(STUDENT, 3.0 * STUDENT @ turn)) < 1e-10


def test_a_map_of_more_patches_is_made_smaller_as_pytorch_does():
    """To half the size: a patch is the four around its middle either way, by Keys' cubic of -0.75."""
    taps = np.array([-3, 19, 19, -3]) / 32
    halving = np.zeros((4, 8))
    for place in range(4):
        for tap, weight in enumerate(taps):
            halving[place, np.clip(2 * place - 1 + tap, 0, 7)] += weight
    student, teacher = RNG.normal(size=(2, 16, 4)), RNG.normal(size=(2, 64, 7))
    smaller = np.einsum("ih,jw,bhwd->bijd", halving, halving, teacher.reshape(2, 8, 8, 7))
    smaller = smaller.reshape(2, 16, 7)
    expected = ((cosines(student) - cosines(smaller)) ** 2).mean()
    np.testing.assert_allclose(gram(student, teacher), expected, rtol=1e-5)


def test_only_the_student_has_a_gradient():
    by_student, by_teacher = jax.grad(gram, (0, 1))(np.float32(STUDENT), np.float32(TEACHER))
    assert np.abs(by_teacher).max() == 0
    step = 1e-5 * RNG.normal(size=STUDENT.shape)
    slope = [((cosines(STUDENT + sign * step) - cosines(TEACHER)) ** 2).mean() for sign in (1, -1)]
    np.testing.assert_allclose((by_student * step).sum(), (slope[0] - slope[1]) / 2, rtol=1e-3)

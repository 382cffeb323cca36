"""Gram anchoring (Siméoni et al. 2025, arXiv 2508.10104, section 4)."""

import jax
import jax.numpy as jnp

from big_ssl.losses.contrastive import l2_normalize


def gram(student, teacher):
    """How far the cosines between a crop's patches are from the teacher's: float32[], the mean square.

    student, teacher: [..., N, D], the patches of crops; lengths do not count, the widths may differ. No
    gradient goes to the teacher. The features themselves may turn as they like: only what is alike is held.
    """
    return jnp.mean((_cosines(student) - jax.lax.stop_gradient(_cosines(teacher))) ** 2)


def _cosines(patches):
    x = l2_normalize(patches.astype(jnp.float32))
    return jnp.einsum("...nd,...md->...nm", x, x, precision="highest")

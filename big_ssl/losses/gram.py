"""Gram anchoring (Siméoni et al. 2025, arXiv 2508.10104, section 4)."""

import math

import jax
import jax.numpy as jnp

from big_ssl.losses.contrastive import l2_normalize


def gram(student, teacher):
    """How far the cosines between a crop's patches are from the teacher's: float32[], the mean square.

    student, teacher: [..., N, D], the patches of square crops; lengths do not count, the widths may differ,
    and a map of more patches is made as small as the student's first (the paper's L_HRef). No gradient goes
    to the teacher. The features themselves may turn as they like: only what is alike is held.
    """
    teacher = jax.lax.stop_gradient(_fitted(teacher, student.shape[-2]))
    return jnp.mean((_cosines(student) - _cosines(teacher)) ** 2)


def _fitted(patches, places):
    """Bicubic, not antialiased: as published."""
    *rest, before, width = patches.shape
    if before == places:
        return patches
    old, new = math.isqrt(before), math.isqrt(places)
    x = patches.reshape(*rest, old, old, width)
    x = jax.image.resize(x, (*rest, new, new, width), "cubic-pytorch", antialias=False)
    return x.reshape(*rest, places, width)


def _cosines(patches):
    x = l2_normalize(patches.astype(jnp.float32))
    return jnp.einsum("...nd,...md->...nm", x, x, precision="highest")

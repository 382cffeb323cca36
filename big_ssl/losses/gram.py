"""Gram anchoring (Siméoni et al. 2025, arXiv 2508.10104, section 4)."""

import math

import jax
import jax.numpy as jnp

from big_ssl.losses.contrastive import l2_normalize


def gram(student, teacher):
    """The mean squared difference between the student's and the teacher's patch cosines: float32[].

    student, teacher: [..., N, D], the patches of square crops; D may differ. A teacher with more patches is
    first resized to the student's N (the paper's L_HRef). No gradient goes to the teacher. Only similarities
    are constrained; the features may rotate freely.
    """
    teacher = jax.lax.stop_gradient(_resize(teacher, student.shape[-2]))
    return jnp.mean((_cosines(student) - _cosines(teacher)) ** 2)


def _resize(patches, count):
    """[..., N, D] -> [..., count, D]. Bicubic, not antialiased: as published."""
    *batch, length, width = patches.shape
    if length == count:
        return patches
    old, new = math.isqrt(length), math.isqrt(count)
    x = patches.reshape(*batch, old, old, width)
    x = jax.image.resize(x, (*batch, new, new, width), "cubic-pytorch", antialias=False)
    return x.reshape(*batch, count, width)


def _cosines(patches):
    x = l2_normalize(patches.astype(jnp.float32))
    return jnp.einsum("...nd,...md->...nm", x, x, precision="highest")

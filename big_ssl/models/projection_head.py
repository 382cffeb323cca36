"""The head of DINO, iBOT and DINOv2: an MLP to a bottleneck, then similarities to prototypes."""

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.contrastive import l2_normalize

# The MLP has a normal initialisation (the published truncation, at 100 deviations, cuts nothing); the
# prototypes have PyTorch's default, as in the authors' code.
_INIT = nn.initializers.normal(0.02)
_PROTOTYPES = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ProjectionHead(nn.Module):
    """x: [..., D] -> float32[..., prototypes] (Caron et al. 2021, arXiv 2104.14294, appendix C).

    An MLP of `layers` linear layers, the last into a bottleneck, with GELU between them. The bottleneck's
    output and the prototypes are L2-normalised: a prototype's logit is a cosine times the prototype's length.
    norm_last_layer: whether the prototypes' lengths stay 1; False trains them, from 1 (iBOT's authors do for
    small models).
    """

    prototypes: int
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    norm_last_layer: bool = True
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        widths = (*(self.hidden,) * (self.layers - 1), self.bottleneck)
        self.mlp = [nn.Dense(width, kernel_init=_INIT, dtype=self.dtype) for width in widths]
        self.direction = self.param("prototypes", _PROTOTYPES, (self.bottleneck, self.prototypes))
        if not self.norm_last_layer:
            self.length = self.param("prototype_lengths", nn.initializers.ones, (self.prototypes,))

    def __call__(self, x):
        return jnp.matmul(
            self.project(x).astype(self.dtype),
            self.kernel().astype(self.dtype),
            preferred_element_type=jnp.float32,
        )

    def project(self, x):
        """[..., D] -> [..., bottleneck], of length 1."""
        for i, layer in enumerate(self.mlp):
            x = layer(x)
            if i < self.layers - 1:
                x = nn.gelu(x, approximate=False)
        return l2_normalize(x.astype(jnp.float32))

    def kernel(self):
        """float32[bottleneck, prototypes], the prototypes as columns: logits are products of points with
        it."""
        kernel = l2_normalize(self.direction.T).T
        return kernel if self.norm_last_layer else kernel * self.length

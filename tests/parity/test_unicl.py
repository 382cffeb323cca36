"""UniCL's loss against PyTorch's cross-entropy with soft targets, in float64, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.data.fields.identity import hashed
from big_ssl.losses.contrastive import softmax_contrastive
from big_ssl.losses.pairwise import IMPLEMENTATIONS, Pairwise

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
pytestmark = pytest.mark.parity

N, D, SCALE = 40, 12, 9.0
CAPTIONED = 0  # the label of an example with a caption, which equals nothing but itself


def triplets(seed):
    """image, text: float64[N, D], not normalised; label: int[N]; valid: bool[N], False for padding."""
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, N, D))
    label = rng.integers(1, 7, N) * (rng.random(N) < 0.6)
    return image, text, label, rng.random(N) < 0.8


def keys(label):
    """uint32[N, 2] in two namespaces: classes by label, captions by their own text."""
    captions = [hashed(f"caption {place}", b"text") for place in range(len(label))]
    classes = [hashed(str(number), b"class") for number in label]
    return np.where((label == CAPTIONED)[:, None], captions, classes)


def torch_loss(image, text, scale, label):
    """Algorithm 1 of arXiv 2204.03610, by its description: the mean of both directions."""
    image, text = (torch.nn.functional.normalize(x, dim=1) for x in (image, text))
    logits = scale * image @ text.T
    place = torch.arange(len(label)) + 1 + label.max()
    label = torch.where(label == CAPTIONED, place, label)
    same = (label[:, None] == label[None]).double()
    cross_entropy = torch.nn.functional.cross_entropy
    rows, columns = same / same.sum(1, keepdim=True), (same / same.sum(0, keepdim=True)).T
    return (cross_entropy(logits, rows) + cross_entropy(logits.T, columns)) / 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_gradients(seed, implementation):
    image, text, label, valid = triplets(seed)
    tensors = [torch.tensor(x, requires_grad=True) for x in (image, text, SCALE)]
    expected = torch_loss(tensors[0][valid], tensors[1][valid], tensors[2], torch.tensor(label[valid]))
    expected.backward()

    def ours(image, text, scale):
        image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
        pairwise = Pairwise(implementation, None, tile=16)
        loss, _ = softmax_contrastive(
            image, text, 1 / scale, positives=keys(label), pairwise=pairwise, valid=valid
        )
        return loss / 2

    arguments = [jnp.float32(x) for x in (image, text, SCALE)]
    loss, grads = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(*arguments)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for grad, tensor in zip(grads, tensors, strict=True):
        reference = tensor.grad.numpy()
        assert np.abs(grad - reference).max() < 1e-5 * np.abs(reference).max()

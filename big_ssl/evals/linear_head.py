"""What a published linear head says of labelled pictures (DINOv2, arXiv 2304.07193)."""

from collections.abc import Mapping, Sequence

import flax.linen as nn

from big_ssl.data.sources import SourceConfig
from big_ssl.evals.classification import judged
from big_ssl.evals.labelled_set import LabelledSet
from big_ssl.models import vit
from big_ssl.weights.linear_heads import BLOCKS, read_head


class LinearHead:
    """Pictures by the largest logit of a linear head from a file, on the frozen tower that it was trained on.

    head: a file as in weights.linear_heads. test, label, classes: as in LabelledSet, in the order of the
    head's classes. Of a head of ImageNet's 1000, and a set classified into some of them (ImageNet-A, -R), the
    others are left out.
    """

    def __init__(
        self,
        head: str,
        test: SourceConfig,
        label: str = "label",
        classes: str | Sequence[str] = "",
        *,
        name: str,
    ):
        self._weight, self._bias = read_head(head)
        self._data, self._name = LabelledSet(test, label, classes), name
        count, own = len(self._data.names), len(self._bias)
        if count != own and own == 1000 and self._data.imagenet:
            places = list(self._data.imagenet)
            self._weight, self._bias = self._weight[places], self._bias[places]
        elif count != own:
            raise ValueError(f"linear_head: the data has {count} classes, {head} {own}")

    def check(self, tower: nn.Module) -> None:
        """Raises ValueError where this image tower does not give what the head reads."""
        blocks(tower, self._weight.shape[1])

    def metrics(self, embedder) -> dict[str, float]:
        """{"linear_head/<name>/<metric>": fraction}; see evals.zero_shot.scores. Of five classes or fewer
        there is no top5."""

        def logits(images):
            read = embedder.inside(head_input, images, self._weight.shape[1])
            return read @ self._weight.T + self._bias

        found = judged(self._data, logits, embedder, f"{self._name}: pictures")
        if len(self._bias) <= 5:
            del found["top5"]
        return {f"linear_head/{self._name}/{metric}": value for metric, value in found.items()}


def head_input(model: vit.ViT, variables: Mapping, images, size: int):
    """What a head that reads `size` numbers is given: float32[B, size], see weights.linear_heads.

    images: as in vit.layer_tokens. Raises ValueError as `blocks` does.
    """
    return vit.layer_tokens(model, variables, images, blocks(model, size)).reshape(len(images), size)


def blocks(tower: nn.Module, size: int) -> int:
    """Of how many layers a head that reads `size` numbers reads the class tokens.

    Raises ValueError where this image tower is none that such a head was trained on.
    """
    vit.check_layers(tower, min(BLOCKS))
    sizes = {(count + 1) * tower.width: count for count in BLOCKS}
    if size not in sizes:
        right = " or ".join(f"{numbers} (blocks: {count})" for numbers, count in sizes.items())
        raise ValueError(
            f"linear_head: the head reads {size} numbers; on this image tower, of width {tower.width}, "
            f"it must read {right}"
        )
    vit.check_layers(tower, sizes[size])
    return sizes[size]

"""Shared by the formats with a Swin or Swin V2: rules and architecture."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import IMAGE, count, grid_side, shape_of
from big_ssl.weights.rules import CONVOLUTION, LINEAR, SAME, Rule, Transform, leading, norm, within

# [heads, 1, 1] as [heads].
LOG_SCALE = Transform(lambda x: (x[:, 0, 0],), lambda xs: xs[0][:, None, None])


class Names(NamedTuple):
    """A format's names: of the patches' linear layer, their norm, the mask token, what stands before a
    stage's number, and the last norm; of a block's position table, first linear layer of the MLP and, in Swin
    V2, scale of the cosines."""

    projection: str
    patch_norm: str
    mask_token: str
    stages: str
    final_norm: str
    table: str
    mlp_in: str
    log_scale: str


def rules(image: Mapping, names: Names, block: Sequence[Rule]) -> list[Rule]:
    """The rules of a Swin.

    Args:
      image: the encoder's options.
      names: the format's.
      block: the rules of one block.
    """
    result = [
        Rule(f"{names.projection}.weight", ("patch_embedding/projection/kernel",), CONVOLUTION),
        Rule(f"{names.projection}.bias", ("patch_embedding/projection/bias",), SAME),
        *norm(names.patch_norm, "patch_embedding/patch_norm"),
        Rule(names.mask_token, ("mask_token",), leading(2)),
        *norm(names.final_norm, "final_norm"),
    ]
    for stage, depth in enumerate(image["depths"]):
        for i in range(depth):
            ours = f"stage{stage}_pair{i // 2}/{'shifted' if i % 2 else 'plain'}/"
            result += within(f"{names.stages}{stage}.blocks.{i}.", ours, block)
    merging = f"{names.stages}{{i}}.downsample."
    result.append(Rule(f"{merging}reduction.weight", ("merging{i}/reduction/kernel",), LINEAR))
    return within("", IMAGE, [*result, *norm(f"{merging}norm", "merging{i}/patch_norm")])


def shape(tensors: Mapping, names: Names) -> dict:
    """Infers the options of models.swin that the arrays determine: not the window of Swin V2."""
    depths = _depths(tensors, names)
    blocks = [f"{names.stages}{i}.blocks.0." for i in range(len(depths))]
    width = shape_of(tensors, f"{names.projection}.weight", 4)[0]
    mlp_dim = shape_of(tensors, f"{blocks[0]}{names.mlp_in}.weight", 2)[0]
    options = dict(
        kind="swin",
        width=width,
        depths=depths,
        mlp_ratio=mlp_dim / width,
        mask_token=names.mask_token in tensors,
        version=2 if f"{blocks[0]}{names.log_scale}" in tensors else 1,
    )
    if options["version"] == 2:
        return options | dict(heads=[shape_of(tensors, f"{b}{names.log_scale}", 3)[0] for b in blocks])
    tables = [shape_of(tensors, f"{block}{names.table}", 2) for block in blocks]
    sides = [grid_side(rows, f"{b}{names.table}") for b, (rows, _) in zip(blocks, tables, strict=True)]
    windows = [(side + 1) // 2 for side in sides]
    return options | dict(heads=[heads for _, heads in tables], window=one_or_all(windows))


def _depths(tensors, names):
    pattern = names.stages.replace(".", r"\.")
    stages = count(tensors, rf"{pattern}(\d+)\.blocks\.")
    depths = [count(tensors, rf"{pattern}{i}\.blocks\.(\d+)\.") for i in range(stages)]
    if not depths:
        raise WeightsError(
            f"{names.stages}0.blocks.0 is missing; is it another format? there is "
            f"{next(iter(tensors), 'nothing')}"
        )
    return depths


def one_or_all(values: Sequence[int]):
    """One number for all stages if they have the same, otherwise the list."""
    return values[0] if len(set(values)) == 1 else list(values)


def clamped(window: int, image_size: int, stages: int):
    """The windows of a model that was built for images of this size: in each stage at most its map's side."""
    return one_or_all([max(1, min(window, image_size // (4 * 2**i))) for i in range(stages)])

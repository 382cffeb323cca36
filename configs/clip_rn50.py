"""CLIP's ResNet-50, by presets also `rn101`, `rn50x4`, `rn50x16` and `rn50x64`; see configs/clip.py."""

from configs import clip


def get_config(arg: str = ""):
    """The recipe, one of its presets, or changes to it."""
    return clip.get_config("rn50", arg, **{name: name for name in ("rn101", "rn50x4", "rn50x16", "rn50x64")})

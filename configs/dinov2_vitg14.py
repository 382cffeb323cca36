"""DINOv2's ViT-g/14; see configs/dinov2.py."""

from configs import dinov2


def get_config(arg: str = ""):
    """The recipe, one of its presets, or changes to it."""
    return dinov2.get_config("vitg14", arg)

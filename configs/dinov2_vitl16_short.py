"""DINOv2's ViT-L/16, the short run on ImageNet-1k; see configs/dinov2.py."""

from configs import dinov2


def get_config(arg: str = ""):
    """The recipe, one of its presets, or changes to it."""
    return dinov2.get_config("vitl16_short", arg)

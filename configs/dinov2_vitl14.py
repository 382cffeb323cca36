"""DINOv2's ViT-L/14 on ImageNet-22k; see configs/dinov2.py."""

from configs import dinov2


def get_config(arg: str = ""):
    """The recipe, one of its presets, or changes to it."""
    return dinov2.get_config("vitl14", arg)

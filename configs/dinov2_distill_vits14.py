"""DINOv2's ViT-S/14, taught by ViT-g; see configs/dinov2_distill.py."""

from configs import dinov2_distill


def get_config(arg: str = ""):
    """The recipe, one of its presets, or changes to it."""
    return dinov2_distill.get_config("vits14", arg)

"""Vision foundation models in JAX: CLIP, ALIGN, iBOT, DINOv2 and Florence, trained by one step."""

__version__ = "0.2.0"


def load(path, dtype: str = "float32"):
    """The model in a folder that `python -m big_ssl.convert` wrote, or that a run trained in.

    Returns a big_ssl.inference.Model: encode_image, encode_text, patch_features.
    """
    from big_ssl import inference  # here, so that importing the package stays quick

    return inference.load(path, dtype)

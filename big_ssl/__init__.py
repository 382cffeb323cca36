"""Vision foundation models in JAX: CLIP, ALIGN, iBOT, DINOv2 and Florence, trained by one step."""

__version__ = "0.2.0"


def load(path, dtype: str = "float32"):
    """Loads a model from the output of `python -m big_ssl.convert`, or from a run's workdir.

    Returns a big_ssl.inference.Model, whose methods follow from the model: encode_image, patch_features,
    encode_text, zero_shot, classify, intermediate_layers.
    """
    from big_ssl import inference  # imported here to keep `import big_ssl` fast

    return inference.load(path, dtype)

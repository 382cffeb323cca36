"""Vision foundation models in JAX: CLIP, ALIGN, iBOT, DINOv2 and Florence, trained by one step."""

__version__ = "0.2.0"


def load(path, dtype: str = "float32", batch_size: int = 64, source: str = "auto", options=None):
    """Loads a model from a run's workdir, the output of `python -m big_ssl.convert`, or public weights.

    Args:
      path: the folder, or the weights' file.
      dtype: of the computation, float32 or bfloat16; results are float32.
      batch_size: images or texts that go through an encoder at once, on each device.
      source: the format of public weights, as --from of `big_ssl.convert`; "auto": by their files.
      options: settings that the files lack, {key: value} as --model.KEY=VALUE of `big_ssl.convert`.

    Returns:
      A big_ssl.inference.Model, whose methods follow from the model: encode_image, encode_text, zero_shot,
      patch_features, image_tokens, intermediate_layers, attention_maps, class_attention, classify.

    Raises:
      FileNotFoundError: without such a path.
      ValueError: in one line, for anything that does not fit.
    """
    from big_ssl import inference  # imported here to keep `import big_ssl` fast

    return inference.load(path, dtype, batch_size, source, options)

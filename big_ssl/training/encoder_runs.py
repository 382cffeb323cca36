"""Runs of an encoder on the views of a batch: crops are flattened to examples, and shaped again."""

import operator

import jax

# Keys of the view that are added to an encoder's outputs, if the view has them.
VIEW_OUTPUTS = ("mask", "mix_ratio")


def run(apply, inputs, call):
    """apply(**inputs), with crops [B, n, ...] flattened to examples; the outputs are [B, n, ...] again.

    The output "layers" is a dict, the tokens of each of call.layers by its index. Returns also the variables
    or state that `apply` returns with the outputs.
    """
    if "images" not in inputs:
        return apply(**inputs)
    result = apply(**_flat(inputs, call))
    outputs, variables = result if isinstance(result, tuple) else (result, None)
    outputs = _shaped(outputs, inputs, call.layers)
    return (outputs, variables) if isinstance(result, tuple) else outputs


def run_together(apply, inputs, calls):
    """([the outputs of each call], the encoder's state) after one run on the views of all calls."""
    if len(calls) == 1:
        outputs, state = run(apply, inputs[0], calls[0])
        return [outputs], state
    flat = [_flat(*pair) for pair in zip(inputs, calls, strict=True)]
    images, masks = (tuple(x.get(key) for x in flat) for key in ("images", "mask"))
    layers = tuple(sorted({layer for call in calls for layer in call.layers}))
    options = dict(intermediate=layers) if layers else {}
    outputs, state = apply(images=images, mask=masks, **options)
    return [_shaped(*pair, layers) for pair in zip(outputs, inputs, strict=True)], state


def _flat(inputs, call):
    images = inputs["high_res" if call.high_res else "images"]
    arguments = dict(images=images.reshape(-1, *images.shape[-3:]))
    if call.masked:
        mask = inputs["mask"]["mask"]
        arguments["mask"] = mask.reshape(-1, mask.shape[-1])
    return arguments | (dict(intermediate=call.layers) if call.layers else {})


def _shaped(outputs, inputs, layers):
    crops = inputs["images"].shape[:-3]
    if layers:
        tokens = outputs["layers"]
        by_index = {index: jax.tree.map(operator.itemgetter(i), tokens) for i, index in enumerate(layers)}
        outputs = outputs | dict(layers=by_index)
    outputs = jax.tree.map(lambda x: x.reshape(*crops, *x.shape[1:]), outputs)
    return outputs | {key: inputs[key] for key in VIEW_OUTPUTS if key in inputs}

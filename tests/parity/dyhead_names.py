"""Our parameters of a Dynamic Head from its published names; needs no PyTorch."""

_CONVS = {"coarser": 0, "same": 1, "finer": 2}


def dynamic_head_params(state):
    """Nested parameters of models.dynamic_head.DynamicHead; state: {name: array}."""
    blocks = {name.split(".")[1] for name in state}
    return {f"block{i}": _block(state, f"dyhead_tower.{i}.") for i in sorted(blocks)}


def _block(state, prefix):
    params = dict(
        offsets=_conv(state, f"{prefix}offset."),
        level_attention=_dense(state, f"{prefix}AttnConv.1."),
        activation=dict(
            squeeze=_dense(state, f"{prefix}relu.fc.0."), excite=_dense(state, f"{prefix}relu.fc.2.")
        ),
    )
    for name, i in _CONVS.items():
        theirs = f"{prefix}DyConv.{i}."
        norm = dict(scale=state[f"{theirs}bn.weight"], bias=state[f"{theirs}bn.bias"])
        params[name] = _conv(state, f"{theirs}conv.") | dict(norm=norm)
    return params


def _conv(state, prefix):
    return dict(kernel=state[f"{prefix}weight"].transpose(2, 3, 1, 0), bias=state[f"{prefix}bias"])


def _dense(state, prefix):
    weight = state[f"{prefix}weight"]
    return dict(kernel=weight.reshape(weight.shape[:2]).T, bias=state[f"{prefix}bias"])

"""Parameters of transformers' models under our names, as NumPy arrays; needs no PyTorch."""

import re


def efficientnet_variables(state, repeats):
    """{"params", "batch_stats"} of our EfficientNet.

    state: {name: array} of transformers' EfficientNetModel or AlignVisionModel; repeats: how
    many blocks each stage has, since transformers numbers them throughout.
    """
    blocks = [f"stage{i}_block{j}" for i, n in enumerate(repeats) for j in range(n)]
    names = {"embeddings.convolution": ("stem",), "embeddings.batchnorm": ("stem_bn",)}
    for i, block in enumerate(blocks):
        for theirs, ours in EFFICIENTNET_BLOCK.items():
            names[f"encoder.blocks.{i}.{theirs}"] = (block, *ours)
    params, stats = {}, {}
    for name, value in state.items():
        module, leaf = name.rsplit(".", 1)
        if module.startswith("encoder.top_") or leaf == "num_batches_tracked":
            continue
        path = names[module]
        if path[-1].endswith("_bn"):
            tree = stats if leaf.startswith("running_") else params
            _put(tree, (*path, BATCH_NORM[leaf]), value)
        elif "squeeze_excite" in path:
            _put(params, (*path, "bias" if leaf == "bias" else "kernel"), _dense(value))
        else:
            _put(params, path, _kernel(value, path[-1]))
    return dict(params=params, batch_stats=stats)


EFFICIENTNET_BLOCK = {
    "expansion.expand_conv": ("expand",),
    "expansion.expand_bn": ("expand_bn",),
    "depthwise_conv.depthwise_conv": ("depthwise",),
    "depthwise_conv.depthwise_norm": ("depthwise_bn",),
    "squeeze_excite.reduce": ("squeeze_excite", "reduce"),
    "squeeze_excite.expand": ("squeeze_excite", "expand"),
    "projection.project_conv": ("project",),
    "projection.project_bn": ("project_bn",),
}
BATCH_NORM = dict(weight="scale", bias="bias", running_mean="mean", running_var="var")


def bert_variables(state):
    """{"params"} of our Bert. state: {name: array} of transformers' BertModel without its pooler."""
    params = {}
    for name, value in state.items():
        module, leaf = name.rsplit(".", 1)
        if module.startswith("embeddings."):
            ours = (BERT_EMBEDDINGS[module.removeprefix("embeddings.")],)
        else:
            layer, rest = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", module).groups()
            ours = (f"layer{layer}", BERT_LAYER[rest])
        if ours[-1].endswith("_norm"):
            leaf = dict(weight="scale", bias="bias")[leaf]
        elif module.endswith("_embeddings"):
            leaf = "embedding"
        else:
            leaf, value = dict(weight="kernel", bias="bias")[leaf], _dense(value)
        _put(params, (*ours, leaf), value)
    return dict(params=params)


BERT_EMBEDDINGS = {
    "word_embeddings": "word",
    "position_embeddings": "position",
    "token_type_embeddings": "token_type",
    "LayerNorm": "embedding_norm",
}
BERT_LAYER = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
    "output.LayerNorm": "mlp_norm",
}


def _put(tree, path, value):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _dense(value):
    """A bias, or PyTorch's [out, in] or [out, in, 1, 1] as [in, out]."""
    return value if value.ndim == 1 else value.reshape(value.shape[:2]).T


def _kernel(value, name):
    """PyTorch's [out, in, k, k] as ours: [k, k, in, out], [k, k, C] depthwise, [in, out] pointwise."""
    if name == "stem":
        return value.transpose(2, 3, 1, 0)
    if name == "depthwise":
        return value[:, 0].transpose(1, 2, 0)
    return _dense(value)

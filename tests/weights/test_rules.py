"""Rules and their inverses, and their strictness."""

import numpy as np
import pytest

from big_ssl.weights import rules
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.rules import Rule

RNG = np.random.default_rng(0)
RULES = [
    Rule("embed.weight", ("embed",), rules.SAME),
    Rule("conv.weight", ("conv/kernel",), rules.CONVOLUTION),
    Rule("probe", ("probe",), rules.leading(2)),
    Rule("scale", ("scale",), rules.leading(1)),
    *rules.within(
        "layers.{i}.",
        "layer{i}/",
        [*rules.norm("ln", "norm"), *rules.qkv("attn", ""), *rules.linear("fc", "mlp")],
    ),
    Rule("layers.{i}.block.{j}.conv", ("layer{i}/block{j}/conv",), rules.POINTWISE),
]
SHAPES = {
    "embed": (5, 4),
    "conv/kernel": (2, 2, 3, 4),
    "probe": (4,),
    "scale": (),
    **{
        f"layer{i}/{name}": shape
        for i in (0, 1, 11)
        for name, shape in {
            "norm/scale": (4,),
            "norm/bias": (4,),
            **{f"{part}/kernel": (4, 4) for part in ("query", "key", "value", "out")},
            **{f"{part}/bias": (4,) for part in ("query", "key", "value", "out")},
            "mlp/kernel": (4, 6),
            "mlp/bias": (6,),
            "block2/conv": (3, 4),
        }.items()
    },
}
IGNORED = (r".*\.counter",)


def theirs():
    ours = {path: RNG.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    return rules.write(RULES, ours), ours


def test_a_round_trip_is_exact():
    written, ours = theirs()
    actual = rules.read(RULES, IGNORED, written, SHAPES)
    assert actual.keys() == ours.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(actual[path], value)
        assert actual[path].shape == SHAPES[path]
    again = rules.write(RULES, actual)
    assert again.keys() == written.keys()
    for name, value in written.items():
        np.testing.assert_array_equal(again[name], value)


def test_names_and_layouts_after_write():
    written, ours = theirs()
    assert written["layers.11.attn.in_proj_weight"].shape == (12, 4)
    np.testing.assert_array_equal(written["layers.1.attn.in_proj_weight"][4:8], ours["layer1/key/kernel"].T)
    np.testing.assert_array_equal(written["layers.1.attn.in_proj_bias"][8:], ours["layer1/value/bias"])
    np.testing.assert_array_equal(written["conv.weight"][1, 2], ours["conv/kernel"][:, :, 2, 1])
    np.testing.assert_array_equal(written["layers.0.fc.weight"], ours["layer0/mlp/kernel"].T)
    assert written["layers.0.block.2.conv"].shape == (4, 3, 1, 1)
    assert (written["probe"].shape, written["scale"].shape) == ((1, 1, 4), (1,))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "bfloat16"])
def test_weights_of_other_float_dtypes_are_cast_to_float32(dtype):
    written, _ = theirs()
    kind = np.dtype(dtype)
    actual = rules.read(RULES, IGNORED, {name: value.astype(kind) for name, value in written.items()}, SHAPES)
    assert {value.dtype for value in actual.values()} == {np.dtype(np.float32)}
    expected = written["embed.weight"].astype(kind).astype(np.float32)
    np.testing.assert_array_equal(actual["embed"], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers.1.ln.bias": None}, "layers.1.ln.bias is missing"),
        ({"layers.1.attn.in_proj_bias": None}, "layers.1.attn.in_proj_bias is missing"),
        ({"layers.2.ln.bias": np.zeros(4)}, "layers.2.ln.bias is no weight of this architecture"),
        ({"extra": np.zeros(1), "more": np.zeros(1)}, r"extra is no weight .* \(and 1 more\)"),
        ({"embed.weight": np.zeros((4, 5))}, r"embed.weight is \[4, 5\]; the architecture has \[5, 4\]"),
        ({"layers.0.attn.in_proj_weight": np.zeros((8, 4))}, r"is \[8, 4\]; .* \[12, 4\]"),
        ({"scale": np.zeros(())}, r"scale is \[\]; the architecture has \[1\]"),
        ({"embed.weight": np.zeros((5, 4), int)}, "embed.weight is of dtype int64"),
    ],
)
def test_the_error_names_the_array_that_does_not_fit(changes, message):
    tensors = {name: value for name, value in (theirs()[0] | changes).items() if value is not None}
    with pytest.raises(WeightsError, match=message):
        rules.read(RULES, IGNORED, tensors, SHAPES)


def test_ignored_names_may_be_present():
    rules.read(RULES, IGNORED, theirs()[0] | {"layers.0.counter": np.zeros(3, int)}, SHAPES)


def test_the_error_names_our_path_without_a_rule():
    with pytest.raises(WeightsError, match="the format has no place for our layer0/gain"):
        rules.write(RULES, theirs()[1] | {"layer0/gain": np.zeros(3)})

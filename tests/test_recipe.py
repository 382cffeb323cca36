"""What follows the colon of --config=FILE:ARG."""

import re

import pytest

from big_ssl import recipe


def choose(arg):
    presets = {
        "": lambda: dict(seed=0, name="a"),
        "demo": lambda: dict(seed=1, name="b", part=dict(rate=0.5)),
    }
    return recipe.choose("thing", arg, presets | {"tiny": dict}).to_dict()


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        ("", dict(seed=0, name="a")),
        ("seed=7", dict(seed=7, name="a")),
        ("demo", dict(seed=1, name="b", part=dict(rate=0.5))),
        ("demo,part.rate=1,name=c", dict(seed=1, name="c", part=dict(rate=1.0))),
    ],
)
def test_a_preset_and_changes(arg, expected):
    assert choose(arg) == expected


def test_epochs_leave_out_what_fills_no_batch():
    assert recipe.epochs(1, 1_281_167, 1_024) == 1_251
    assert recipe.epochs(0.5, 100, 10) == 5


@pytest.mark.parametrize(
    ("arguments", "rate"),
    [(dict(batch=1_024), 0.4), (dict(batch=4_096, per=1_024, rule="sqrt"), 0.2), (dict(batch=256), 0.1)],
)
def test_a_rate_grows_with_the_batch(arguments, rate):
    assert recipe.scaled_rate(0.1, **arguments) == pytest.approx(rate)


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="scaled_rate: rule is 'square'; use linear or sqrt"):
        recipe.scaled_rate(0.1, 256, rule="square")


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("dmo", "thing: no preset 'dmo'; there are demo and tiny"),
        ("demo,sed=1", "thing: sed is no key of it; did you mean seed?"),
        ("demo,part=1", "thing: part is no key of it"),
        ("seed=x", "thing: seed=x: Could not override field 'seed'"),
    ],
)
def test_a_mistake_is_one_line(arg, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        choose(arg)

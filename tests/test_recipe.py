"""The text after the colon of --config=FILE:ARG."""

import re

import pytest

from big_ssl import recipe

ONE_MODEL = {
    "": lambda: dict(seed=0, name="a"),
    "demo": lambda: dict(seed=1, name="b", part=dict(rate=0.5)),
    "tiny": dict,
}
SEVERAL_MODELS = {
    "": lambda model: dict(name=model, seed=0),
    "demo": lambda model: dict(name=f"{model}_demo", seed=0),
    "tiny": lambda: dict(name="tiny", seed=0),
}


def choose(arg):
    return recipe.choose("thing", arg, ONE_MODEL).to_dict()


def choose_model(arg):
    return recipe.choose("thing", arg, SEVERAL_MODELS, ("small", "large")).to_dict()


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


@pytest.mark.parametrize(
    ("arg", "name", "seed"),
    [
        ("", "small", 0),
        ("large", "large", 0),
        ("large,seed=1", "large", 1),
        ("demo", "small_demo", 0),
        ("large,demo,seed=1", "large_demo", 1),
        ("tiny", "tiny", 0),
        ("seed=1", "small", 1),
    ],
)
def test_a_model_a_preset_and_changes(arg, name, seed):
    assert choose_model(arg) == dict(name=name, seed=seed)


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
        ("demo,dmo", "thing: no preset 'dmo'; there are demo and tiny"),
        ("demo,tiny", "thing: cannot combine demo,tiny; write PRESET,KEY=VALUE in this order"),
        ("demo,sed=1", "thing: sed is no key of it; did you mean seed?"),
        ("demo,part=1", "thing: part is no key of it"),
        ("seed=1,demo", "thing: demo is no key of it"),
        ("seed=x", "thing: seed=x: Could not override field 'seed'"),
    ],
)
def test_a_mistake_is_one_line(arg, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        choose(arg)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("huge", "no model or preset 'huge'; models: small and large; presets: demo and tiny"),
        ("large,dmo", "no model or preset 'dmo'; models: small and large; presets: demo and tiny"),
        ("small,large", "cannot combine small,large; write MODEL,PRESET,KEY=VALUE in this order"),
        ("demo,large", "cannot combine demo,large; write MODEL,PRESET,KEY=VALUE in this order"),
        ("large,demo,tiny", "cannot combine large,demo,tiny; write MODEL,PRESET,KEY=VALUE in this order"),
        ("large,tiny", "preset tiny is the same for all models; leave out large"),
    ],
)
def test_a_mistake_beside_models_is_one_line(arg, message):
    with pytest.raises(ValueError, match=f"^thing: {re.escape(message)}$"):
        choose_model(arg)

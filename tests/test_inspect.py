"""The inspect command: a config as text, and the plot of its schedules."""

import json
import math

import numpy as np
import pytest
from matplotlib.image import imread

from big_ssl import inspect, stored_config
from configs import align_l2, clip, ibot
from tests import commands


def test_all_schedules_of_a_config_are_listed():
    config = ibot.get_config().to_dict()
    actual = dict(inspect.all_schedules(config))
    assert set(actual) == {
        "learning_rate",
        "optimizer.weight_decay",
        "ema",
        "lr_multipliers: /prototype",
        "images: dino.weight",
        "images: ibot.weight",
        "images: dino.teacher_temperature",
        "images: ibot.teacher_temperature",
    }
    assert float(actual["ema"](0)) == pytest.approx(0.996)
    assert float(actual["images: ibot.teacher_temperature"](config["total_steps"])) == pytest.approx(0.07)
    # The EMA of a run without a teacher, which starts with a low momentum.
    momentum = dict(inspect.all_schedules(align_l2.get_config("demo").to_dict()))["ema"]
    assert [float(momentum(step)) for step in (0, 1300)] == pytest.approx([0.1, 0.99])


def test_layer_decay_is_no_schedule():
    config = ibot.get_config().to_dict()
    config["lr_multipliers"] += (("encoders/", dict(kind="layer_decay", decay=0.9)),)
    assert "lr_multipliers: encoders/" not in dict(inspect.all_schedules(config))


def test_a_plots_line_follows_the_schedule(tmp_path):
    config = ibot.get_config("tiny").to_dict()
    figure = inspect.plot(config)
    (line,) = figure.axes[0].lines
    assert figure.axes[0].get_title() == "learning_rate"
    schedule = dict(inspect.all_schedules(config))["learning_rate"]
    np.testing.assert_allclose(line.get_ydata(), [float(schedule(int(step))) for step in line.get_xdata()])
    assert inspect.run(config, str(tmp_path / "x.png")) == 0
    assert imread(tmp_path / "x.png").std() > 0.05


def test_the_error_for_an_invalid_config_is_one_line(capsys):
    assert inspect.run(ibot.get_config("tiny").to_dict() | dict(total_step=1), "x.png") == 2
    assert capsys.readouterr().err == "total_step is no known key; did you mean total_steps?\n"


def test_the_text_has_one_sorted_line_per_value():
    config = dict(b=dict(x_y=1, x=dict(z=0.1)), a=(1e-6, "s"), c={}, d=[], e=((".*", dict(q=2, p=None)),))
    assert inspect.config_text(config) == (
        "a = (1e-06, 's')\nb.x.z = 0.1\nb.x_y = 1\nc = {}\nd = []\ne = (('.*', {'p': None, 'q': 2}),)\n"
    )


def test_a_stored_config_prints_like_its_recipe(tmp_path):
    """JSON's lists instead of tuples, and the order of keys, do not matter."""
    config = clip.get_config("tiny").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    stored = stored_config.get_config(str(tmp_path / "config.json")).to_dict()
    assert inspect.config_text(stored) == inspect.config_text(config)


def test_the_command_prints_the_config_after_changes():
    config = "--config=configs/clip.py:tiny,seed=3"
    result = commands.run("big_ssl.inspect", config, "--config.mesh.fsdp=2", "--print")
    expected = clip.get_config("tiny,seed=3,mesh.fsdp=2").to_dict()
    assert (result.returncode, result.stdout) == (0, inspect.config_text(expected))
    result = commands.run("big_ssl.inspect", config)
    assert (result.returncode, result.stdout) == (2, "")
    assert "give --print for the config as text" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_invalid_config_is_not_printed(capsys):
    config = clip.get_config("tiny").to_dict() | dict(total_step=1)
    assert inspect.run(config, None, show=True) == 2
    assert capsys.readouterr() == ("", "total_step is no known key; did you mean total_steps?\n")


def test_schedules_of_stages_follow_each_other():
    """Over the run's steps; a schedule is NaN in stages that lack it."""
    config = align_l2.get_config("tiny").to_dict()
    change = dict(ema=0.9, learning_rate=dict(kind="steps", values=((0, 0.25), (5, 0.125))))
    config["stages"] = (dict(name="first", steps=12, ema=0.0), dict(name="second", steps=8, **change))
    actual = dict(inspect.all_schedules(config))
    rate = actual["learning_rate"]
    assert [float(rate(step)) for step in (12, 16, 17, 20)] == [0.25, 0.25, 0.125, 0.125]
    assert float(rate(5)) == pytest.approx(2e-3)
    assert math.isnan(actual["ema"](11))
    assert actual["ema"](12) == pytest.approx(0.9)

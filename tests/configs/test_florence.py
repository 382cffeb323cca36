"""Florence's recipe: the published values, and one run of its stages, killed in each and between them."""

import copy
import json
import pathlib
import signal
import time

import jax
import numpy as np
import pytest

from big_ssl.config import validate
from big_ssl.parallel.mesh import make_mesh
from big_ssl.training import batches, build, loop, stages
from big_ssl.training.checkpoints import Checkpoints
from big_ssl.training.metrics import read_lines
from big_ssl.training.requirements import RequirementsError
from configs import florence
from tests import commands

STEPS = {"augmented_texts": 8, "plain_texts": 6, "384_pixels": 4}  # of tiny


def get(arg=""):
    return florence.get_config(arg).to_dict()


def parameters(config):
    """{part: its parameters, in millions}."""
    system = build.system(config, make_mesh(config["mesh"], jax.devices()[:1]))
    params, _ = jax.eval_shape(lambda: system.init(jax.random.key(0), batches.abstract_batch(config)))
    parts = params["encoders"] | params["heads"]
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) / 1e6 for name, part in parts.items()}


def test_the_published_values():
    config = get()
    validate(config)
    first, second, third = stages.resolve(config)
    assert [stage.config["total_steps"] for stage in (first, second, third)] == [1_000_000, 180_000, 80_000]
    for stage, size, augment in ((first, 224, True), (second, 224, False), (third, 384, False)):
        pairs = stage.config["streams"]["pairs"]
        fields = pairs["data"]["fields"]
        assert pairs["batch_size"] == 24_576
        assert fields["image"]["crop"]["size"] == stage.config["eval_transform"]["size"] == size
        text = fields["text"]
        assert (text["augment"], text["prompt_words"], text["prompt_classes"]) == (augment, 2, "short")
        assert (fields["identity"]["class_by"], fields["identity"]["caption_by"]) == ("name", "text")
        # Maps of 56, 28, 14 and 7 positions at 224 pixels, and of 96, 48, 24 and 12 at 384: 12 would pad the
        # former to 60, 36 and 24, which cost 1.5 times the FLOPs; 7 does not divide the latter.
        image, window = stage.config["encoders"]["image"], dict(window=7 if size == 224 else 12)
        assert all(size // stride % image["window"] == 0 for stride in (4, 8, 16, 32))
        assert image == config["encoders"]["image"] | window
        assert stage.config["encoders"]["text"] == config["encoders"]["text"]
    assert (config["encoders"]["text"]["depth"], config["tokenizer"]["length"]) == (12, 76)


def test_coswin_h_has_637_million_parameters_with_its_projection():
    first, *_, last = (parameters(stage.config) for stage in stages.resolve(get("coswin_h")))
    projection = 2816 * 1024 / 1e6
    assert last["image"] + projection == pytest.approx(637, abs=0.6)
    # Of a table 23 ** 2 instead of 13 ** 2 rows, for 2 * 11 + 2 * 22 + 16 * 44 + 2 * 88 heads.
    assert last["image"] - first["image"] == pytest.approx(0.34056)
    assert last["text"] == pytest.approx(201.8, abs=0.1)  # the paper's 256 are not reached


@pytest.mark.parametrize("model", list(florence.MODELS))
@pytest.mark.parametrize("preset", ["demo", "tiny"])
def test_presets_have_the_keys_of_the_recipe_and_are_valid(model, preset):
    full, small = get(model), get(f"{model},{preset}")
    validate(full)
    validate(small)
    assert full.keys() == small.keys()
    for encoder in ("image", "text"):
        assert full["encoders"][encoder].keys() == small["encoders"][encoder].keys()
    assert [stage["name"] for stage in small["stages"]] == list(STEPS)
    rates = [stage.config["learning_rate"] for stage in stages.resolve(full)]
    assert [a["final"] for a in rates[:-1]] == [b["peak"] for b in rates[1:]]


@pytest.mark.slow
def test_a_wrong_value_of_the_last_stage_is_named_before_the_first_trains(tmp_path):
    config = get("tiny")
    wrong = copy.deepcopy(config)
    wrong["stages"][2]["encoders"] = dict(image=dict(width=24))
    with pytest.raises(RequirementsError, match=r"^stages\.384_pixels: params/encoders/image/.* is \[.*\]"):
        loop.train(wrong, tmp_path)
    wrong = copy.deepcopy(config)
    wrong["stages"][2]["streams"]["pairs"]["data"]["fields"]["text"].update(prompts=("a photo",))
    wrong["stages"][2]["streams"]["pairs"]["data"]["fields"]["text"].update(augment=True)
    with pytest.raises(RequirementsError, match=r"text: templates: 'a photo' has no {}"):
        loop.train(wrong, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


# The staged run.


class Run:
    """The command for `tiny`, on two devices that share the parameters, saving every second step."""

    def __init__(self, workdir, cache):
        self.workdir, self.output = workdir, workdir.with_suffix(".log")
        self._environment = dict(
            JAX_PLATFORMS="cpu",
            JAX_NUM_CPU_DEVICES="2",
            JAX_COMPILATION_CACHE_DIR=str(cache),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )

    def start(self):
        changes = {"log_every": 1, "checkpoint.every": 2, "mesh.fsdp": 2}
        arguments = [f"--config.{key}={value}" for key, value in changes.items()]
        command = ["-m", "big_ssl.main", "--config=configs/florence.py:tiny", f"--workdir={self.workdir}"]
        self.output.write_text("")
        return commands.start(command + arguments, self.output, self.output, self._environment)

    def kill_once(self, reached):
        """Kills the run as soon as reached()."""
        process, deadline = self.start(), time.monotonic() + 240
        while not reached() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL, self.output.read_text()

    def finish(self):
        process = self.start()
        assert process.wait(400) == 0, self.output.read_text()

    def lines(self):
        return [line for line in read_lines(self.workdir / "metrics.jsonl") if "train/loss" in line]

    def at_step(self, step):
        return lambda: any(line["step"] >= step for line in self.lines())

    def between(self, stage):
        """Between the stage before and the first step of this one."""
        return lambda: f"stage {stage}: all weights are handed on" in self.output.read_text()

    def state(self):
        config = json.loads((self.workdir / "config.json").read_text())
        last = stages.resolve(config)[-1].config
        abstract = loop.set_up(last, jax.devices()[:2]).abstract_state
        checkpoints = Checkpoints(self.workdir, 3)
        state = jax.device_get(checkpoints.restore_latest(lambda step: abstract))
        checkpoints.close()
        return state


@pytest.fixture(scope="module")
def cache(request, tmp_path_factory):
    kept = getattr(request.config, "cache", None)
    return kept.mkdir("jax") if kept is not None else tmp_path_factory.mktemp("jax")


@pytest.mark.slow
def test_a_run_killed_in_each_stage_and_between_them_ends_bit_identically(cache, tmp_path):
    whole, killed = Run(tmp_path / "whole", cache), Run(tmp_path / "killed", cache)
    whole.finish()
    moments = [
        ("in the first stage", killed.at_step(3), 3, 7),
        ("between first and second", killed.between("plain_texts"), 8, 8),
        ("in the second stage", killed.at_step(10), 10, 13),
        ("between second and third", killed.between("384_pixels"), 14, 14),
        ("in the third stage", killed.at_step(16), 16, 17),
    ]
    for name, reached, low, high in moments:
        killed.kill_once(reached)
        assert low <= killed.lines()[-1]["step"] <= high, name
    killed.finish()
    jax.tree.map(np.testing.assert_array_equal, killed.state(), whole.state())
    losses = [[(line["step"], line["train/loss"]) for line in run.lines()] for run in (killed, whole)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[1]] == list(range(1, 19))
    _assert_one_report(whole.workdir)


def _assert_one_report(workdir: pathlib.Path):
    """The evaluations of all stages are points of one curve, which the report shows."""
    lines = read_lines(workdir / "metrics.jsonl")
    assert {line["step"] for line in lines if "eval/zero_shot/twemoji/top1" in line} == {6, 8, 12, 14, 18}
    assert "Zero-shot top-1" in (workdir / "report" / "index.html").read_text()

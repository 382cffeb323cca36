"""Stages: what a config's list of them means, what is handed on, and a run that is killed in each of two."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from big_ssl.config import ConfigError, validate
from big_ssl.training import handover, loop, stages
from big_ssl.training.metrics import read_lines
from big_ssl.training.requirements import RequirementsError
from tests import compiling


def staged(config, **second):
    """Eight steps in two stages, the second with other settings."""
    config["stages"] = (dict(name="first", steps=5), dict(name="second", steps=3) | second)
    return config


@pytest.fixture
def config(micro_config):
    return micro_config()


def test_a_run_without_stages_is_one(config):
    (only,) = stages.resolve(config)
    assert (only.start, only.end, only.config, only.data_seed) == (0, 8, config, config["seed"])


def test_a_stage_changes_the_config_and_counts_its_own_steps(config):
    batch = dict(streams=dict(pairs=dict(batch_size=8)), learning_rate=0.5)
    first, second = stages.resolve(staged(config, **batch))
    assert (first.start, first.end, first.config["total_steps"]) == (0, 5, 5)
    assert (second.start, second.end, second.config["total_steps"]) == (5, 8, 3)
    assert second.config["streams"]["pairs"]["batch_size"] == 8
    assert second.config["streams"]["pairs"]["data"] == first.config["streams"]["pairs"]["data"]
    assert second.config["learning_rate"] == 0.5
    assert first.data_seed == config["seed"] != second.data_seed
    assert [stages.at_step([first, second], step).name for step in (0, 5, 6, 8)] == [
        "first", "first", "second", "second",
    ]  # fmt: skip


def test_none_removes_a_mapping(config):
    config["streams"]["more"] = copy.deepcopy(config["streams"]["pairs"])
    _, second = stages.resolve(staged(config, streams=dict(more=None)))
    assert set(second.config["streams"]) == {"pairs"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(steps=4), "total_steps is 8; the stages have 9 in all"),
        (dict(name="first"), "stages.1.name is 'first', as of an earlier stage"),
        (dict(seed=1), "stages.second.seed: no stage can change it; it is the run's"),
        (dict(handover=dict(ema="drop")), "stages.second.handover.ema is 'drop'; use resize, keep, reset"),
        (dict(handover=dict(centre="keep")), "stages.second.handover.centre is no known key; there are ema"),
        (dict(dtyp="float32"), "stages.second: dtyp is no known key; did you mean dtype?"),
        (dict(grad_accum=0), "stages.second: grad_accum is 0; it must be at least 1"),
    ],
)
def test_what_no_stage_can_have_is_named(config, change, message):
    with pytest.raises(ConfigError) as error:
        validate(staged(config, **change))
    assert str(error.value).startswith(message)


def test_an_array_of_another_shape_is_named_before_training(config, tmp_path):
    wider = dict(encoders=dict(text=dict(width=64)))
    with pytest.raises(RequirementsError, match=r"^stages\.second: params/encoders/text/.* is \[.*\] in"):
        loop.train(staged(config, **wider), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def flat(tree):
    return handover._by_path(jax.device_get(tree))


@pytest.fixture(scope="module")
def states(micro_config, set_up):
    """(a trained-looking state, the second stage's initial state, its stage), with an average."""
    config = staged(
        micro_config() | dict(ema=0.5),
        tokenizer=dict(length=8),
        handover=dict(exclude=("heads/",), remap=()),
    )
    _, second = stages.resolve(config)
    before = set_up(stages.resolve(config)[0].config)
    after = set_up(second.config)
    with compiling.quickly():
        old, new = before.init(), after.init()
    rng = np.random.default_rng(0)
    old = jax.tree.map(lambda x: x if x.dtype == np.int32 else x + rng.random(x.shape).astype(x.dtype), old)
    return old.replace(step=old.step + 5), new, second


def test_arrays_are_handed_on_resized_or_new(states):
    """A shorter text tower's positions are cut, the head starts from scratch, moments of the cut restart."""
    old, new, stage = states
    got = handover.hand_over(stage, old, new)
    before, fresh, after = flat(old.params), flat(new.params), flat(got.params)
    assert int(got.step) == 5
    for path in after:
        if path.startswith("heads/"):
            np.testing.assert_array_equal(after[path], fresh[path], err_msg=path)
        elif "position" in path:
            np.testing.assert_array_equal(after[path], before[path][: len(after[path])], err_msg=path)
        else:
            np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    average = flat(got.ema)
    np.testing.assert_array_equal(average["params/heads/contrastive/text_projection/kernel"],
                                  after["heads/contrastive/text_projection/kernel"])  # fmt: skip
    some = next(path for path in average if "/image/" in path and path.endswith("kernel"))
    np.testing.assert_array_equal(average[some], flat(old.ema)[some])
    moments, restarted = flat(got.opt_state), [p for p in flat(got.opt_state) if "position" in p]
    assert restarted
    assert all(not moments[path].any() for path in restarted)
    kept = next(path for path in moments if "mu/encoders/image" in path)
    np.testing.assert_array_equal(moments[kept], flat(old.opt_state)[kept])


def test_an_encoder_becomes_a_teacher(states):
    """remap copies the average's arrays to another place; a pattern that leads nowhere is named."""
    old, new, stage = states
    places = new.replace(params=new.params | dict(encoders=new.params["encoders"] | dict(
        teacher=new.params["encoders"]["image"])))  # fmt: skip
    rules = stages.Handover(exclude=("heads/",), remap=(("encoders/image/", "encoders/teacher/"),))
    sources = handover._weight_sources(dataclasses.replace(stage, handover=rules), old, places)
    average = flat(old.ema)
    taught = {path: x for path, x in sources.items() if path.startswith("params/encoders/teacher/")}
    assert taught
    for path, array in taught.items():
        np.testing.assert_array_equal(array, average[path.replace("teacher", "image")])
    rules = stages.Handover(remap=(("encoders/image/", "encoders/nobody/"),))
    with pytest.raises(ValueError, match=r"handover\.remap: 'encoders/image/' leads to no weights"):
        handover._weight_sources(dataclasses.replace(stage, handover=rules), old, new)


def test_arrays_are_handed_on_to_a_mesh_in_another_order_of_devices():
    """As those of a TPU may be, where the sizes of the mesh change from one stage to the next."""
    devices = np.array(jax.devices())[:4]
    before = jax.device_put(np.arange(8.0), NamedSharding(Mesh(devices, "data"), PartitionSpec("data")))
    swapped = Mesh(devices[[0, 2, 1, 3]].reshape(2, 2), ("data", "fsdp"))
    after = jax.device_put(np.zeros(8), NamedSharding(swapped, PartitionSpec("fsdp")))
    placed = handover._placed(dict(a=before), dict(a=after))["a"]
    assert placed.sharding == after.sharding
    np.testing.assert_array_equal(placed, np.arange(8.0))


@pytest.mark.parametrize("process", [0, 1])
def test_every_process_computes_the_same_to_hand_on(process, states, monkeypatch):
    """What process 0 alone computed on global arrays, all others would not take part in: it would hang."""
    old, new, stage = states
    fitted, resized = handover._fitted, []

    def counted(stage, path, array, leaf):
        resized.append(path)
        return fitted(stage, path, array, leaf)

    monkeypatch.setattr(handover, "_fitted", counted)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    handover.hand_over(stage, old, new)
    # Of the weights and of their average, each once.
    assert len(resized) == 2 * len(set(resized)) > 0


def losses(workdir):
    return [(x["step"], x["train/loss"]) for x in read_lines(workdir / "metrics.jsonl") if "train/loss" in x]


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_a_run_killed_in_each_of_two_stages_is_bit_identical(config, tmp_path, monkeypatch):
    """Killed after the checkpoints of steps 2 and 6, and right after the first stage ended."""
    config = staged(
        config | dict(ema=0.5, checkpoint=config["checkpoint"] | dict(every=2)),
        streams=dict(pairs=dict(batch_size=8)),
        learning_rate=dict(kind="cosine", peak=1e-3, warmup_steps=1, start=0.0, final=0.0),
    )
    prepared = loop._prepare(config, tmp_path)
    monkeypatch.setattr(loop, "_prepare", lambda config, workdir: prepared)  # compiled once, for five runs
    with compiling.quickly():
        whole = loop.train(config, tmp_path / "whole")
    after = loop._Run._after

    for killed_at in (3, 5, 7):

        def dies(self, step, state, metrics, last, killed_at=killed_at):
            after(self, step, state, metrics, last)
            self.checkpoints.wait()
            if step == killed_at:
                raise Stopped

        monkeypatch.setattr(loop._Run, "_after", dies)
        with compiling.quickly(), pytest.raises(Stopped):
            loop.train(config, tmp_path / "killed")
    monkeypatch.setattr(loop._Run, "_after", after)
    with compiling.quickly():
        resumed = loop.train(config, tmp_path / "killed")
    assert resumed.finished
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "whole")] == list(range(1, 9))
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (resumed.state, whole.state)))


@pytest.mark.slow
def test_a_request_to_stop_at_a_stages_end_stops_the_run(config, tmp_path, monkeypatch):
    """Several processes learn of it after that step only; the next stage would run on to the end."""
    monkeypatch.setattr(loop.StopRequest, "reached", lambda self, step: step == 5)
    with compiling.quickly():
        result = loop.train(staged(config), tmp_path)
    assert not result.finished
    assert int(result.state.step) == 5

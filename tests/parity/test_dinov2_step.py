"""A whole step of DINOv2 against PyTorch in float64: terms, gradients, AdamW, average, from the same crops.

PyTorch's side is benchmarks/dinov2_torch.py. The second step starts from what the first one left: moments,
centers and a teacher that has moved.
"""

import copy

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from benchmarks import dinov2_ours
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.random_keys import step_key
from big_ssl.training import batches, train_step
from big_ssl.training.setup import set_up
from big_ssl.training.state import evaluation_variables
from configs import dinov2
from tests import compiling

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
pytest.importorskip("transformers", reason="make parity installs transformers")

from benchmarks import dinov2_torch  # noqa: E402  (needs PyTorch)
from tests.parity import dino_peers  # noqa: E402

pytestmark = pytest.mark.parity

FIRST = 3
STUDENT, TEACHER = 5, 6
HEAD = dict(hidden=20, bottleneck=8, prototypes=40)
# Separate heads, Sinkhorn, SwiGLU, neighbours in the whole batch; one head, centers, neighbours in pairs.
CASES = {
    "vitl14": (dict(use_swiglu_ffn=True), dict(bottleneck=6, prototypes=50), 4),
    "vitl16_short": ({}, None, 2),
}


def network(options, patch_head, seed):
    backbone = dino_peers.hf_dinov2(**options)
    heads = [dinov2_torch.Head(24, **HEAD)]
    if patch_head:
        heads.append(dinov2_torch.Head(24, **HEAD | patch_head))
    return dino_peers.randomise(dinov2_torch.Network(backbone, *heads).double(), seed)


def recipe(model, weights, group):
    """The tiny preset with the published rules that it leaves out, for the weights' model."""
    config = dinov2.get_config(f"{model},tiny").to_dict()
    images = config["streams"]["images"]
    images.update(batch_size=4)
    images["data"]["fields"]["local_crops"]["crop"].update(count=8)
    images["data"]["fields"]["global_crops"]["mask"].update(mask_group=2)
    config["encoders"]["image"].update(weights["encoders"]["image"])
    rise = dict(kind="linear", start=0.04, peak=0.07, warmup_steps=6, final=0.07)
    for name in ("dino", "ibot"):
        images["objectives"][name].update(teacher_temperature=rise)
    for name, options in weights["projections"].items():
        images["objectives"][name].update(head=options)
    images["objectives"]["koleo"].update(koleo_group=group)
    config["lr_multipliers"] = (("encoders/", dict(kind="layer_decay", decay=0.9, patch_embedding=0.2)),)
    # With the usual one the first update is hardly more than the gradient's sign.
    config["optimizer"].update(eps=1e-2)
    return config


def trainer(config, student, teacher):
    """PyTorch's, by the values of a config."""
    made = dinov2_torch.Trainer(student, dinov2_torch.Recipe(**dinov2_ours.recipe(config)))
    made.teacher.load_state_dict(teacher.state_dict())
    return made


class Ours:
    """The compiled parts of a config, on one device, and a batch of random pixels."""

    def __init__(self, config):
        self.config, self.setup = config, set_up(config, jax.devices()[:1])
        batch = dinov2_ours.random_batch(batches.abstract_global_batch(config, None))
        system, mesh = self.setup.system, self.setup.mesh
        self.batch = mesh_lib.global_batch(mesh, batch)
        self._see = dinov2_ours.seer(self.setup, config["seed"])
        self._gradient = jax.jit(fsdp.within(mesh, train_step.value_and_grad(system, 1, mesh)))

    def seen(self, step):
        """What the encoders see in a step, as dinov2_torch takes it."""
        with compiling.quickly():
            found = {name: torch.tensor(x) for name, x in self._see(self.batch, step).items()}
        return {name: x if x.dtype == torch.bool else x.double() for name, x in found.items()}

    def gradient(self, state):
        """Of the loss by each parameter, {path: array}."""
        key = step_key(self.config["seed"], state.step)
        with compiling.quickly():
            _, found = self._gradient(
                state.params, state.mutable, self.batch, key, state.step, evaluation_variables(state)
            )
        return flat(found)

    def step(self, state):
        with compiling.quickly():
            return self.setup.step(state, self.batch)


def flat(params):
    """{path: array} as weights are named."""
    return flatten_dict(jax.device_get(dict(params=params)), sep="/")


@pytest.fixture(scope="module", params=CASES)
def steps(request, tmp_path_factory):
    """[(ours, theirs)] of two steps: each dict(terms, gradient, params, average), and theirs has the norms of
    its parts' gradients."""
    options, patch_head, group = CASES[request.param]
    folder = tmp_path_factory.mktemp("weights")

    def as_ours(network):
        dinov2_torch.save(network, folder)
        return dinov2_ours.read(folder)[1]

    student, teacher = (network(options, patch_head, seed) for seed in (STUDENT, TEACHER))
    dinov2_torch.save(student, folder)
    ours = Ours(recipe(request.param, dinov2_ours.read(folder)[0], group))
    state = dinov2_ours.state_of(ours.setup, as_ours(student), as_ours(teacher), FIRST)
    theirs, found = trainer(ours.config, student, teacher), []
    for step in (FIRST, FIRST + 1):
        numbers = dinov2_torch.Numbers(**dinov2_ours.numbers(ours.config, step))
        terms = theirs.backward(ours.seen(step), numbers)
        wanted = dict(terms=terms, gradient=as_ours(gradients(student)), norms=norms(student))
        theirs.update(numbers)
        wanted |= dict(params=as_ours(student), average=as_ours(theirs.teacher))
        own = dict(gradient=ours.gradient(state))
        state, metrics = ours.step(state)
        own |= dict(terms=jax.device_get(metrics), params=flat(state.params))
        found.append((own | dict(average=flat(state.ema["params"])), wanted))
    return found


def gradients(student):
    """A network whose parameters are another's gradients."""
    made = copy.deepcopy(student)
    with torch.no_grad():
        for value, own in zip(made.parameters(), student.parameters(), strict=True):
            value.copy_(own.grad)
    return made


def norms(student):
    """Of each part's gradient, before it is clipped."""
    parts = {name: [x.grad.norm() for x in part.parameters()] for name, part in student.named_children()}
    return {name: float(torch.stack(each).norm()) for name, each in parts.items()}


def assert_close(found, wanted, share):
    """Every array to a share of its largest value; what is zero but for rounding, to the largest of all."""
    assert found.keys() == wanted.keys()
    largest = max(np.abs(x).max() for x in wanted.values())
    for name, value in wanted.items():
        limit = share * np.abs(value).max() + 1e-7 * largest
        np.testing.assert_allclose(found[name], value, rtol=0, atol=limit, err_msg=name)


def test_every_term(steps):
    for ours, theirs in steps:
        for name, value in theirs["terms"].items():
            metric = name if name == "loss" else f"{name}/loss"
            np.testing.assert_allclose(ours["terms"][metric], value, rtol=1e-4, err_msg=name)


def test_the_gradient_of_every_parameter(steps):
    for ours, theirs in steps:
        assert_close(ours["gradient"], theirs["gradient"], 1e-4)


def test_every_part_is_clipped(steps):
    """Or the two comparisons of parameters would not see it; each by another factor."""
    for _, theirs in steps:
        found = sorted(theirs["norms"].values())
        assert found[0] > 1.1 * 3, found
        assert found[-1] > 1.1 * found[0], found


def test_every_parameter_after_the_update(steps):
    for ours, theirs in steps:
        assert_close(ours["params"], theirs["params"], 1e-5)
    assert_close(*moved(steps, "params"), 1e-3)


def test_the_average(steps):
    """It follows the updated parameters: a thousandth of its way is what they were updated by."""
    for ours, theirs in steps:
        assert_close(ours["average"], theirs["average"], 1e-5)
    assert_close(*moved(steps, "average"), 3e-4)


def moved(steps, what):
    """What the second step changed, of ours and of theirs."""
    (ours, theirs), (after, their_after) = [[side[what] for side in pair] for pair in steps]
    return [{name: b[name] - a[name] for name in a} for a, b in ((ours, after), (theirs, their_after))]

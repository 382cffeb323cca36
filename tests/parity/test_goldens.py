"""Our towers against outputs of transformers' that tests/parity/make_goldens.py has written down."""

import pathlib

import jax
import numpy as np
import pytest

from big_ssl.models.bert import Bert
from big_ssl.models.efficientnet import EfficientNet, Stage
from tests.parity import hf_names

DATA = pathlib.Path(__file__).parents[1] / "data"
# Two float32 networks that add in another order; outputs are of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)
# Halves the time to compile.
UNOPTIMISED = dict(compiler_options={"xla_backend_optimization_level": 0})


def load(name):
    """(weights, the other arrays) of a file."""
    arrays = dict(np.load(DATA / name))
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    return weights, arrays


def test_bert():
    weights, golden = load("golden_bert.npz")
    model = Bert(vocab_size=40, width=12, depth=2, heads=3, mlp_dim=20, max_len=10)
    found = jax.jit(model.apply, **UNOPTIMISED)(
        hf_names.bert_variables(weights), golden["ids"], golden["mask"]
    )
    mask = golden["mask"]
    np.testing.assert_allclose(np.asarray(found["tokens"])[mask], golden["tokens"][mask], **CLOSE)
    np.testing.assert_allclose(found["pooled"], golden["tokens"][:, 0], **CLOSE)


@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_efficientnet(mode):
    weights, golden = load("golden_efficientnet.npz")
    stages = (Stage(3, 16, 1, 1, 1), Stage(5, 48, 2, 2, 3), Stage(3, 80, 1, 2, 2), Stage(5, 112, 2, 1, 2))
    model = EfficientNet(width=0.5, stages=stages, drop_connect=0.0)
    variables = hf_names.efficientnet_variables(weights, [1, 2, 1, 2])
    train = mode == "training"

    def run(variables, images):
        return model.apply(variables, images, train=train, mutable=["batch_stats"])[0]

    found = jax.jit(run, **UNOPTIMISED)(variables, golden["images"])
    np.testing.assert_allclose(found["patches"], golden[mode], **CLOSE)
    np.testing.assert_allclose(found["pooled"], golden[mode].mean((1, 2)), **CLOSE)


@pytest.mark.parametrize("name", ["golden_bert.npz", "golden_efficientnet.npz"])
def test_no_weight_of_a_golden_file_is_a_default(name):
    """Zeros and ones would hide what a mapping forgets."""
    for key, value in load(name)[0].items():
        if not key.endswith("num_batches_tracked"):
            assert not np.isin(value, (0, 1)).any(), key


def test_golden_files_are_small():
    assert max(path.stat().st_size for path in DATA.glob("golden_*.npz")) < 300_000

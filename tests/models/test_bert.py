"""What BERT must not depend on: padding, and chance in evaluation. Its numbers: tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models import encoders
from big_ssl.models.bert import Bert

LENGTH, REAL, VOCABULARY = 7, 4, 30
MODEL = Bert(VOCABULARY, width=8, depth=2, heads=2, max_len=8, dropout=0.3)


@functools.cache
def variables():
    """Random in every entry, biases and norms too."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def tokens():
    """Two captions of REAL tokens, padded to LENGTH."""
    rng = np.random.default_rng(1)
    return rng.integers(0, VOCABULARY, (2, LENGTH)), np.tile(np.arange(LENGTH) < REAL, (2, 1))


@functools.partial(jax.jit, static_argnames="train")
def run(ids, mask, train=False, seed=None):
    rngs = {} if seed is None else dict(dropout=jax.random.key(seed))
    return MODEL.apply(variables(), ids, mask, train, rngs=rngs)


def test_padding_tokens_change_nothing():
    ids, mask = tokens()
    other = np.where(mask, ids, (ids + 5) % VOCABULARY)
    expected, found = run(ids, mask), run(other, mask)
    np.testing.assert_array_equal(found["pooled"], expected["pooled"])
    np.testing.assert_array_equal(found["tokens"][:, :REAL], expected["tokens"][:, :REAL])


def test_the_amount_of_padding_changes_nothing():
    ids, mask = tokens()
    short = run(ids[:, :REAL], mask[:, :REAL])
    np.testing.assert_allclose(run(ids, mask)["pooled"], short["pooled"], rtol=1e-5, atol=1e-5)


def test_every_real_token_and_its_place_counts():
    ids, mask = tokens()
    pooled = run(ids, mask)["pooled"]
    for i in range(REAL):
        other = ids.copy()
        other[:, i] = (other[:, i] + 1) % VOCABULARY
        assert np.abs(run(other, mask)["pooled"] - pooled).max(1).min() > 1e-3
    swapped = ids[:, [0, 2, 1, *range(3, LENGTH)]]
    assert np.abs(run(swapped, mask)["pooled"] - pooled).max() > 1e-3


def test_pooled_is_the_first_tokens_state():
    outputs = run(*tokens())
    np.testing.assert_array_equal(outputs["pooled"], outputs["tokens"][:, 0])


def test_bfloat16_computes_in_bfloat16_and_pools_in_float32():
    model = encoders.build(
        dict(kind="bert", width=8, depth=1, heads=2), "bfloat16", vocab_size=VOCABULARY, text_length=LENGTH
    )
    outputs, made = jax.eval_shape(model.init_with_output, jax.random.key(0), *tokens())
    assert (outputs["tokens"].dtype, outputs["pooled"].dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype(np.float32)}
    assert made["params"]["position"]["embedding"].shape == (LENGTH, 8)
    assert made["params"]["word"]["embedding"].shape == (VOCABULARY, 8)


def test_bert_base_has_as_many_parameters_as_published():
    """109,482,240 in bert-base-uncased, less its pooler, which ALIGN does not use."""
    init = Bert(30_522).init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 109_482_240 - 768 * 769


def test_more_tokens_than_positions_is_an_error():
    ids = jnp.zeros((1, 9), int)
    with pytest.raises(ValueError, match="9 tokens, but max_len is 8"):
        run(ids, ids == 0)


def test_evaluation_has_no_dropout_and_training_has():
    ids, mask = tokens()
    np.testing.assert_array_equal(run(ids, mask)["tokens"], run(ids, mask, seed=1)["tokens"])
    one, same, two = (run(ids, mask, train=True, seed=s)["tokens"] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - two).max() > 1e-3

"""Model FLOPs of a training step."""

import jax

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, flops


def test_a_step_is_three_times_the_loss(set_up, micro_config):
    config = micro_config()
    setup = set_up(config)
    batch = batches.abstract_global_batch(config, mesh_lib.batch_sharding(setup.mesh))
    total = flops.model_flops_per_step(setup.system, setup.abstract_state, batch)
    halved = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // 2, *x.shape[1:]), x.dtype), batch)
    half = flops.model_flops_per_step(setup.system, setup.abstract_state, halved)
    assert total % 3 == 0
    # The similarities, [16, 16] of `dim` products, grow with the square; all else with the batch.
    dim = config["streams"]["pairs"]["objectives"]["contrastive"]["embed_dim"]
    assert total - 2 * half == 3 * 2 * (16 * 16 - 2 * 8 * 8) * dim

"""Two processes; process 1 reads its checkpoints only after errors, or can't read one.

python tests/cluster/restore.py WORKDIR --distributed=ADDRESS
"""

import sys
import time

import jax
import jax.numpy as jnp

from big_ssl import retry
from big_ssl.parallel import distributed
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated
from big_ssl.training.checkpoints import Checkpoints
from big_ssl.training.state import TrainState


def _state(step, sharding):
    make = jax.jit(lambda: (jnp.int32(step), jnp.arange(8.0) + step), out_shardings=sharding)
    number, weights = make()
    return TrainState(number, dict(w=weights), (), {}, None, {})


def _restore(workdir, abstract, errors):
    """(restored step, seconds) if process 1 first gets these errors."""
    checkpoints, left = Checkpoints(workdir, 3), list(errors) if jax.process_index() == 1 else []
    load = checkpoints._load

    def failing(step, abstract_state):
        if left:
            raise left.pop(0)
        return load(step, abstract_state)

    checkpoints._load = failing
    began = time.monotonic()
    state = checkpoints.restore_latest(lambda step: abstract)
    seconds = time.monotonic() - began
    checkpoints.close()
    return int(state.step), seconds


if __name__ == "__main__":
    workdir, address = sys.argv[1:]
    distributed.start(address.removeprefix("--distributed="))
    retry.sleep = lambda seconds: None
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=2, tensor=1))
    mesh_lib.warm_up_collectives(mesh)
    sharding = (replicated(mesh), mesh_lib.batch_sharding(mesh))
    saved = Checkpoints(workdir, 3)
    for step in (2, 4):
        saved.save(_state(step, sharding))
    saved.wait()
    saved.close()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(0, sharding)
    )
    for errors in ([ConnectionResetError()] * 2, [ValueError("DATA_LOSS: Error decoding")]):
        step, seconds = _restore(workdir, abstract, errors)
        print(f"restored {step}{'' if seconds < 30 else f' after {seconds:.0f} s'}", flush=True)
    distributed.shutdown(0)

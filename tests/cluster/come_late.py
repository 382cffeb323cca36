"""Two processes that connect, and reach their first collective 35 s apart.

python tests/cluster/come_late.py --distributed=ADDRESS
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from big_ssl.parallel import distributed
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated

if __name__ == "__main__":
    distributed.start(sys.argv[1].removeprefix("--distributed="))
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=2, tensor=1))
    mesh_lib.warm_up_collectives(mesh)
    if jax.process_index() == 1:
        time.sleep(35)  # as if it compiled longer
    numbers = mesh_lib.from_every_host(mesh, np.arange(8.0))
    print(float(jax.jit(jnp.sum, out_shardings=replicated(mesh))(numbers)))
    distributed.shutdown(0)

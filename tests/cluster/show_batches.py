"""Prints, on process 0, the batches on a job's devices: {"step/row": digest of image and text}.

python tests/cluster/show_batches.py BATCH_SIZE STEPS --distributed=ADDRESS
"""

import hashlib
import itertools
import json
import sys

import jax
from absl import flags
from jax.experimental import multihost_utils

from big_ssl.parallel import distributed
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, build, streams
from configs.align_l2 import get_config


def digests(config, steps):
    """{"step/row": str} of the global batches, as every process sees them on the devices."""
    mesh, results = mesh_lib.make_mesh(config["mesh"]), {}
    iterator = batches.iterate(config, streams.open_streams(config, build.tokenizer(config)), 0, mesh)
    for step, batch in enumerate(itertools.islice(iterator, steps)):
        pairs = mesh_lib.global_batch(mesh, batch)["pairs"]
        image, ids = multihost_utils.process_allgather((pairs["image"], pairs["text"]["ids"]), tiled=True)
        for row in range(len(image)):
            content = image[row].tobytes() + ids[row].tobytes()
            results[f"{step}/{row}"] = hashlib.sha1(content).hexdigest()
    iterator.close()
    return results


def main(batch_size, steps, address):
    flags.FLAGS.mark_as_parsed()
    distributed.start(address)
    config = get_config("demo").to_dict()
    config["streams"]["pairs"]["batch_size"] = int(batch_size)
    results = digests(config, int(steps))
    if jax.process_index() == 0:
        print(json.dumps(results))
    distributed.shutdown(0)


if __name__ == "__main__":
    main(*sys.argv[1:3], sys.argv[3].removeprefix("--distributed="))

"""Writes tests/data/golden_segmentation.npz: transformers' UPerNet head and ViTDet's simple feature pyramid
of PyTorch's layers, with their inputs and outputs.

    python -m tests.parity.make_segmentation_goldens [FOLDER]

needs PyTorch and transformers; it is run from the repository's root.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers
from flax.traverse_util import flatten_dict

from tests.parity import simple_pyramid_peers, upernet_peers
from tests.parity.make_goldens import write_arrays


def main(folder):
    """Writes the file into folder."""
    torch.set_num_threads(1)
    peer, maps = upernet_peers.head(), upernet_peers.maps()
    arrays = {f"map{i}": x for i, x in enumerate(maps)} | dict(logits=upernet_peers.logits(peer, maps))
    torch.manual_seed(0)
    pyramid = simple_pyramid_peers.simple_pyramid(8, 4)
    arrays["pyramid_input"] = np.random.default_rng(1).normal(size=(2, 6, 4, 8)).astype(np.float32)
    outputs = simple_pyramid_peers.outputs(pyramid, arrays["pyramid_input"])
    arrays |= {f"pyramid_output{i}": x for i, x in enumerate(outputs)}
    pyramid_params = simple_pyramid_peers.parameters(pyramid)
    weights = flatten_dict(dict(upernet=upernet_peers.variables(peer), pyramid=pyramid_params), sep="/")
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}"
    write_arrays(folder / "golden_segmentation.npz", weights, made_by, **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data"))

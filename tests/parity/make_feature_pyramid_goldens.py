"""Writes tests/data/golden_feature_pyramid.npz: torchvision's feature pyramid, its inputs and outputs.

    python -m tests.parity.make_feature_pyramid_goldens [FOLDER]

needs PyTorch and torchvision; it is run from the repository's root.
"""

import pathlib
import sys

import torch
import torchvision
from flax.traverse_util import flatten_dict

from tests.parity import pyramid_peers
from tests.parity.make_goldens import write_arrays


def main(folder):
    """Writes the file into folder."""
    torch.set_num_threads(1)
    peer, arrays = pyramid_peers.feature_pyramid(), {}
    for name in pyramid_peers.SIZES:
        inputs = pyramid_peers.maps(name)
        arrays |= {f"{name}_map{i}": x for i, x in enumerate(inputs)}
        arrays |= {f"{name}_output{i}": x for i, x in enumerate(pyramid_peers.run(peer, inputs))}
    weights = flatten_dict(pyramid_peers.params(peer), sep="/")
    made_by = f"torchvision {torchvision.__version__}, torch {torch.__version__}"
    write_arrays(folder / "golden_feature_pyramid.npz", weights, made_by, **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data"))

"""Writes tests/data/golden_dpt.npz: a small random DPT of transformers, with our names, its input and depths.

    python -m tests.parity.make_depth_goldens [FOLDER]

needs PyTorch and transformers (`make parity` installs them); it is run from the repository's root.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers
from flax.traverse_util import flatten_dict

from tests.parity import depth_peers


def main(folder):
    """Writes the file into folder."""
    torch.set_num_threads(1)
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}"
    peer, tokens = depth_peers.dpt(depth_peers.BINS), depth_peers.tokens(count=1)
    logits = depth_peers.run(peer, tokens)
    arrays = dict(tokens=tokens, grid=depth_peers.GRID, depth=np.float32(depth_peers.bins(logits)))
    weights = {f"weights/{name}": x for name, x in flatten_dict(depth_peers.params(peer), sep="/").items()}
    np.savez_compressed(folder / "golden_dpt.npz", made_by=made_by, **weights, **arrays)


if __name__ == "__main__":
    main(pathlib.Path(*sys.argv[1:2]) if sys.argv[1:] else pathlib.Path(__file__).parents[1] / "data")

"""Writes tests/data/golden_*.npz: small random models of transformers, their inputs and outputs.

    python -m tests.parity.make_goldens [FOLDER]

needs PyTorch (`make parity` installs it) and is run from the repository's root. The files hold
transformers' own names, so that the mapping of names is tested with them.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

from tests.parity import peers


def main(folder):
    """Writes both files into folder."""
    torch.set_num_threads(1)
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}"
    peer, _ = peers.bert()
    ids, mask = peers.bert_inputs()
    write(
        folder / "golden_bert.npz", peer, made_by, ids=ids, mask=mask, tokens=peers.run_bert(peer, ids, mask)
    )
    peer, _ = peers.efficientnet()
    images = peers.image_inputs()
    evaluation = peers.run_efficientnet(peer, images)
    weights = peers.state(peer)
    training = peers.run_efficientnet(peer.train(), images)  # moves the running statistics
    peer.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    write(
        folder / "golden_efficientnet.npz",
        peer,
        made_by,
        images=images,
        evaluation=evaluation,
        training=training,
    )


def write(path, peer, made_by, **arrays):
    """One compressed file: weights under "weights/", made_by, and the arrays under their names."""
    weights = {f"weights/{name}": value for name, value in peers.state(peer).items()}
    np.savez_compressed(path, made_by=made_by, **weights, **arrays)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data"))

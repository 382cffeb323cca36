"""Writes tests/data/golden_detection.npz and golden_dynamic_head.npz: a detector's operations in PyTorch.

    python -m tests.parity.make_detection_goldens [FOLDER]

needs PyTorch and torchvision with its compiled operations; it is run from the repository's root.
"""

import pathlib
import sys

import numpy as np
import torch
import torchvision

from tests.parity import detection_peers as peers

# (size of the map, stride, standard deviation of offsets): odd sizes; taps that leave the map, by far.
CONVOLUTIONS = dict(near=((5, 7), 1, 1.0), strided=((7, 6), 2, 1.0), far=((4, 5), 1, 30.0))


def main(folder):
    """Writes both files into folder."""
    torch.set_num_threads(1)
    made_by = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    _write(folder / "golden_detection.npz", made_by=made_by, **_convolutions(), **_boxes(), **_kept())
    peer = peers.dyhead()
    weights = {
        f"weights/{name}": value.numpy().astype(np.float16) for name, value in peer.state_dict().items()
    }
    arrays = {}
    for i, value in enumerate(peers.random_maps()):
        arrays[f"map{i}"] = value
    for name, misindexed in (("resized", False), ("misindexed", True)):
        outputs = peers.run_dyhead(peer, peers.random_maps(), misindexed)
        arrays |= {f"{name}{i}": value for i, value in enumerate(outputs)}
    _write(folder / "golden_dynamic_head.npz", made_by=made_by, **weights, **arrays)


def _convolutions():
    arrays = {}
    for name, (size, stride, scale) in CONVOLUTIONS.items():
        inputs = peers.random_convolution(size, stride, scale)
        outputs = peers.run_convolution(peers.torchvision_convolution, inputs, stride)
        arrays |= {f"{name}/inputs/{key}": value for key, value in inputs.items()}
        arrays |= {f"{name}/outputs/{key}": value for key, value in outputs.items()}
    return arrays


def _boxes():
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(6, 4))).astype(np.float32)
    inputs = dict(
        logits=logits,
        positive=rng.uniform(size=logits.shape) < 0.3,
        boxes=peers.random_boxes(12),
        others=peers.random_boxes(12, 1),
    )
    deltas, decoded = peers.run_coder(inputs["boxes"], inputs["others"])
    return inputs | peers.run_losses(**inputs) | dict(deltas=deltas, decoded=decoded)


def _kept():
    boxes, scores, labels = peers.random_candidates(80)
    arrays = map(torch.tensor, (boxes, scores, labels))
    kept = torchvision.ops.batched_nms(*arrays, 0.5).numpy()
    return dict(candidates=boxes, scores=scores, labels=labels, kept=kept)


def _write(path, **arrays):
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data"))

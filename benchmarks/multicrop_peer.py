"""iBOT's twelve views of a picture by torchvision, all on the host, for benchmarks/multicrop.py."""

import io
from collections.abc import Callable, Sequence

from PIL import Image, ImageFilter

NAMES = ("torchvision PIL", "torchvision uint8")


def pipelines(config: dict, pictures: Sequence[bytes]) -> dict[str, Callable[[int], list]]:
    """{name: (number of a picture) -> its crops, float32[3, H, W] each}, with the values of config."""
    import torch
    from torchvision.transforms import v2

    torch.set_num_threads(1)

    class PilBlur(v2.Transform):
        """Pillow's blur with a radius uniform in [0.1, 2], as in DINO's code."""

        def make_params(self, flat_inputs):
            return dict(radius=torch.empty(1).uniform_(0.1, 2).item())

        def transform(self, inpt, params):
            return inpt.filter(ImageFilter.GaussianBlur(**params))

    blurs = dict(zip(NAMES, (PilBlur(), v2.GaussianBlur(9, (0.1, 2.0))), strict=True))
    starts = dict(zip(NAMES, (v2.Identity(), v2.PILToTensor()), strict=True))
    ends = dict(zip(NAMES, (v2.PILToTensor(), v2.Identity()), strict=True))

    def made(name):
        crops = [
            v2.Compose([*steps, ends[name], *_normal(torch, v2, config)])
            for steps in _crops(v2, config, blurs[name])
        ]

        def run(i):
            with Image.open(io.BytesIO(pictures[i])) as opened:
                picture = starts[name](opened.convert("RGB"))
            return [crop(picture) for crop in crops]

        return run

    return {name: made(name) for name in NAMES}


def _crops(v2, config, blur):
    """What happens to each of the crops before it is scaled: lists of transforms."""
    for name in ("global_crops", "local_crops"):
        device = config["streams"]["images"]["data"]["fields"][name]
        host = device["crop"]
        for i in range(host["count"]):
            steps = [
                v2.RandomResizedCrop(host["size"], host["scale"], interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(*device["jitter"])], device["jitter_prob"]),
                v2.RandomGrayscale(device["grayscale_prob"]),
                v2.RandomApply([blur], device["blur_prob"][i]),
            ]
            if device["solarize_prob"]:
                steps.append(v2.RandomSolarize(128, device["solarize_prob"][i]))
            yield steps


def _normal(torch, v2, config):
    view = config["streams"]["images"]["data"]["fields"]["global_crops"]
    return v2.ToDtype(torch.float32, scale=True), v2.Normalize(view["mean"], view["std"])

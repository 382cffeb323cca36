"""Host CPU time of iBOT's multi-crop, 2 x 224 and 10 x 96 pixels of a picture: ours against torchvision.

    OMP_NUM_THREADS=1 python -m benchmarks.multicrop [--pictures=24] [--rounds=7] [--json=FILE]

Ours decodes and crops on the host and hands uint8 to the device, where the step does the rest: colours, grey,
blur, solarisation, flips, normalisation. torchvision does all of it on the host, in two forms: on PIL
pictures, as the published code of DINO and iBOT does, and on uint8 tensors, as its v2 transforms prefer. All
decode the same JPEGs with Pillow, with the values of configs/ibot.py, on one thread, in turns. Counted
is the process's CPU time. A ratio above 1 means that ours needs less of the host. What ours leaves to the
device is told beside it, with its CPU time where the device is the host's own CPU.

The pictures are noise with the spectrum of photographs, 500 x 375 pixels and about 110 kB, as ImageNet's
usually are. Needs torch and torchvision: pip install torch torchvision.
"""

import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import app, flags
from PIL import Image
from rich.progress import track

from benchmarks import multicrop_peer
from big_ssl.data import decode, fields
from big_ssl.data.pipeline import LoadExample
from configs import ibot

WIDTH, HEIGHT, QUALITY = 500, 375, 90
CROPS = ("global_crops", "local_crops")

_PICTURES = flags.DEFINE_integer("pictures", 24, "Pictures in a round.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds of each in turn.", 1)
_JSON = flags.DEFINE_string("json", None, "Writes what is printed to this file.")


def photograph(seed: int) -> bytes:
    """A JPEG of noise whose amplitude falls with the frequency, as in photographs (Field 1987)."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(3, HEIGHT, WIDTH)))
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = np.inf
    channels = np.fft.irfft2(spectrum / frequency, s=(HEIGHT, WIDTH))
    grey = channels.mean(0)  # the channels of a photograph differ little
    pixels = 128 + 50 * (grey + 0.1 * (channels - grey)) / grey.std()
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def host_part(config: dict, pictures: Sequence[bytes]) -> Callable[[int], dict]:
    """(number of a picture) -> its crops, uint8, by the loader that training uses."""
    data = config["streams"]["images"]["data"]
    made = fields.build({name: data["fields"][name] for name in CROPS}, 0)
    load = LoadExample([dict(image=picture) for picture in pictures], made)
    rngs = [np.random.default_rng(i) for i in range(len(pictures))]
    return lambda i: load.random_map(i, rngs[i])


def device_part(config: dict, batch: dict) -> Callable[[], dict]:
    """() -> what the step makes of a batch of crops, {view: uint8[B, n, H, W, 3]}, computed."""
    options = config["streams"]["images"]["data"]["fields"]
    made = fields.build({name: options[name] for name in CROPS}, 0)
    key = jax.random.key(0)
    run = jax.jit(
        lambda batch, key: {name: field.transform(batch[name], key) for name, field in made.items()}
    )
    batch = jax.device_put(batch)
    return lambda: jax.block_until_ready(run(batch, key))


def seconds(tasks: dict[str, Callable[[int], object]], count: int, rounds: int) -> dict[str, np.ndarray]:
    """{name: float[rounds]}, CPU seconds of a picture; each task is called with 0 to count - 1."""
    taken = {name: [] for name in tasks}
    for number in track(range(-1, rounds), "timing", transient=True):
        for name, task in tasks.items():
            began = time.process_time()
            for i in range(count):
                task(i)
            if number >= 0:  # the first round warms up
                taken[name].append((time.process_time() - began) / count)
    return {name: np.array(values) for name, values in taken.items()}


def device_seconds(run: Callable[[], object], count: int, rounds: int) -> np.ndarray:
    """float[rounds, 2]: by the clock, and of all the process's cores, for a picture."""
    taken = []
    for _ in range(rounds + 1):
        began = np.array([time.perf_counter(), time.process_time()])
        run()
        taken.append((np.array([time.perf_counter(), time.process_time()]) - began) / count)
    return np.array(taken[1:])


def report(host: dict[str, np.ndarray], device: np.ndarray) -> dict:
    """Prints the figures, and returns them."""
    found = {name: values.tolist() for name, values in host.items()} | dict(device=device.tolist())
    for name, values in host.items():
        print(f"{name:>18}: {_spread(values * 1e3)} ms of host CPU for 12 views")
    for name in multicrop_peer.NAMES:
        ratios = host[name] / host["ours"]
        found[f"{name} / ours"] = ratios.tolist()
        print(f"{name} / ours: {_spread(ratios)}")
    clock, cores = np.median(device, 0) * 1e3
    where = jax.devices()[0].device_kind
    print(f"left to the device ({where}): {clock:.1f} ms by the clock, {cores:.1f} ms of this host's cores")
    if jax.default_backend() == "cpu":
        fastest = min(np.median(host[name]) for name in multicrop_peer.NAMES)
        whole = np.median(host["ours"]) + cores / 1e3
        print(f"here the device is the host: the faster torchvision / ours with it: {fastest / whole:.2f}")
    return found


def _spread(values):
    return f"{np.median(values):.2f} ({values.min():.2f} to {values.max():.2f})"


def main(argv) -> None:
    del argv
    if not all(importlib.util.find_spec(name) for name in ("torch", "torchvision")):
        sys.exit("multicrop compares with torchvision: pip install torch torchvision")
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("multicrop compares single threads: set OMP_NUM_THREADS=1 before it starts")
    config = ibot.get_config().to_dict()
    pictures = [photograph(seed) for seed in range(_PICTURES.value)]
    print(
        f"{len(pictures)} pictures, {np.mean([len(picture) for picture in pictures]) / 1e3:.0f} kB on average"
    )
    ours = host_part(config, pictures)
    theirs = multicrop_peer.pipelines(config, pictures)
    tasks = dict(ours=ours, **theirs) | {
        "decoding alone": lambda i: decode.decode_rgb(pictures[i], np.asarray)
    }
    host = seconds(tasks, len(pictures), _ROUNDS.value)
    examples = [ours(i) for i in range(len(pictures))]
    batch = {name: np.stack([example[name] for example in examples]) for name in CROPS}
    device = device_seconds(device_part(config, batch), len(pictures), _ROUNDS.value)
    found = report(host, device)
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    app.run(main)

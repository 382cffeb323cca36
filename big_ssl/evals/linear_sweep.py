"""Linear heads on frozen features by SGD, many at once: the protocol of DINOv2's code (arXiv 2304.07193).

Heads at 13 learning rates, on the class tokens of the last one or four layers, with and without the mean of
the patches: 52 heads, trained together, independently of one another. One difference: DINOv2's code selects
the head on the images that it reports, this code on a validation split.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_ssl import io
from big_ssl.data import pipeline
from big_ssl.data.crops import RandomResizedCrop
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import ranking
from big_ssl.evals.batched import in_batches
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.labelled_set import LabelledSet, labelled_splits
from big_ssl.evals.linear_features import check_layers, linear_features
from big_ssl.parallel import distributed
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated
from big_ssl.weights import linear_heads

# Learning rates at a batch of 256; they scale with the batch.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_PREDICTED = 1024


class Head(NamedTuple):
    """blocks: it reads the class tokens of this many last layers; patches: whether it also reads the mean of
    the patches; rate: its learning rate."""

    blocks: int
    patches: bool
    rate: float


class Sweep(NamedTuple):
    """The heads and the steps of training: one head for each combination of blocks, patches and rates."""

    blocks: tuple[int, ...]
    patches: tuple[bool, ...]
    rates: tuple[float, ...]
    classes: int
    steps: int
    batch_size: int

    @property
    def inputs(self) -> list[tuple[int, bool]]:
        """(blocks, patches) of the heads that share an input, the simplest first."""
        return [(b, p) for b in sorted(self.blocks) for p in sorted(self.patches)]

    @property
    def heads(self) -> list[Head]:
        """All heads, in the order of `predictions`."""
        return [Head(*kind, rate) for kind in self.inputs for rate in self.rates]


class LinearSweep(Evaluator):
    """The best of many linear heads, selected on a validation split.

    train, test, validation: labelled sources with the same labels; without validation, a random
    validation_fraction of train takes its place. label: as in LabelledSet. rates, blocks, patches: as in
    Sweep. steps, batch_size: of SGD, cosine to 0. augment: whether heads are trained on random crops of the
    images, mirrored or not, through the whole encoder; if not, on features of whole images, computed once.
    save: the file for the best head, "" for none; see weights.linear_heads.
    """

    requires = ("intermediate_layers",)

    def __init__(
        self,
        train: SourceConfig,
        test: SourceConfig,
        validation: SourceConfig | None = None,
        validation_fraction: float = 0.1,
        label: str = "label",
        rates: Sequence[float] = RATES,
        blocks: Sequence[int] = (1, 4),
        patches: Sequence[bool] = (False, True),
        steps: int = 12_500,
        batch_size: int = 1024,
        augment: bool = True,
        save: str = "",
        *,
        name: str,
    ):
        splits = dict(train=train, validation=validation, test=test)
        self._sets = labelled_splits("linear_sweep", splits, label)
        names = self._sets["train"].names
        if validation is None:
            labelled = self._sets["train"]
            self._sets["train"], self._sets["validation"] = labelled.split(validation_fraction)
        self._sweep = Sweep(tuple(blocks), tuple(patches), tuple(rates), len(names), steps, batch_size)
        _check(self._sweep)
        _check_save(self._sweep, save)
        self._augment, self._save, self._name = augment, save, name

    def check(self, predictor) -> None:
        """Raises ValueError if the image encoder does not have the outputs that the heads read."""
        check_layers(predictor.encoder, max(self._sweep.blocks))

    def metrics(self, predictor) -> dict[str, float]:
        """{"linear_sweep/<name>/<metric>": value}: top1, mean_per_class and chance on test; rate, blocks
        and patches (1 or 0) of the selected head, and its validation_top1."""
        mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1))
        if self._save:
            io.make_folder(io.as_path(self._save).parent)
        with contextlib.closing(self._batches(predictor)) as batches:
            steps = predictor.progress(batches, self._sweep.steps, f"{self._name}: heads")
            params = train_heads(self._sweep, steps, mesh)
        validation, test = (self._features(predictor, split) for split in ("validation", "test"))
        best, accuracy = choose(self._sweep, params, validation, mesh)
        if self._save and jax.process_index() == 0:
            linear_heads.write_head(self._save, *published(self._sweep, params, best))
        metrics = evaluate(self._sweep, params, best, test, mesh) | dict(validation_top1=accuracy)
        return {f"linear_sweep/{self._name}/{metric}": value for metric, value in metrics.items()}

    def _features(self, predictor, split):
        """(float32[N, blocks + 1, W], int[N]), see linear_features."""
        count = max(self._sweep.blocks)
        function = lambda images: predictor.apply(linear_features, images, count)  # noqa: E731
        kind = f"tokens of {count} layers"
        return self._sets[split].extract_features(function, kind, predictor, f"{self._name}: {split}")

    def _batches(self, predictor):
        steps, size = self._sweep.steps, self._sweep.batch_size
        if not self._augment:
            yield from fixed_batches(*self._features(predictor, "train"), steps, size)
            return
        # Only preprocess knows the size of the model's images.
        side = predictor.preprocess(np.zeros((1, 8, 8, predictor.channels), np.uint8)).shape[1]
        # A step's batch consists of predictor batches; every host loads its rows of each.
        host, starts = predictor.split, range(0, size, predictor.split.size)
        parts = [start + host.rows(min(host.size, size - start)) for start in starts]
        ends = np.cumsum([len(rows) for rows in parts])[:-1]
        loader = _random_crops(self._sets["train"], side, predictor.channels, size, np.concatenate(parts))
        count = max(self._sweep.blocks)
        with contextlib.closing(loader) as examples:
            for _ in range(steps):
                with distributed.raise_on_all_hosts(ValueError):
                    batch = next(examples)
                images, labels = (
                    map(host.place, np.split(np.asarray(batch[key]), ends)) for key in ("image", "label")
                )
                features = [predictor.apply(linear_features, part, count) for part in images]
                yield np.concatenate(features), np.concatenate([host.collect(part) for part in labels])


class _Load(grain.transforms.RandomMap):
    """Index -> dict(image: uint8[S, S, 3], label: int)."""

    def __init__(self, data: LabelledSet, side: int, channels: int):
        # DINOv2's crops for linear probes: torchvision's areas, bicubic.
        self._data, self._cropper = data, RandomResizedCrop(side, scale=(0.08, 1.0))
        self._channels = channels

    def random_map(self, index: int, rng: np.random.Generator):
        (crop,), label = self._data.image(index, lambda image: self._crop(image, rng), self._channels)
        # Flipped here: the encoder normalises images as in any evaluation, without augmentation.
        return dict(image=crop[:, ::-1] if rng.random() < 0.5 else crop, label=label)

    def _crop(self, image, rng):
        prepared = self._cropper.prepare(image)
        return self._cropper.render(prepared, self._cropper.draw(prepared, rng))


def _random_crops(data, side, channels, size, rows):
    threads = os.cpu_count() or 1
    part = pipeline.Part(_Load(data, side, channels), len(data))
    return pipeline.batches([part], size, seed=0, start=0, threads=threads, rows=rows)


def fixed_batches(features, labels, steps: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (features[size, ...], labels[size]) for each step, in consecutive, reshuffled epochs."""
    rng, order = np.random.default_rng(0), np.empty(0, int)
    for _ in range(steps):
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(len(labels))])
        rows, order = order[:size], order[size:]
        yield features[rows], labels[rows]


def train_heads(sweep: Sweep, batches, mesh) -> list[dict]:
    """Trains all heads, a step on each batch.

    A head's weights do not depend on the other heads. SGD with momentum 0.9, without weight decay, from
    N(0, 0.01); a step's learning rate is the head's rate x B / 256 x the cosine.

    Args:
      sweep: the heads.
      batches: pairs of (float32[B, n + 1, W], see linear_features; int[B]), n the largest number of blocks.
      mesh: batches are split over it.

    Returns:
      For each input dict(kernel: float32[R, I, C], bias: float32[R, C]), R rates.
    """
    state: Any = None
    for features, labels in batches:
        batch = mesh_lib.from_every_host(mesh, (features, np.asarray(labels, np.int32)))
        start, step = _compiled(sweep, features.shape[-1], mesh)
        # One at a time: steps that wait in a queue would each hold their batch.
        state = jax.block_until_ready(step(start() if state is None else state, *batch))
    return state[0]


@functools.cache
def _compiled(sweep, width, mesh):
    """(() -> state, step), the state (heads, optimiser state) replicated on every device."""

    def start():
        heads = [_initial(kind, sweep, width) for kind in sweep.inputs]
        return heads, _optimizer(sweep).init(heads)

    place = replicated(mesh)
    step = jax.jit(functools.partial(_step, sweep), donate_argnums=0, out_shardings=place)
    return jax.jit(start, out_shardings=place), step


def _initial(kind, sweep, width):
    blocks, patches = kind
    # The key depends only on the input, so heads that differ in rate have the same initial weights.
    key = jax.random.fold_in(jax.random.key(0), 2 * blocks + patches)
    kernel = 0.01 * jax.random.normal(key, ((blocks + patches) * width, sweep.classes))
    return dict(
        kernel=jnp.tile(kernel, (len(sweep.rates), 1, 1)), bias=jnp.zeros((len(sweep.rates), sweep.classes))
    )


def _optimizer(sweep):
    """SGD at unit rate; `_step` multiplies by each head's rate."""
    return optax.sgd(optax.cosine_decay_schedule(1.0, sweep.steps), momentum=0.9)


def _step(sweep, state, features, labels):
    heads, moments = state
    updates, moments = _optimizer(sweep).update(jax.grad(_loss)(heads, sweep, features, labels), moments)
    rates = jnp.asarray(sweep.rates) * sweep.batch_size / 256
    return jax.tree.map(lambda x, u: x + rates.reshape(-1, *[1] * (u.ndim - 1)) * u, heads, updates), moments


def _loss(heads, sweep, features, labels):
    """The sum of all heads' losses; a head's gradient is the gradient of its loss."""
    logits = _logits(heads, sweep, features)
    labels = jnp.broadcast_to(labels, logits.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(1).sum()


def _logits(heads, sweep, features):
    """float32[heads, B, C]."""
    last = features.shape[1] - 1
    all_logits = []
    for (blocks, patches), head in zip(sweep.inputs, heads, strict=True):
        inputs = features[:, last - blocks : last + patches].reshape(len(features), -1)
        logits = jnp.einsum("bi,ric->rbc", inputs, head["kernel"], precision="highest")
        all_logits.append(logits + head["bias"][:, None])
    return jnp.concatenate(all_logits)


def predictions(sweep: Sweep, heads, features: np.ndarray, mesh) -> np.ndarray:
    """int[N, heads]: the class that each head predicts. features: as in train_heads, of any number."""
    run = functools.partial(_predicting(sweep, mesh), heads)
    return in_batches(run, mesh, features, min(_PREDICTED, len(features))).astype(int)


@functools.cache
def _predicting(sweep, mesh):
    named = lambda heads, features: _logits(heads, sweep, features).argmax(2).T  # noqa: E731
    return jax.jit(named, out_shardings=replicated(mesh))


def choose(sweep: Sweep, heads, validation, mesh) -> tuple[int, float]:
    """(index of the best of sweep.heads on validation, its accuracy there); of equally good heads the
    simplest, with the lowest rate.

    validation: (features, labels), as in train_heads.
    """
    predicted = predictions(sweep, heads, validation[0], mesh)
    accuracies = (predicted == validation[1][:, None]).mean(0)
    best = int(accuracies.argmax())
    return best, float(accuracies[best])


def evaluate(sweep: Sweep, heads, best: int, test, mesh) -> dict[str, float]:
    """The metrics of LinearSweep except validation_top1, for sweep.heads[best]. test: as in train_heads."""
    hits = predictions(sweep, heads, test[0], mesh)[:, best] == test[1]
    return dict(
        top1=float(hits.mean()),
        mean_per_class=ranking.mean_per_class(hits, test[1]),
        chance=1 / sweep.classes,
    ) | {key: float(value) for key, value in sweep.heads[best]._asdict().items()}


def published(sweep: Sweep, heads, best: int) -> tuple[np.ndarray, np.ndarray]:
    """(weight: float32[C, (blocks + 1) W], bias: float32[C]) of sweep.heads[best], see weights.linear_heads;
    the weights of the patches' mean are zero for a head that does not read it."""
    place, rate = divmod(best, len(sweep.rates))
    blocks, patches = sweep.inputs[place]
    kernel, bias = (np.asarray(heads[place][name][rate]) for name in ("kernel", "bias"))
    unread = 0 if patches else len(kernel) // blocks
    return np.pad(kernel, ((0, unread), (0, 0))).T, bias


def _check(sweep):
    for name in ("blocks", "patches", "rates"):
        values = getattr(sweep, name)
        if not values or (name != "patches" and min(values) <= 0) or len(set(values)) < len(values):
            raise ValueError(f"linear_sweep: {name} is {values}; it must hold different positive numbers")
    devices = jax.device_count()
    if sweep.steps < 1 or sweep.batch_size < 1 or sweep.batch_size % devices:
        raise ValueError(
            f"linear_sweep: steps is {sweep.steps} and batch_size {sweep.batch_size}; both must be at "
            f"least 1, and batch_size a multiple of the {devices} devices"
        )


def _check_save(sweep, save):
    if save and io.as_path(save).suffix != ".safetensors":
        raise ValueError(f"linear_sweep: save is {save!r}; heads are written as .safetensors")
    if save and not set(sweep.blocks) <= set(linear_heads.BLOCKS):
        raise ValueError(
            f"linear_sweep: blocks is {sweep.blocks}; a head to save has one of {linear_heads.BLOCKS}"
        )

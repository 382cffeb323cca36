"""Draws a model's predictions on images: boxes, the class of each pixel, or its depth.

    python -m big_ssl.predict --checkpoint=runs/depth --task=depth --images=PHOTOS --output=drawn
    python -m big_ssl.predict --checkpoint=runs/detector --task=detect --classes=cat,dog --images=cat.jpg \
        --output=drawn

Writes to --output a drawing of each image (PNG), index.html, which shows all of them, and predictions.json;
and under maps/ the class maps as PNGs or the depths as .npy arrays. An image that can't be read is named, and
counted at the end. Exit code 2, and one line, where something does not fit, or no image can be read.
"""

import collections
import functools
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from absl import app, flags, logging
from etils import epath

from big_ssl import command_line, inference, io
from big_ssl.checkpoint_flag import CHECKPOINT
from big_ssl.command_line import OUTPUT
from big_ssl.data import bands, decode
from big_ssl.data.records import IMAGE
from big_ssl.data.sources import ImageFolder
from big_ssl.evals import page, plots
from big_ssl.evals.capabilities import requirement_error
from big_ssl.evals.predictions import TASKS
from big_ssl.model_flags import FROM, resolve_format
from big_ssl.model_flags import options as model_options

_TASK = flags.DEFINE_enum("task", None, list(TASKS), "What to predict.")
_IMAGES = flags.DEFINE_string("images", None, "A folder of images, at any depth, or one image.")
_CLASSES = flags.DEFINE_list("classes", [], "The names of the classes, in the order of their numbers.")
_ZERO_SHOT = flags.DEFINE_bool("zero_shot", False, "detect: classify boxes by --classes, as texts.")

# Errors of a run are one line; a path that there is not is an OSError.
_ERRORS = (OSError, ValueError)


def predict(
    path,
    task: str,
    images,
    output,
    classes: Sequence[str] = (),
    zero_shot: bool = False,
    source: str = "auto",
    options: Mapping | None = None,
) -> tuple[int, int]:
    """Draws the predictions of one model on images, and writes them; see the top of this file.

    Args:
      path: of the model.
      task: a key of TASKS.
      images: a folder or a file.
      output: the folder to write.
      classes: names of the classes, () to show numbers.
      zero_shot: whether `detect` classifies boxes by the names, as texts.
      source, options: as in inference.read; a guessed format is printed.

    Returns:
      (how many images were drawn, how many could not be read).

    Raises:
      OSError, or ValueError that names what does not fit.
    """
    if zero_shot and (task != "detect" or not classes):
        raise ValueError("--zero_shot is of --task=detect, with --classes")
    folder, files = _listed(images, output)
    output = io.make_folder(output)
    config, weights = inference.read(path, resolve_format(source, path), options)
    model = inference.Model(config, weights)
    if error := requirement_error(model, (task,)):
        raise ValueError(f"--task={task} {error}")
    entries, failed = [], []
    call = functools.partial(getattr(model, task), **dict(class_names=list(classes)) if zero_shot else {})
    names = _drawing_names(files)
    for name in command_line.progress(files, len(files), task):
        try:
            image = decode.decode_channels(files[name](), np.asarray, decode.TRAINING, model.channels)
        except _ERRORS as error:
            failed.append(dict(image=name, error=" ".join(str(error).split())))
            print(f"{folder / name}: not read: {failed[-1]['error']}", file=sys.stderr)
            continue
        (result,) = call([image])
        entries.append(
            _written(output, names[name], name, TASKS[task](bands.visible(image), result, classes))
        )
    _write_index(output, task, path, entries, failed)
    return len(entries), len(failed)


def _listed(images, output) -> tuple[epath.Path, dict]:
    """(the folder, {an image's path in it: a function that returns its bytes})."""
    path = io.as_path(images)
    if not path.exists():
        raise FileNotFoundError(f"--images={images}: there is no such file or folder")
    if not path.is_dir():
        return path.parent, {path.name: path.read_bytes}
    if io.absolute(output).is_relative_to(io.absolute(path)):
        raise ValueError(
            f"--output={output} lies in --images={images}, where the drawings would be taken for images"
        )
    source = ImageFolder(str(path))
    names = {str(io.as_path(source.record_name(i)).relative_to(path)): i for i in range(len(source))}
    return path, {name: functools.partial(_bytes, source, names[name]) for name in sorted(names)}


def _bytes(source, index):
    return source[index][IMAGE]


def _drawing_names(files: Iterable[str]) -> dict[str, str]:
    """{an image's path: its drawing's, without suffix}; suffixes stay where paths differ in them alone."""
    stems = {name: str(pathlib.PurePosixPath(name).with_suffix("")) for name in files}
    count = collections.Counter(stems.values())
    return {name: stem if count[stem] == 1 else name for name, stem in stems.items()}


def _written(output, stem, name, prediction) -> dict:
    """Writes the files of one prediction; returns its entry of predictions.json."""
    io.write_atomically(output / f"{stem}.png", plots.png(prediction.drawing))
    entry = dict(image=name, drawing=f"{stem}.png", caption=prediction.caption) | prediction.record
    if prediction.suffix:
        entry["map"] = f"maps/{stem}{prediction.suffix}"
        io.write_atomically(output / entry["map"], prediction.file)
    return entry


def _write_index(output, task, checkpoint, entries, failed):
    """Writes predictions.json, and index.html, which shows all drawings."""
    record = dict(checkpoint=str(checkpoint), task=task, predictions=entries, failed=failed)
    io.write_atomically(output / "predictions.json", f"{json.dumps(record, indent=2)}\n".encode())
    title = f"{task}: {len(entries):,} images"
    text = f"Predictions of {checkpoint}; predictions.json has them as numbers."
    width = 640 if task == "depth" else 420
    page_text = page.render(
        "predictions.html", title=title, text=text, width=width, entries=entries, failed=failed
    )
    io.write_atomically(output / "index.html", page_text.encode())


def main(argv) -> None:
    del argv
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # jax tells of every backend that it looks for
    try:
        drawn, failed = predict(
            CHECKPOINT.value,
            str(_TASK.value),
            _IMAGES.value,
            OUTPUT.value,
            _CLASSES.value,
            _ZERO_SHOT.value,
            FROM.value,
            model_options(),
        )
        if not drawn:
            raise ValueError(f"none of the {failed:,} images of {_IMAGES.value} can be read")
    except _ERRORS as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        sys.exit(2)
    missing = f", {failed:,} not read" if failed else ""
    print(f"{drawn:,} images drawn{missing}: {io.as_path(OUTPUT.value) / 'index.html'}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "task", "images", "output"])
    app.run(main, flags_parser=command_line.parse_flags)

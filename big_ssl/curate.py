"""Filters noisy image-text pairs by ALIGN's rules, and writes a dataset for training.

    python -m big_ssl.curate --source.kind=parquet --source.path=FILE_OR_DIR --texts=title,alt --output=DIR
    python -m big_ssl.curate --source.kind=tfds --source.name=NAME --source.split=train \
        --source.data_dir=DIR --texts=text --limits.max_images=20 --output=DIR
    python -m big_ssl.curate ... --output=DIR --beam=runner=DirectRunner     # or any other runner

Writes a TFDS dataset (config: kind="tfds", name="curated_pairs", split="train", data_dir=DIR), and beside it
funnel.json and funnel.png, which count what each rule dropped. docs/curate.md describes them.
Exit code 2, and one line on stderr, for an error in the flags or the data.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from big_ssl import command_line, io
from big_ssl.command_line import OUTPUT
from big_ssl.config import ConfigError, validate_source
from big_ssl.curation import counting, funnel, languages, near_duplicates, records
from big_ssl.curation.limits import Limits
from big_ssl.data import sources

# "": unset, for the source's default.
_UNSET = dict(kind="", path="", name="", split="", data_dir="", image_key="")
_SOURCE = config_flags.DEFINE_config_dict("source", ConfigDict(_UNSET), "Where the records are.")
_LIMITS = config_flags.DEFINE_config_dict("limits", ConfigDict(dataclasses.asdict(Limits())), "Thresholds.")
_TEXTS = flags.DEFINE_list("texts", None, "Which texts of a record are captions: columns or feature names.")
_SIDES = flags.DEFINE_list(
    "sides", [], "WIDTH,HEIGHT: a record's keys with its original's size; else the image header's."
)
_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "NPZ with embeddings, float[N, D], one row per record.")
_REFERENCES = flags.DEFINE_string("references", None, "NPZ with embeddings, float[M, D], of evaluation sets.")
_COSINE = flags.DEFINE_float(
    "cosine", near_duplicates.THRESHOLD, "A larger cosine to a reference is a duplicate."
)
_BEAM = flags.DEFINE_list("beam", [], "Options of Apache Beam, runner=NAME first; without, runs here.")


def curate(items: records.Items, limits: Limits, output: str, beam: Sequence[str] = ()) -> dict:
    """Filters records and writes the dataset and its funnel.

    Args:
      items: the records.
      limits: the thresholds.
      output: the folder to write to.
      beam: options of Apache Beam, such as "runner=DirectRunner"; without any, this process filters.

    Returns:
      funnel.table's dict.

    Raises:
      ValueError: if no pair is kept.
      FileExistsError: if output already contains a dataset.
      ImportError: if a library of the curation extra is missing.
    """
    languages.check(limits.languages)
    if beam and io.is_remote(output):
        raise ValueError(
            f"--output={output}: --beam needs a folder on a disk that all workers share; array_record, which "
            "writes the dataset, supports no buckets"
        )
    folder = io.make_folder(output)
    if (folder / records.NAME).exists():
        raise FileExistsError(f"{output} already contains {records.NAME}; choose another --output")
    return _on_beam(items, limits, output, beam) if beam else _in_process(items, limits, output)


def _in_process(items, limits, output):
    decisions = list(counting.decisions(items, limits))
    table = funnel.table(funnel.total(map(funnel.tally, decisions)))
    funnel.write(output, table, dataclasses.asdict(limits))
    if not table["output"]["pairs"]:
        raise ValueError(f"no pair passes these limits; {output}/funnel.json shows why")
    records.write(output, records.examples(items.source, decisions))
    return table


def _on_beam(items, limits, output, beam):
    try:
        from apache_beam.options.pipeline_options import PipelineOptions

        from big_ssl.curation import beam_pipeline
    except ImportError as error:
        raise ImportError("--beam needs Apache Beam: pip install 'big-ssl[curation]'") from error
    file = io.as_path(output) / "funnel.json"
    options = PipelineOptions([f"--{option}" for option in beam])
    records.write(output, beam_pipeline.Curate(items, limits, str(file)), options)
    table = json.loads(file.read_text())
    funnel.write(output, table, dataclasses.asdict(limits))
    return table


def open_items() -> records.Items:
    """Opens the flags' source. Raises ConfigError, OSError or ValueError."""
    options = {key: value for key, value in _SOURCE.value.items() if value}
    if len(_SIDES.value) not in (0, 2):
        raise ValueError(f"--sides={','.join(_SIDES.value)}: name two, the width and the height")
    options["text_keys"] = (*_TEXTS.value, *_SIDES.value)
    validate_source(options, "source")
    source = sources.build(options)
    if not len(source):
        raise ValueError("the source has no records")
    try:
        source[0]
    except KeyError as error:
        raise ValueError(f"--texts and --sides: the records have no {error}") from error
    return records.Items(source, _TEXTS.value or (), _SIDES.value, _duplicates(len(source)))


def _duplicates(count):
    if not _EMBEDDINGS.value and not _REFERENCES.value:
        return None
    if not (_EMBEDDINGS.value and _REFERENCES.value):
        raise ValueError("--embeddings and --references go together")
    embeddings, references = (_array(path) for path in (_EMBEDDINGS.value, _REFERENCES.value))
    if len(embeddings) != count:
        raise ValueError(
            f"{_EMBEDDINGS.value} has {len(embeddings)} embeddings; the source has {count} records"
        )
    return near_duplicates.near_duplicates(embeddings, references, _COSINE.value)


def _array(path):
    with io.as_path(path).open("rb") as file, np.load(file) as arrays:
        if "embeddings" not in arrays:
            raise ValueError(f"{path} has no array 'embeddings'; there is {', '.join(arrays)}")
        return arrays["embeddings"]


def main(_) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # TFDS logs every file
    try:
        limits = Limits(**_LIMITS.value)
        table = curate(open_items(), limits, str(OUTPUT.value), _BEAM.value)
    except (ConfigError, ImportError, OSError, ValueError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        sys.exit(2)
    for row in table["dropped"]:
        print(f"{row['rule']:<20} {row['images']:>9,} images {row['pairs']:>9,} pairs dropped")
    kept = (f"{table['output'][what]:,} of {table['input'][what]:,} {what}" for what in ("images", "pairs"))
    print(f"{' and '.join(kept)} in {OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["texts", "output"])
    app.run(main, flags_parser=command_line.parse_flags)

"""Filters noisy image-text pairs by ALIGN's rules, and writes a set that training reads.

    python -m big_ssl.curate --source.kind=parquet --source.path=FILE_OR_DIR --texts=title,alt --output=DIR
    python -m big_ssl.curate --source.kind=tfds --source.name=NAME --source.split=train \
        --source.data_dir=DIR --texts=text --limits.max_images=20 --output=DIR
    python -m big_ssl.curate ... --output=DIR --beam=runner=DirectRunner     # or any other runner

Writes a TFDS dataset (config: kind="tfds", name="curated_pairs", split="train", data_dir=DIR), and beside it
funnel.json and funnel.png, which count what each rule dropped. docs/curate.md tells the rules and options.
Exit code 2, and one line, where something does not fit.
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

# "": not given, for the source's own default.
_UNSAID = dict(kind="", path="", name="", split="", data_dir="", image_key="")
_SOURCE = config_flags.DEFINE_config_dict("source", ConfigDict(_UNSAID), "Where the records are.")
_LIMITS = config_flags.DEFINE_config_dict("limits", ConfigDict(dataclasses.asdict(Limits())), "Thresholds.")
_TEXTS = flags.DEFINE_list("texts", None, "Which texts of a record are captions: columns or feature names.")
_SIDES = flags.DEFINE_list(
    "sides", [], "WIDTH,HEIGHT: where a record states its original's; else its header's."
)
_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "NPZ with embeddings, float[N, D], a row a record.")
_REFERENCES = flags.DEFINE_string("references", None, "NPZ with embeddings, float[M, D], of evaluation sets.")
_COSINE = flags.DEFINE_float("cosine", near_duplicates.THRESHOLD, "Nearer to a reference is a duplicate.")
_BEAM = flags.DEFINE_list("beam", [], "Options of Apache Beam, runner=NAME first; by default none: here.")


def curate(items: records.Items, limits: Limits, output: str, beam: Sequence[str] = ()) -> dict:
    """Filters, writes the set and its funnel to output, and returns funnel.table's dict.

    beam: options of Apache Beam, "runner=DirectRunner" and so on; without any, this process filters.
    Raises ValueError where no pair stays, FileExistsError where output holds a set already, ImportError
    where a library of the curation extra is missing.
    """
    languages.check(limits.languages)
    if beam and io.is_remote(output):
        raise ValueError(
            f"--output={output}: with --beam a folder that all workers share; array_record, which "
            "writes the set, knows disks alone"
        )
    place = io.make_folder(output)
    if (place / records.NAME).exists():
        raise FileExistsError(f"{output} holds {records.NAME} already; choose another --output")
    return _on_beam(items, limits, output, beam) if beam else _here(items, limits, output)


def _here(items, limits, output):
    judged = list(counting.verdicts(items, limits))
    found = funnel.table(funnel.total(map(funnel.tally, judged)))
    funnel.write(output, found, dataclasses.asdict(limits))
    if not found["output"]["pairs"]:
        raise ValueError(f"no pair passes these limits; {output}/funnel.json says why")
    records.write(output, records.examples(items.source, judged))
    return found


def _on_beam(items, limits, output, beam):
    try:
        from apache_beam.options.pipeline_options import PipelineOptions

        from big_ssl.curation import beam_pipeline
    except ImportError as error:
        raise ImportError("--beam needs Apache Beam: pip install 'big-ssl[curation]'") from error
    table = io.as_path(output) / "funnel.json"
    options = PipelineOptions([f"--{option}" for option in beam])
    records.write(output, beam_pipeline.Curate(items, limits, str(table)), options)
    found = json.loads(table.read_text())
    funnel.write(output, found, dataclasses.asdict(limits))
    return found


def open_items() -> records.Items:
    """The records that the flags name. Raises ConfigError, OSError, and ValueError."""
    given = {key: value for key, value in _SOURCE.value.items() if value}
    if len(_SIDES.value) not in (0, 2):
        raise ValueError(f"--sides={','.join(_SIDES.value)}: name two, the width and the height")
    given["text_keys"] = (*_TEXTS.value, *_SIDES.value)
    validate_source(given, "source")
    source = sources.build(given)
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
        logging.set_verbosity(logging.WARNING)  # TFDS tells of every file
    try:
        limits = Limits(**_LIMITS.value)
        found = curate(open_items(), limits, str(OUTPUT.value), _BEAM.value)
    except (ConfigError, ImportError, OSError, ValueError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        sys.exit(2)
    for row in found["dropped"]:
        print(f"{row['rule']:<20} {row['images']:>9,} images {row['pairs']:>9,} pairs dropped")
    stay = (f"{found['output'][what]:,} of {found['input'][what]:,} {what}" for what in ("images", "pairs"))
    print(f"{' and '.join(stay)} in {OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["texts", "output"])
    app.run(main, flags_parser=command_line.parse_flags)

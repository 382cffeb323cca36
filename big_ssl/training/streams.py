"""The data of a run's streams: opened, and read from, before anything slow."""

from collections.abc import Mapping

import jax
import numpy as np

from big_ssl import retry
from big_ssl.data import decode, pipeline, sources
from big_ssl.data.pipeline import BadText, LoadExample, UnreadableRecord
from big_ssl.data.tokenizers import Tokenizer
from big_ssl.training import build
from big_ssl.training.requirements import RequirementsError

# Records of each stream that are read before a run, from the first to the last.
_TRIED = 8


def open_streams(config: Mapping, tokens: Tokenizer | None) -> dict[str, LoadExample]:
    """{stream: the loader of its records}; prints what each stream has.

    Raises RequirementsError, in a line, where a source can't be opened, one of a few records spread over
    it can't be read or none of these can be used, and where an objective has not as many classes as its
    label has in the source.
    """
    loaders = {}
    for name, stream in config["streams"].items():
        load = _opened(name, loaded_data(name, config), tokens)
        _check_records(f"streams.{name}.data", load)
        if load.labels:
            _check_classes(f"streams.{name}.objectives", stream["objectives"], load.labels)
        if jax.process_index() == 0:
            print(f"streams.{name}: {sources.summary(load.source)}", flush=True)
        loaders[name] = load
    return loaders


def loaded_data(stream: str, config: Mapping) -> dict:
    """A stream's `data` config with only those views that an objective reads: "image", say, may be there
    for evaluation alone. And `label`, the kind of label that the option `label` of an objective asks for,
    "" for none. Raises ValueError where two ask for different ones."""
    parts = config["streams"][stream]
    read = {
        call.view for _, term in build._terms(stream, parts, config, None) for call in term.calls.values()
    }
    views = {name: view for name, view in parts["data"]["views"].items() if name in read}
    captions = parts["data"]["captions"] if "text" in read else {}
    labels = {options["label"] for options in parts["objectives"].values() if "label" in options}
    if len(labels) > 1:
        raise ValueError(f"streams.{stream}: its objectives ask for more than one label: {sorted(labels)}")
    return dict(parts["data"], views=views, captions=captions, label="".join(labels))


def preparation(data: Mapping) -> dict:
    """How a stream's images are prepared outside of training, in the keys of a weights.format.Config:
    as the view "image" prepares them, but the middle of each instead of a random part."""
    window = data["views"]["image"]
    return dict(image_size=window["crop"], resize=f"{window['fit']} {window['resize']}")


def _opened(name, data, tokens):
    try:
        return pipeline.build(data, tokens)
    except Exception as error:  # each format has its own
        known = isinstance(error, ValueError | OSError | NotImplementedError)
        reason = str(error).split("\n")[0] if known else retry.one_line(error)
        raise RequirementsError(f"streams.{name}.data.source: {reason}") from error


def _check_records(key, load):
    count = len(load.source)
    if not count:
        raise RequirementsError(f"{key}.source: it has no records")
    wrong = []
    tried = sorted({int(i) for i in np.linspace(0, count - 1, _TRIED)})
    for index in tried:
        try:
            load.load(index, np.random.default_rng(0))
        except UnreadableRecord as error:
            name = sources.record_name(load.source, index)
            raise RequirementsError(f"{key}.source: {name} can't be read: {error}") from error
        except (decode.BadImage, BadText) as error:
            wrong.append(f"{sources.record_name(load.source, index)}: {error}")
    if len(wrong) == len(tried):
        _check_captions(key, load, tried)
        raise RequirementsError(
            f"{key}.source: none of {len(tried)} records from first to last can be used, such as {wrong[0]}"
        )


def _check_captions(key, load, indices):
    """Raises RequirementsError where these records have none of the kinds of text that are wanted."""
    there: set[str] = set()
    for index in indices:
        item = load.source[index]
        there.update(*(record.texts for record in (item if isinstance(item, list) else [item])))
    if load.captions and not there & set(load.captions):
        raise RequirementsError(
            f"{key}.captions: the records have no text {', '.join(map(repr, load.captions))}; "
            f"there are {', '.join(sorted(there)) or 'none'}"
        )


def _check_classes(key, objectives, labels):
    for name, options in objectives.items():
        if "label" in options and options["classes"] != len(labels.names):
            raise RequirementsError(
                f"{key}.{name}.classes is {options['classes']}; "
                f"{options['label']!r} of the data has {len(labels.names)}"
            )

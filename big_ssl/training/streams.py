"""Opens the data of a run's streams, and reads a few records, before anything slow."""

from collections.abc import Mapping

import jax
import numpy as np

from big_ssl import retry
from big_ssl.data import fields as data_fields
from big_ssl.data import sources
from big_ssl.data.pipeline import BadRecord, LoadExample, Part
from big_ssl.data.tokenizers import Tokenizer
from big_ssl.training import build
from big_ssl.training.requirements import RequirementsError

# So many records of each source, spread from the first to the last, are read before a run.
_TRIED = 8


def open_streams(config: Mapping, tokens: Tokenizer | None) -> dict[str, list[Part]]:
    """{stream: its sources with the loaders of their records}; prints a summary of each stream.

    Raises RequirementsError, in one line, if a source can't be opened; if one of a few records spread over it
    can't be read, or none of them can be used; if no record has a key that a field names; or if an objective
    has another number of classes than the data.
    """
    parts = {}
    for name, stream in config["streams"].items():
        entries = list(sources.entries(stream["data"]))
        parts[name] = [_opened(name, config, entry, tokens) for entry in entries]
        for entry, part in zip(entries, parts[name], strict=True):
            _check_same(
                f"streams.{name}.data.{entry.fields_path}", part.load.fields, parts[name][0].load.fields
            )
        _check_classes(name, config, parts[name][0].load.fields)
        summaries = (sources.summary(part.load.source) for part in parts[name])
        if jax.process_index() == 0:
            print(f"streams.{name}: {' + '.join(summaries)}", flush=True)
    return parts


def _opened(stream, config, entry, tokens):
    """A Part whose loader has loaded a few records."""
    path = f"streams.{stream}.data"
    data = config["streams"][stream]["data"]
    try:
        source = sources.build(entry.source)
    except Exception as error:  # each format has its own
        known = isinstance(error, ValueError | OSError | NotImplementedError)
        reason = str(error).split("\n")[0] if known else retry.one_line(error)
        raise RequirementsError(f"{path}.{entry.path}: {reason}") from error
    if not len(source):
        raise RequirementsError(f"{path}.{entry.path}: it has no records")
    fields = data_fields.opened(build.stream_fields(stream, config, entry.fields), source, tokens)
    load = LoadExample(source, fields, data["cache_mib"])
    # Keys that all records lack first: without them each record fails, too.
    records = _some_records(f"{path}.{entry.path}", source)
    _check_keys(f"{path}.{entry.fields_path}", fields, records)
    _check_fields(f"{path}.{entry.fields_path}", fields)
    _check_records(f"{path}.{entry.path}", load, records)
    return Part(load, len(source), entry.weight)


def _some_records(path, source):
    """{index: [the record], or the records of its group} for a few, spread from the first to the last."""
    records = {}
    for index in sorted({int(i) for i in np.linspace(0, len(source) - 1, _TRIED)}):
        try:
            item = retry.call(source.__getitem__, index)
        except Exception as error:  # each storage and each format has its own
            name = sources.record_name(source, index)
            raise RequirementsError(f"{path}: {name} can't be read: {retry.one_line(error)}") from error
        records[index] = item if isinstance(item, list) else [item]
    return records


def _check_keys(path, fields, records):
    """Raises RequirementsError if none of these records has a key that a field names."""
    present = {key: None for group in records.values() for record in group for key in record}
    for name, field in fields.items():
        for option, key in field.missing_keys(present).items():
            known = ", ".join(map(str, present)) or "none"
            raise RequirementsError(f"{path}.{name}.{option}: the records have no {key!r}; there are {known}")


def _check_fields(path, fields):
    for name, field in fields.items():
        if field.needs_tokenizer and field.context.tokenizer is None:
            raise RequirementsError(f"{path}.{name} needs config.tokenizer.vocabulary, which is not set")
        try:
            field.check()
        except (ValueError, OSError) as error:
            raise RequirementsError(f"{path}.{name}: {error}") from error


def _check_records(path, load, records):
    """Raises RequirementsError if none of these records can be used."""
    wrong = []
    for index in records:
        try:
            load.load(index, np.random.default_rng(0))
        except BadRecord as error:
            wrong.append(f"{sources.record_name(load.source, index)}: {error}")
    if len(wrong) == len(records):
        raise RequirementsError(
            f"{path}: none of {len(records)} records from first to last can be used, such as {wrong[0]}"
        )


def _check_same(path, fields, first):
    """Raises RequirementsError if a source's fields have other shapes, device options or classes than those
    of the first source."""
    for name, field in fields.items():
        shapes = [
            jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), x[name].zeros())
            for x in (fields, first)
        ]
        if shapes[0] != shapes[1] or field.device_options() != first[name].device_options():
            raise RequirementsError(f"{path}.{name}: it may change what is read, not what the batch holds")
        if field.class_names() != first[name].class_names():
            raise RequirementsError(f"{path}.{name}: its classes are not those of the first source")


def _check_classes(stream, config, fields):
    """Raises RequirementsError if an objective has another number of classes than a field that it reads."""
    objectives = config["streams"][stream]["objectives"]
    for name, read in build.batch_fields(stream, config).items():
        for field in read:
            count, of_data = objectives[name].get("classes"), fields[field].classes()
            if None not in (count, of_data) and count != of_data:
                raise RequirementsError(
                    f"streams.{stream}.objectives.{name}.classes is {count}; the field {field} has {of_data}"
                )

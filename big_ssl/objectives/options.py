"""Options of an objective's parts, such as its head, which a config gives as a mapping with a kind."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any


def check_known(path: str, options: Mapping, known: Collection[str], kind: str = "") -> None:
    """Raises ValueError, naming the path in the objective's options, for an option that is not known."""
    for key in options:
        if key not in known:
            of_kind = f" of {kind}" if kind else ""
            available = ", ".join(sorted(known))
            raise ValueError(f"{path}.{key} is no option{of_kind}; there are {available}")


def field_names(part: type, *set_here: str) -> set[str]:
    """The fields of a dataclass, or of a linen module, without those that the objective sets itself."""
    return {field.name for field in dataclasses.fields(part)} - {"parent", "name", *set_here}


def choose(path: str, options: Any, table: Mapping[str, type], *set_here: str) -> tuple[type, dict]:
    """The part that options["kind"] names.

    Args:
      path: of the options, as messages name it, such as "depth.head".
      options: a mapping with a kind.
      table: {kind: the dataclass or linen module}.
      *set_here: fields that are no options, since the objective sets them.

    Returns:
      (the entry of the table, the other options).

    Raises:
      ValueError: for an unknown kind or option.
    """
    kind: Any = options.get("kind") if isinstance(options, Mapping) else options
    if kind not in table or not isinstance(options, Mapping):
        raise ValueError(f"{path}.kind is {kind!r}; use {' or '.join(table)}")
    arguments = {key: value for key, value in options.items() if key != "kind"}
    check_known(path, arguments, field_names(table[kind], *set_here), kind)
    return table[kind], arguments

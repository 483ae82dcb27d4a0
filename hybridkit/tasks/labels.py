"""Labels of a table as class numbers, and the head that fits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hybridkit.errors import FileError
from hybridkit.pretrained import Head, Pretrained
from hybridkit.tasks.datafiles import Part
from hybridkit.tasks.pretrained_task import say
from hybridkit.tasks.rows import values

LABELS: Final = ("label", "labels", "class", "category", "target")
SHOWN: Final = 5  # class names in a message


class Labels:
    """The classes of labelled data, `names` in order, and `parts`: the class of each row, int64 [rows].

    Classes are those of the column's own type (`ClassLabel`), else the values in the training data, numbers
    in their order and text alphabetically. A part without any label (no column, -1, null) is left out. Raises
    FileError for a row without a label, and for one that the training data do not have.
    """

    def __init__(self, tables: Mapping[Part, Any], column: str, where: str) -> None:
        own = getattr(tables["train"].features[column], "names", None)
        labelled = {part: table for part, table in tables.items() if column in table.column_names}
        found = {part: values(table, column) for part, table in labelled.items()}
        found = {
            part: labels for part, labels in found.items() if part == "train" or not all(map(_none, labels))
        }
        self.names: list[str] = (
            list(own) if own else _in_order({_text(x) for x in found["train"] if not _none(x)})
        )
        if len(self.names) < 2:
            raise FileError(
                f"{where}: {column} is {', '.join(self.names) or 'never there'}; give two classes at least"
            )
        numbers: dict[Any, int] = {i: i for i in range(len(own))} if own else {}
        numbers |= {} if own else {name: i for i, name in enumerate(self.names)}
        self.parts: dict[Part, NDArray[np.int64]] = {}
        for part, labels in found.items():
            for row, label in enumerate(labels):
                if _none(label):
                    raise FileError(f"{where}: row {row} of the {part} data has no {column}")
                if (label if own else _text(label)) not in numbers:
                    raise FileError(
                        f"{where}: row {row} of the {part} data has the {column} {_text(label)!r}, which the "
                        "training data do not have"
                    )
            keys = labels if own else map(_text, labels)
            self.parts[part] = np.array([numbers[key] for key in keys], np.int64)

    def reordered(self, config: Any) -> Labels:
        """The same labels in the order of a network's own, where it knows exactly these names."""
        known = [str(config.id2label[i]) for i in sorted(config.id2label)]
        if sorted(known) != sorted(self.names) or known == self.names:
            return self
        place = np.array([known.index(name) for name in self.names])
        other = object.__new__(Labels)
        other.names = known
        other.parts = {part: place[labels] for part, labels in self.parts.items()}
        return other


def with_head(found: Pretrained, head: Head, names: Sequence[str]) -> Any:
    """The network of `found` with a head for the classes `names`: its own where that has as many outputs.

    A new one is drawn from the global generator.
    """
    config = found.config
    named: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    suffix = {
        "text-classification": "ForSequenceClassification",
        "image-classification": "ForImageClassification",
    }
    trained = any(name.endswith(suffix[head]) for name in getattr(config, "architectures", None) or ())
    if trained and config.num_labels == len(names):
        if all(str(name).startswith("LABEL_") for name in config.id2label.values()):
            return found.network(head, **named)
        return found.network(head)
    if trained:
        listed = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        say(
            f"{found.text}: its head knows {config.num_labels} classes, the data have {len(names)} "
            f"({listed}): it gets a new one"
        )
    return found.network(head, **named)


def _none(label: Any) -> bool:
    return label is None or (isinstance(label, int) and label == -1) or label != label


def _text(label: Any) -> str:
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def _in_order(names: set[str]) -> list[str]:
    try:
        return sorted(names, key=int)
    except ValueError:
        return sorted(names)

"""Tasks on tables: predict one column of a CSV or Parquet file from the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.errors import DataError, UnknownNameError
from dynopt_ray.tasks.builtin.models import mlp_factory
from dynopt_ray.tasks.builtin.splits import array_splits, split_rows
from dynopt_ray.tasks.builtin.table_checks import (
    check_features,
    check_finite,
    check_not_empty,
    check_target,
    first_missing,
    text_among_numbers,
)
from dynopt_ray.tasks.builtin.table_encoder import fit_encoder
from dynopt_ray.tasks.builtin.table_reader import read_table
from dynopt_ray.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

TableKind = Literal["classification", "regression"]
Missing = Literal["error", "drop", "impute"]

_MOST_INTEGER_CLASSES = 20
_LEAST_ROWS_PER_CLASS = 3
_MOST_NUMBERS = 500_000_000  # of four bytes each; making them takes several times as much

_CORRECT = "correct it, remove the row, or leave it empty and use missing='drop'"


def tabular(
    *,
    path: str | Path,
    target: str,
    kind: TableKind | None = None,
    hidden: Sequence[int] = (64, 32),
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    missing: Missing = "error",
    max_categories: int = 100,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "cpu",
) -> Task:
    """A task that predicts one column of a table with a network of linear layers.

    All encodings are fitted on the training rows alone. Numeric and boolean columns are
    standardised. Text and categorical columns become one column per value that occurs in the
    training rows; any other value is zero in all of these columns. The target of a regression is
    standardised too, so its squared loss is in units of the training target's variance. Classes
    are numbered in sorted order.

    Args:
        path: a .csv (may be compressed) or .parquet file.
        target: the column to predict.
        kind: "classification" or "regression". Default: classification if the target holds
            texts, categories, booleans or whole numbers with at most 20 different values;
            otherwise regression.
        hidden: the width of each hidden layer; the layers are named "0", "2", ….
        validation_fraction: fraction of the rows for validation, in (0, 1). A classification is
            split with the same fraction of each class.
        test_fraction: fraction of the rows for test, in (0, 1).
        missing: "error" refuses missing values; "drop" leaves out their rows; "impute" replaces
            them with the training median or the most frequent text, but not in the target.
        max_categories: the largest number of different texts in a column other than the target.
        batch_size: rows per batch.
        seed: seed of the split.
        device: the device for models and data.

    Raises:
        DataError: the file cannot be read; a value is missing or infinite (the message names row
            and column, rows counted from 0); a class has too few rows; or a column has no value,
            or holds dates, or numbers with some texts among them, or a different text in every
            row, or more different texts than `max_categories`.
        UnknownNameError: there is no column `target`, or `kind` or `missing` is unknown.
        ValueError: a fraction is not in (0, 1), or the fractions leave no rows to train on.
    """
    _check_choice("kind", kind, (None, "classification", "regression"))
    _check_choice("missing", missing, ("error", "drop", "impute"))
    _check_fractions(validation_fraction, test_fraction)
    table = _without_missing(read_table(path), target, missing)
    features = table.drop(columns=[target])
    check_target(table[target])
    check_features(features, max_categories)
    kind = kind or _infer_kind(table[target])
    labels, num_classes = _labels(table[target]) if kind == "classification" else (None, None)
    rows = split_rows(
        len(table),
        validation=validation_fraction,
        test=test_fraction,
        seed=seed,
        labels=labels,
    )
    targets = _numbers(table[target], rows["train"]) if labels is None else labels
    encoder = fit_encoder(features.iloc[rows["train"]])
    _check_size(len(features), encoder.width)
    encoded = encoder.encode(features)
    splits = array_splits(
        {split: encoded[index] for split, index in rows.items()},
        {split: targets[index] for split, index in rows.items()},
    )
    return Task.from_arrays(
        model=mlp_factory(encoded.shape[1], hidden, num_classes or 1),
        **splits,
        loss="cross_entropy" if kind == "classification" else "mse",
        batch_size=batch_size,
        name=Path(path).stem,
        device=device,
    )


def _without_missing(table: "pd.DataFrame", target: str, missing: Missing) -> "pd.DataFrame":
    """Check a table and return the rows to use; the encoder imputes values that remain missing.

    Rows keep their numbers from the file, so that messages can name them.
    """
    if target not in table.columns:
        raise UnknownNameError("column", target, table.columns)
    if table.shape[1] < 2:
        raise DataError(
            f"the table has no column but the target {target!r}; add columns to predict it from"
        )
    check_not_empty(table, target)
    gap = first_missing(table[[target]])
    if gap and missing != "drop":
        raise DataError(
            f"{gap}: the value is missing, and a target cannot be imputed; fill it, remove the "
            "row, or use missing='drop'"
        )
    if missing == "drop":
        table = table.dropna()
        if table.empty:
            instead = (
                "leave out the columns with the most missing values"
                if gap
                else "use missing='impute'"
            )
            raise DataError(f"no row is left: every row has a missing value; {instead}")
        if gap:
            table = table.assign(**{target: _whole_again(table[target])})
    elif missing == "error" and (place := first_missing(table)):
        raise DataError(
            f"{place}: the value is missing; fill it, or use missing='drop' or missing='impute'"
        )
    check_finite(table)
    return table


def _whole_again(target: "pd.Series[Any]") -> "pd.Series[Any]":
    """Restore whole numbers, which pandas made floats because a value was missing."""
    from pandas.api import types

    whole = types.is_float_dtype(target) and bool((target % 1 == 0).all())
    return target.astype(np.int64) if whole else target


def _infer_kind(target: "pd.Series[Any]") -> TableKind:
    from pandas.api import types

    if types.is_float_dtype(target):
        return "regression"
    if types.is_integer_dtype(target) and target.nunique() > _MOST_INTEGER_CLASSES:
        return "regression"
    return "classification"


def _labels(target: "pd.Series[Any]") -> tuple[NDArray[np.int64], int]:
    """Number the classes in sorted order; return the labels and the number of classes."""
    import pandas as pd
    from pandas.api import types

    is_number = types.is_numeric_dtype(target)
    if target.dtype == object:
        target = target.astype(str)
    labels, classes = pd.factorize(target, sort=True)
    counts = np.bincount(labels)
    if len(classes) < 2:
        raise DataError(
            f"column {target.name!r} has only one class, {str(classes[0])!r}, so there is nothing "
            "to predict; name another target"
        )
    if counts.min() < _LEAST_ROWS_PER_CLASS:
        if not is_number and (place := text_among_numbers(target.astype(str))):
            raise DataError(f"{place}; {_CORRECT}")
        raise DataError(
            f"column {target.name!r}: class {str(classes[int(counts.argmin())])!r} has "
            f"{counts.min()} rows; train, validation and test need at least one each. Merge or "
            "remove the class"
            + (", or use kind='regression' if the column is a quantity" if is_number else "")
        )
    return labels.astype(np.int64), len(classes)


def _numbers(target: "pd.Series[Any]", train: NDArray[np.int64]) -> NDArray[np.float32]:
    """The target as one column, standardised with its training rows."""
    from pandas.api import types

    if not types.is_numeric_dtype(target):
        if place := text_among_numbers(target.astype(str)):
            raise DataError(f"{place}; {_CORRECT}")
        raise DataError(
            f"column {target.name!r} holds {target.dtype}, not numbers; use kind='classification'"
        )
    values = target.to_numpy(dtype=np.float64)
    mean, deviation = values[train].mean(), values[train].std()
    if deviation == 0:
        raise DataError(
            f"column {target.name!r} is {mean:g} in every training row, so there is nothing to "
            "predict; name another target"
        )
    scaled: NDArray[np.float32] = ((values - mean) / deviation).astype(np.float32)
    return scaled[:, None]


def _check_size(num_rows: int, width: int) -> None:
    if num_rows * width > _MOST_NUMBERS:
        raise DataError(
            f"the table would become {num_rows:,} rows of {width:,} numbers, because each text of "
            "a column becomes a column; leave out columns with many different texts, or lower "
            "max_categories to find them"
        )


def _check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise UnknownNameError(name, str(value), [choice for choice in choices if choice])


def _check_fractions(validation: float, test: float) -> None:
    for name, value in (("validation_fraction", validation), ("test_fraction", test)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}; it must lie between 0 and 1")
    if validation + test >= 1:
        raise ValueError(
            f"validation_fraction {validation} and test_fraction {test} leave nothing to train on; "
            "their sum must be below 1"
        )

"""Encode the columns of a table as numbers, with statistics of the training rows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Numeric:
    """A numeric column: subtract `mean`, divide by `deviation`, put `fill` for missing values."""

    name: str
    mean: float
    deviation: float
    fill: float

    def encode(self, column: "pd.Series[Any]") -> NDArray[np.float64]:
        """Encode the column; shape (rows, 1)."""
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        values = np.where(np.isnan(values), self.fill, values)
        return ((values - self.mean) / self.deviation)[:, None]


@dataclass(frozen=True)
class Categorical:
    """A text column: one output column per category; put `fill` for missing values."""

    name: str
    categories: tuple[str, ...]
    fill: str

    def encode(self, column: "pd.Series[Any]") -> NDArray[np.float64]:
        """Encode the column; shape (rows, categories). An unknown category becomes all zeros."""
        texts = _texts(column, self.fill)
        same: NDArray[np.bool_] = texts[:, None] == np.array(self.categories, dtype=object)
        return same.astype(np.float64)


@dataclass(frozen=True)
class Encoder:
    """The encodings of all columns of a table, in the order of the table."""

    columns: tuple[Numeric | Categorical, ...]

    @property
    def width(self) -> int:
        """The number of encoded columns."""
        return sum(len(c.categories) if isinstance(c, Categorical) else 1 for c in self.columns)

    def encode(self, table: "pd.DataFrame") -> NDArray[np.float32]:
        """Encode the table; shape (rows, encoded columns)."""
        parts = [column.encode(table[column.name]) for column in self.columns]
        return np.concatenate(parts, axis=1).astype(np.float32)


def fit_encoder(table: "pd.DataFrame") -> Encoder:
    """Fit an encoder of the table's columns on all rows of the table.

    Raises:
        DataError: a column holds neither numbers nor texts, or has no value.
    """
    return Encoder(tuple(_fit(table[name]) for name in table.columns))


def _fit(column: "pd.Series[Any]") -> Numeric | Categorical:
    from pandas.api import types

    name = str(column.name)
    if not column.notna().any():
        raise DataError(f"column {name!r} has no value in any training row; leave it out")
    if types.is_bool_dtype(column) or types.is_numeric_dtype(column):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        fill = float(np.nanmedian(values))
        values = np.where(np.isnan(values), fill, values)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = float(values.mean()), float(values.std())
        if not np.isfinite(deviation):
            raise DataError(
                f"column {name!r} holds numbers up to {np.abs(values).max():g}, which are too "
                "large to standardise; give them in another unit"
            )
        # A column that is constant in training carries no information; 1 keeps the result finite.
        return Numeric(name, mean, deviation or 1.0, fill)
    if not (
        types.is_string_dtype(column)
        or types.is_object_dtype(column)
        or isinstance(column.dtype, _categorical_dtype())
    ):
        raise DataError(
            f"column {name!r} holds {column.dtype}, neither numbers nor texts; convert it to "
            f"numbers (e.g. days since a date) or leave it out"
        )
    texts = column.dropna().astype(str)
    return Categorical(name, tuple(sorted(texts.unique())), str(texts.mode().iloc[0]))


def _texts(column: "pd.Series[Any]", fill: str) -> NDArray[Any]:
    missing = column.isna().to_numpy()
    texts = column.astype(object).astype(str).to_numpy(dtype=object)
    return np.where(missing, fill, texts)


def _categorical_dtype() -> type:
    import pandas as pd

    return pd.CategoricalDtype

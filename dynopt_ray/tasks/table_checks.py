"""What is wrong with a table, told by row and column before anything is fitted."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_DATE = r"\s*(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})"


def check_filled(table: "pd.DataFrame", target: str, *, may_impute: bool) -> None:
    """Refuse missing values, those of the target first: nothing can be put in their place.

    Args:
        table: the table as it was read.
        target: the column to predict.
        may_impute: whether missing values of other columns may stay.

    Raises:
        DataError: the first of them, with what can be done about it.
    """
    can_drop = bool(table.notna().all(axis=1).any())
    drop = "use missing='drop'"
    if place := _first_missing(table[[target]]):
        instead = f"fill it, remove the row, or {drop}" if can_drop else "fill it or remove the row"
        raise DataError(f"{place}: the value is missing, and a target cannot be imputed; {instead}")
    if not may_impute and (place := _first_missing(table)):
        instead = f"{drop} or missing='impute'" if can_drop else "use missing='impute'"
        raise DataError(f"{place}: the value is missing; fill it, or {instead}")


def check_columns_hold_values(table: "pd.DataFrame", target: str) -> None:
    """Refuse columns that are empty: neither leaving out rows nor imputing helps.

    Raises:
        DataError: the first of them.
    """
    empty = [str(name) for name in table.columns if not table[name].notna().any()]
    if target in empty:
        raise DataError(f"the target {target!r} has no value in any row; choose another column")
    if empty:
        raise DataError(f"column {empty[0]!r} has no value in any row; leave it out")


def check_finite(table: "pd.DataFrame") -> None:
    """Refuse infinite numbers.

    Raises:
        DataError: the first of them, with row and column.
    """
    numeric = table.select_dtypes("number")
    place = _first(numeric, np.isinf(numeric.to_numpy(dtype=np.float64, na_value=np.nan)))
    if place:
        raise DataError(f"{place}: the value is infinite; replace it by a finite one")


def check_texts(column: "pd.Series[Any]", *, is_target: bool, may_be_classes: bool) -> None:
    """Refuse a column of texts that are dates, or numbers with a few exceptions.

    All rows are looked at: which of them are for training is a matter of chance.

    Args:
        column: any column; only texts are looked at, and categories never.
        is_target: whether it is the column to predict.
        may_be_classes: whether a target may be taken for classes if the user says so.

    Raises:
        DataError: the first exception, with its row, or a date.
    """
    import pandas as pd
    from pandas.api import types

    if isinstance(column.dtype, pd.CategoricalDtype) or not (
        types.is_string_dtype(column) or types.is_object_dtype(column)
    ):
        return
    name, texts = str(column.name), column.dropna().astype(str)
    classes = ", or use kind='classification' if these are classes" if may_be_classes else ""
    numbers = pd.to_numeric(texts, errors="coerce").notna()
    if 0.5 < numbers.mean() < 1:
        row = texts.index[int(np.argmin(numbers))]
        instead = (
            f"correct it or remove the row{classes}"
            if is_target
            else "correct it, or leave it empty and use missing='drop' or missing='impute'; if "
            f"these are categories, write all of them as texts, e.g. 'n{texts.iloc[0]}'"
        )
        raise DataError(
            f"row {row}, column {name!r}: {texts[row]!r} is no number, while most of the column "
            f"are; {instead}"
        )
    if bool(texts.str.match(_DATE).all()):
        instead = classes if is_target else " or leave it out"
        raise DataError(
            f"column {name!r} holds dates such as {texts.iloc[0]!r}; convert it to numbers (e.g. "
            f"days since a date){instead}"
        )


def _first_missing(table: "pd.DataFrame") -> str | None:
    return _first(table, table.isna().to_numpy())


def _first(table: "pd.DataFrame", bad: NDArray[np.bool_]) -> str | None:
    """Where the first bad value is, row by row, or None."""
    if not bad.any():
        return None
    row, column = (int(index[0]) for index in np.nonzero(bad))
    return f"row {table.index[row]}, column {table.columns[column]!r}"

"""Checks that refuse unusable tables; each error names the column and the remedy.

The checks use all rows, so whether a table is refused does not depend on how it is split.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = (
    r"(?i)\s*("
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}"  # 2024-01-31
    r"|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}"  # 31.1.2024
    r"|\d{1,2}/\d{1,2}/\d{2}\b"  # 1/31/24; 1.31.24 may as well be a version
    rf"|\d{{1,2}}\.?[ -]{_MONTH}[ -]\d{{2,4}}"  # 31 January 2024
    rf"|{_MONTH} \d{{1,2}}, ?\d{{4}}"  # Jan 31, 2024
    r")"
)
_CONVERT = "convert it to numbers (e.g. days since a date)"

# If more than this fraction of a column's texts are numbers (or dates), so is the column, and its
# other texts are mistakes.
_MOST = 0.5

# In fewer rows than this, texts may all differ by chance.
_LEAST_ROWS_OF_IDENTIFIERS = 20


def first_missing(table: "pd.DataFrame") -> str | None:
    """Return the place of the first missing value, searching row by row, or None."""
    return _first(table, table.isna().to_numpy())


def check_finite(table: "pd.DataFrame") -> None:
    """Refuse infinite numbers.

    Raises:
        DataError: a value is infinite; the message names the row and column of the first one.
    """
    numeric = table.select_dtypes("number")
    place = _first(numeric, np.isinf(numeric.to_numpy(dtype=np.float64, na_value=np.nan)))
    if place:
        raise DataError(f"{place}: the value is infinite; replace it with a finite one")


def check_not_empty(table: "pd.DataFrame", target: str) -> None:
    """Refuse columns without any value.

    Raises:
        DataError: a column has no value; the message names the first such column.
    """
    is_empty: NDArray[np.bool_] = np.asarray(table.isna().to_numpy().all(axis=0))
    if is_empty.any():
        empty = table.columns[is_empty]
        instead = "name another target" if empty[0] == target else "leave it out"
        raise DataError(f"column {empty[0]!r} has no value in any row; {instead}")


def check_features(table: "pd.DataFrame", max_categories: int) -> None:
    """Refuse text columns that do not hold categories.

    Each different text becomes an input of its own, so a network could only memorise texts that
    hardly repeat. If the file itself declares a column categorical, only the number of its
    categories is checked.

    Raises:
        DataError: a text column holds dates, or numbers with some other texts among them, or a
            different text in every row, or more different texts than `max_categories`.
    """
    import pandas as pd

    for name in table.columns:
        if not _is_text(table[name]):
            continue
        texts = table[name].dropna().astype(str)
        if not isinstance(table[name].dtype, pd.CategoricalDtype):
            _check_texts(name, texts)
        if texts.nunique() > max_categories:
            raise DataError(
                f"column {name!r} has {texts.nunique():,} different texts in {len(texts):,} rows, "
                "and each would become a column; leave it out, or raise max_categories "
                f"(now {max_categories:,})"
            )


def check_target(target: "pd.Series[Any]") -> None:
    """Refuse a target that holds dates, because dates are not classes.

    Raises:
        DataError: the column holds dates.
    """
    from pandas.api import types

    texts = target.astype(str)
    may_be_dates = _is_text(target) or types.is_datetime64_any_dtype(target)
    if may_be_dates and (date := _date_of(texts)):
        raise DataError(f"column {target.name!r} holds dates such as {date!r}; {_CONVERT}")


def text_among_numbers(texts: "pd.Series[str]") -> str | None:
    """Describe the first text that is not a number if most others are numbers; otherwise None."""
    import pandas as pd

    numbers = pd.to_numeric(texts, errors="coerce").notna()
    if not _MOST < numbers.mean() < 1:
        return None
    row = texts.index[int(np.argmin(numbers))]
    return (
        f"row {row}, column {texts.name!r}: {texts[row]!r} is not a number, but most values of the "
        "column are"
    )


def _check_texts(name: str, texts: "pd.Series[str]") -> None:
    if date := _date_of(texts):
        raise DataError(f"column {name!r} holds dates such as {date!r}; {_CONVERT} or leave it out")
    if place := text_among_numbers(texts):
        raise DataError(
            f"{place}; correct it, or leave it empty and use missing='drop' or missing='impute'"
        )
    if len(texts) >= _LEAST_ROWS_OF_IDENTIFIERS and texts.is_unique:
        raise DataError(
            f"column {name!r} has a different text in every row, such as {texts.iloc[0]!r}, so no "
            "text says anything about other rows; convert it to numbers or leave it out"
        )


def _date_of(texts: "pd.Series[str]") -> str | None:
    """The first date if most of the texts are dates, otherwise None."""
    dates = texts[texts.str.match(_DATE)]
    return str(dates.iloc[0]) if len(dates) > _MOST * len(texts) else None


def _is_text(column: "pd.Series[Any]") -> bool:
    import pandas as pd
    from pandas.api import types

    return isinstance(column.dtype, pd.CategoricalDtype) or not (
        types.is_bool_dtype(column)
        or types.is_numeric_dtype(column)
        or types.is_datetime64_any_dtype(column)
        or types.is_timedelta64_dtype(column)
    )


def _first(table: "pd.DataFrame", bad: NDArray[np.bool_]) -> str | None:
    if not bad.any():
        return None
    row, column = (int(index[0]) for index in np.nonzero(bad))
    return f"row {table.index[row]}, column {table.columns[column]!r}"

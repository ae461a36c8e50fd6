"""Read tables from files that may be damaged, or expand to more than this machine can hold.

A compressed file of a megabyte can hold gigabytes of the same text. So a file is decompressed once
without being parsed, up to a limit, before it is read.
"""

import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynopt_ray.errors import DataError, described

if TYPE_CHECKING:
    import pandas as pd

_MOST_COLUMNS = 10_000
# Tables compress to a tenth, seldom to a hundredth; this much is read in any case.
_MOST_EXPANSION, _ALWAYS_READ_BYTES = 200, 2**28
_CELL_BYTES = 8
_BLOCK = 2**20

_BY_ARROW: dict[str, Literal["gzip", "bz2", "zstd"]] = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".zst": "zstd",
}


def read_table(path: str | Path) -> "pd.DataFrame":
    """Read the table in a CSV or Parquet file.

    Raises:
        DataError: the file is missing, is empty, has another format, is damaged, expands to too
            much, has too many columns or cannot be parsed.
    """
    path = Path(path)
    suffixes = path.suffixes
    is_csv, is_parquet = ".csv" in suffixes, path.suffix in (".parquet", ".pq")
    if not is_csv and not is_parquet:
        raise DataError(f"{path} is neither .csv nor .parquet; convert it to one of them")
    if path.exists() and not path.is_file():
        raise DataError(f"cannot read {path}: it is not a regular file")
    try:
        table = _read_csv(path) if is_csv else _read_parquet(path)
    except DataError:
        raise
    except ImportError as error:
        raise DataError(
            f"cannot read {path}: {error} Or convert the file to .csv, .csv.gz or .parquet"
        ) from error
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        raise DataError(f"cannot read {path}: {error}") from error
    except Exception as error:
        # The readers of archives and of Parquet raise errors of many kinds on damaged files.
        raise DataError(f"cannot read {path}, which may be damaged: {described(error)}") from error
    if table.empty:
        raise DataError(f"{path} holds no rows")
    table.columns = table.columns.map(str)
    return table.reset_index(drop=True)


def _read_csv(path: Path) -> "pd.DataFrame":
    import pandas as pd

    most = max(_ALWAYS_READ_BYTES, _MOST_EXPANSION * path.stat().st_size)
    with _decompressed(path) as opened:
        size = 0
        while opened is not None and (block := opened.read(_BLOCK)):
            size += len(block)
            if size > most:
                raise _expands(path, f"more than {most:,} bytes")
    _check_columns(path, pd.read_csv(path, nrows=0).shape[1])
    return pd.read_csv(path)


@contextmanager
def _decompressed(path: Path) -> Iterator[Any]:
    """Open the content of a compressed file; yield None if the file is not compressed."""
    if ".tar" in path.suffixes:
        with tarfile.open(path) as archive:
            members = [member for member in archive if member.isfile()]
            yield archive.extractfile(members[0]) if members else None
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as zipped, ExitStack() as stack:
            names = zipped.namelist()
            yield stack.enter_context(zipped.open(names[0])) if names else None
    elif path.suffix == ".xz":
        with lzma.open(path) as opened:
            yield opened
    elif path.suffix in _BY_ARROW:
        import pyarrow

        with pyarrow.input_stream(str(path), compression=_BY_ARROW[path.suffix]) as opened:
            yield opened
    else:
        yield None


def _read_parquet(path: Path) -> "pd.DataFrame":
    import pandas as pd
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        facts = file.metadata
        _check_columns(path, facts.num_columns)
        size = facts.num_rows * facts.num_columns * _CELL_BYTES
        if size > max(4 * _ALWAYS_READ_BYTES, _MOST_EXPANSION * path.stat().st_size):
            raise _expands(path, f"{facts.num_rows:,} rows of {facts.num_columns:,} columns")
        file.read().validate(full=True)  # pandas does not check that texts are UTF-8
    return pd.read_parquet(path)


def _check_columns(path: Path, number: int) -> None:
    if number > _MOST_COLUMNS:
        raise DataError(
            f"{path} has {number:,} columns; at most {_MOST_COLUMNS:,} are read. Leave out some, "
            "or make a task from arrays with Task.from_arrays"
        )


def _expands(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} has {path.stat().st_size:,} bytes but holds {what}, which is too much to read; "
        "if it is what it should be, make a task from arrays with Task.from_arrays"
    )

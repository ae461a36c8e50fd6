"""Split rows, and standardise images by the training rows alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.errors import DataError
from dynopt_ray.tasks.sources import ArraySplits, Split


def split_rows(
    num_rows: int,
    *,
    validation: float | int,
    test: float | int | None,
    seed: int,
    labels: NDArray[Any] | None = None,
) -> dict[Split, NDArray[np.int64]]:
    """Return the row numbers of each split in ascending order.

    Args:
        num_rows: the number of rows to split.
        validation: size of the validation split: a fraction of all rows, in (0, 1), or a number
            of rows.
        test: size of the test split, in the same form; None for no test split.
        seed: seed of the shuffle; the same seed gives the same splits.
        labels: the class of each row. If given, each class has the same fraction in all splits.

    Raises:
        DataError: there are too few rows, or too few of one class, for these splits.
    """
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    sizes: list[tuple[Split, float | int]] = [("validation", validation)]
    if test is not None:
        sizes.insert(0, ("test", test))
    rest = np.arange(num_rows)
    rows: dict[Split, NDArray[np.int64]] = {}
    for split, size in sizes:
        num_held = size if isinstance(size, int) else round(size * num_rows)
        try:
            rest, held = train_test_split(
                rest,
                test_size=num_held,
                random_state=seed,
                stratify=None if labels is None else labels[rest],
            )
        except ValueError as error:
            raise DataError(
                f"cannot set aside {num_held} of {num_rows} rows for {split}: {error}"
            ) from error
        rows[split] = np.sort(held)
    rows["train"] = np.sort(rest)
    return rows


def standardised_images(
    pixels: Mapping[Split, NDArray[Any]],
) -> dict[Split, NDArray[np.float32]]:
    """Subtract the mean of the training pixels and divide by their standard deviation.

    One mean and one deviation serve all pixels. With one per pixel, a pixel that is blank in
    nearly every training image would become huge in the few images where it is not blank.
    """
    mean, deviation = pixels["train"].mean(), pixels["train"].std()
    return {
        split: ((values.astype(np.float32) - mean) / deviation).astype(np.float32)
        for split, values in pixels.items()
    }


def array_splits(x: Mapping[Split, NDArray[Any]], y: Mapping[Split, NDArray[Any]]) -> ArraySplits:
    """Combine the inputs and targets of three splits into arguments for `Task.from_arrays`."""
    return ArraySplits(
        train=(x["train"], y["train"]),
        validation=(x["validation"], y["validation"]),
        test=(x["test"], y["test"]),
    )

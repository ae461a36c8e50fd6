"""Tables: fitted on training rows alone, and every bad table."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dynopt_ray.errors import DataError, UnknownNameError
from dynopt_ray.tasks import Task
from dynopt_ray.tasks.table_encoder import fit_encoder
from dynopt_ray.tasks.tabular import tabular


def flats(num_rows: int = 100) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    size = rng.normal(70, 20, num_rows)
    city = rng.choice(["Bern", "Oslo", "Rome"], num_rows)
    garden = rng.random(num_rows) < 0.5
    rent = 20 * size + 500 * (city == "Oslo") + 300 * garden
    return pd.DataFrame(
        {"size": size, "city": city, "garden": garden, "rent": rent, "dear": rent > 1700}
    )


DATES = [f"2024-01-{1 + i % 28:02}" for i in range(100)]
MIXED = [f"{i}.5" for i in range(99)] + ["n/k"]


def saved(table: pd.DataFrame, folder: Path, name: str = "flats.csv") -> Path:
    path = folder / name
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


def trained(task: Task) -> float:
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    task.train_steps(model, optimizer, 300, generator=torch.Generator().manual_seed(0))
    return task.evaluate(model, "test").metric


@pytest.mark.parametrize("name", ["flats.csv", "flats.csv.gz", "flats.parquet"])
def test_all_files_give_the_same_task(tmp_path: Path, name: str) -> None:
    table = flats().round(6)
    ours = tabular(path=saved(table, tmp_path, name), target="rent")
    plain = tabular(path=saved(table, tmp_path), target="rent")
    assert ours.name.startswith("flats")
    for split in ours.splits:
        assert torch.allclose(ours.arrays(split)[0], plain.arrays(split)[0])


def test_regression_learns_and_is_standardised_by_training_rows(tmp_path: Path) -> None:
    task = tabular(path=saved(flats(300), tmp_path), target="rent", batch_size=32)
    assert task.num_classes is None
    x, y = task.arrays("train")
    assert x.shape == (180, 6)
    assert y.mean().item() == pytest.approx(0, abs=1e-5)
    assert y.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert x[:, 0].mean().item() == pytest.approx(0, abs=1e-5)
    assert trained(task) > 0.95


def test_classification_learns_and_is_stratified(tmp_path: Path) -> None:
    task = tabular(path=saved(flats(300), tmp_path), target="city", seed=3)
    assert task.num_classes == 3
    shares = [
        task.arrays(split)[1].bincount() / len(task.arrays(split)[1]) for split in task.splits
    ]
    assert torch.allclose(shares[0], shares[1], atol=0.02)
    dear = tabular(path=saved(flats(300).drop(columns="rent"), tmp_path), target="dear")
    assert trained(dear) > 0.85


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "classification"),
        ([True, False], "classification"),
        ([3, 5], "classification"),
        (list(range(25)), "regression"),
        ([0.5, 1.5], "regression"),
    ],
)
def test_the_kind_is_inferred(tmp_path: Path, values: list[Any], kind: str) -> None:
    table = flats(100).assign(target=values * (100 // len(values)))
    task = tabular(path=saved(table, tmp_path), target="target")
    assert (task.num_classes is None) == (kind == "regression")


def test_the_kind_can_be_chosen(tmp_path: Path) -> None:
    path = saved(flats().assign(stars=[1, 2, 3, 4] * 25), tmp_path)
    assert tabular(path=path, target="stars").num_classes == 4
    assert tabular(path=path, target="stars", kind="regression").num_classes is None


def test_unseen_categories_are_zero_and_names_decide() -> None:
    train = pd.DataFrame({"b": [1.0, 3.0], "a": ["x", "y"]})
    encoder = fit_encoder(train)
    other = pd.DataFrame({"a": ["y", "z"], "b": [2.0, 4.0]})
    np.testing.assert_array_equal(encoder.encode(other), [[0, 0, 1], [2, 0, 0]])


def test_constant_columns_stay_finite() -> None:
    encoder = fit_encoder(pd.DataFrame({"a": [2.0, 2.0]}))
    np.testing.assert_array_equal(encoder.encode(pd.DataFrame({"a": [2.0, 5.0]})), [[0], [3]])


def test_imputing_uses_the_training_median_and_mode() -> None:
    encoder = fit_encoder(pd.DataFrame({"a": [0.0, None, 4.0, 4.0], "b": ["x", "x", None, "y"]}))
    filled = encoder.encode(pd.DataFrame({"a": [None, 4.0], "b": [None, "x"]}))
    np.testing.assert_array_equal(filled[0], filled[1])


def holed() -> pd.DataFrame:
    table = flats(200)
    table.loc[[4, 9, 30], "size"] = np.nan
    table.loc[7, "city"] = None
    return table


def test_a_missing_value_is_named_unless_it_is_dropped_or_imputed(tmp_path: Path) -> None:
    path = saved(holed(), tmp_path)
    with pytest.raises(DataError, match="row 4, column 'size': the value is missing; fill it, or"):
        tabular(path=path, target="dear")
    rows = {
        missing: sum(len(task.arrays(split)[1]) for split in task.splits)
        for missing in ("drop", "impute")
        for task in [tabular(path=path, target="dear", missing=missing)]
    }
    assert rows == {"drop": 196, "impute": 200}


def test_a_missing_target_is_never_imputed(tmp_path: Path) -> None:
    path = saved(holed(), tmp_path)
    with pytest.raises(DataError, match=r"row 7, column 'city'.*a target cannot be imputed"):
        tabular(path=path, target="city", missing="impute")


def test_row_numbers_are_those_of_the_file_after_dropping(tmp_path: Path) -> None:
    table = holed()
    table.loc[10, "size"] = np.inf
    with pytest.raises(DataError, match="row 10, column 'size': the value is infinite"):
        tabular(path=saved(table, tmp_path), target="dear", missing="drop")


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({}, {"target": "rnet"}, UnknownNameError, "no column 'rnet'. Did you mean 'rent'"),
        ({}, {"kind": "clasification"}, UnknownNameError, "Did you mean 'classification'"),
        ({}, {"missing": "ignore"}, UnknownNameError, "Known: drop, error, impute"),
        ({}, {"validation_fraction": 0}, ValueError, "validation_fraction is 0; it must lie"),
        ({}, {"test_fraction": 0.8}, ValueError, "leave nothing to train on"),
        ({}, {"target": "city", "kind": "regression"}, DataError, "'city' holds .*, not numbers"),
        ({"city": "Bern"}, {"target": "city"}, DataError, "has one class only, 'Bern'"),
        (
            {"city": ["Rome"] * 98 + ["Bern"] * 2},
            {"target": "city"},
            DataError,
            "'Bern' has 2 rows.* Merge or remove the class$",
        ),
        (
            {"rent": [1] * 98 + [2] * 2},
            {},
            DataError,
            "2 has 2 rows.* use kind='regression' if the column is a quantity$",
        ),
        ({"rent": DATES}, {}, DataError, "'rent' holds dates such .* or use kind='classification'"),
        ({"rent": MIXED}, {}, DataError, "row 99, column 'rent': 'n/k' .* kind='classification'"),
        (
            {"rent": MIXED},
            {"kind": "regression"},
            DataError,
            "row 99, column 'rent': 'n/k' is no number, .* correct it or remove the row$",
        ),
        ({"rent": 1.5}, {}, DataError, "column 'rent' is 1.5 in every training row"),
        ({"size": np.nan}, {}, DataError, "'size' has no value in any row; leave it out"),
        ({"size": np.nan}, {"missing": "impute"}, DataError, "'size' has no value in any row"),
        ({"size": np.nan}, {"missing": "drop"}, DataError, "'size' has no value in any row"),
        ({"rent": np.nan}, {"missing": "drop"}, DataError, "target 'rent' has no value in any row"),
        ({"city": "Bern"}, {"max_categories": 0}, ValueError, "max_categories is 0"),
        ({}, {"validation_fraction": 0.001}, DataError, "cannot set aside 0 of 100 rows"),
    ],
)
def test_bad_tables_and_options(
    tmp_path: Path,
    change: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    path = saved(flats().assign(**change), tmp_path)
    with pytest.raises(error, match=message):
        tabular(**{"path": path, "target": "rent", **options})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([f"2024-01-{1 + i % 28:02}" for i in range(100)], "holds dates such as '2024-01-"),
        ([f"{1 + i % 28}.1.2024" for i in range(100)], "convert it to numbers"),
        ([f"id{i}" for i in range(100)], "60 different texts in 60 training rows"),
        (
            [str(i) if i % 50 else "n/k" for i in range(100)],
            r"row 0, column 'extra': 'n/k' is no",
        ),
        # The one text is told also where it is not among the training rows.
        *(
            (
                [str(i) if i != row else "n/k" for i in range(100)],
                rf"row {row}, column 'extra': 'n/k' is no number",
            )
            for row in range(3, 9)
        ),
        (["0", "1", "2", "3+"] * 25, r"row 3, column 'extra': '3\+' .* as texts, e\.g\. 'n0'"),
    ],
)
def test_texts_that_are_no_categories_are_refused(
    column: list[str], message: str, tmp_path: Path
) -> None:
    path = saved(flats().assign(extra=column), tmp_path)
    with pytest.raises(DataError, match=message):
        tabular(path=path, target="dear", max_categories=50)


def test_no_more_texts_than_half_the_rows_are_categories_unless_it_is_said(tmp_path: Path) -> None:
    path = saved(flats(50).assign(extra=[f"id{i}" for i in range(50)]), tmp_path)
    with pytest.raises(DataError, match=r"30 different texts in 30 .* max_categories \(now 15\)"):
        tabular(path=path, target="dear")
    task = tabular(path=path, target="dear", max_categories=30)
    assert task.arrays("train")[0].shape[1] == 36


def test_classes_may_be_dates_or_numbers_among_texts(tmp_path: Path) -> None:
    table = flats(120).assign(day=["2024-01-01", "2024-01-02"] * 60, rooms=["1", "2", "3+"] * 40)
    for target, num_classes in (("day", 2), ("rooms", 3)):
        path = saved(table[["size", "garden", target]], tmp_path)
        assert tabular(path=path, target=target, kind="classification").num_classes == num_classes


def test_only_what_helps_is_suggested_where_values_are_missing(tmp_path: Path) -> None:
    table = flats()
    table.loc[::2, "size"] = np.nan
    table.loc[1::2, "city"] = None
    path = saved(table, tmp_path)
    with pytest.raises(
        DataError, match=r"row 0, column 'size'.*; fill it, or use missing='impute'$"
    ):
        tabular(path=path, target="dear")
    with pytest.raises(DataError, match=r"no row is left.*; fill some, or use missing='impute'$"):
        tabular(path=path, target="dear", missing="drop")
    with pytest.raises(DataError, match=r"row 1, column 'city'.*; fill it or remove the row$"):
        tabular(path=path, target="city")
    with pytest.raises(DataError, match=r"no row is left.*; fill some, or leave out a column$"):
        tabular(path=path, target="city", missing="drop")


def test_a_missing_class_leaves_classes(tmp_path: Path) -> None:
    table = flats().assign(stars=np.arange(100) % 3)
    table.loc[7, "stars"] = np.nan
    path = saved(table, tmp_path)
    task = tabular(path=path, target="stars", missing="drop")
    assert task.kind == "labels"
    with pytest.raises(
        DataError,
        match=r"row 7, column 'stars': .*; fill it, remove the row, or use missing='drop'$",
    ):
        tabular(path=path, target="stars")


def test_dates_are_refused(tmp_path: Path) -> None:
    table = flats().assign(day=pd.date_range("2024-01-01", periods=100))
    with pytest.raises(DataError, match=r"column 'day' holds datetime64.*days since a date"):
        tabular(path=saved(table, tmp_path, "flats.parquet"), target="rent")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "cannot read .*absent.csv: .*No such file"),
        ("table.xlsx", b"x", "neither .csv nor .parquet"),
        ("empty.csv", b"", "cannot read .*empty.csv: No columns"),
        ("header.csv", b"a,b\n", "holds no rows"),
        ("single.csv", b"a\n1\n2\n", "no column but the target 'a'"),
        ("broken.parquet", b"PAR1 and no more", "cannot read .*broken.parquet"),
        ("broken.csv", b"a,b\n1,2,3,4\n1,2\n1,2,3,4,5\n", "cannot read .*broken.csv"),
    ],
)
def test_files_that_are_no_tables(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        tabular(path=path, target="a")

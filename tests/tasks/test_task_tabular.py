"""Tables: fitted on training rows alone, and every bad table."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dynopt_ray.errors import DataError, UnknownNameError
from dynopt_ray.tasks import Task
from dynopt_ray.tasks.builtin.table_encoder import fit_encoder
from dynopt_ray.tasks.builtin.tabular import tabular


def flats(num_rows: int = 100) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    size = rng.normal(70, 20, num_rows)
    city = rng.choice(["Bern", "Oslo", "Rome"], num_rows)
    garden = rng.random(num_rows) < 0.5
    rent = 20 * size + 500 * (city == "Oslo") + 300 * garden
    return pd.DataFrame(
        {"size": size, "city": city, "garden": garden, "rent": rent, "dear": rent > 1700}
    )


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
        ({"city": "Bern"}, {"target": "city"}, DataError, "has only one class, 'Bern'"),
        (
            {"city": ["Rome"] * 98 + ["Bern"] * 2},
            {"target": "city"},
            DataError,
            "'Bern' has 2 rows",
        ),
        ({"rent": 1.5}, {}, DataError, "column 'rent' is 1.5 in every training row"),
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


NUMBERS = [str(i / 7) for i in range(100)]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([f"2024-01-{1 + i % 28:02}" for i in range(100)], "holds dates such as '2024-01-"),
        ([f"2024-01-{1 + i % 28:02} 12:00" for i in range(100)], "holds dates"),
        ([f"{1 + i % 28}.1.2024" for i in range(100)], "convert it to numbers"),
        ([f"1/{1 + i % 28}/24" for i in range(100)], "holds dates"),
        ([f"{1 + i % 28} January 2024" for i in range(100)], "holds dates"),
        ([f"Feb {1 + i % 28}, 2024" for i in range(100)], "holds dates"),
        (
            [f"2024-01-{1 + i % 28:02}" if i else "unknown" for i in range(100)],
            "dates such as '2024-01-02'",
        ),
        ([f"id{i // 2}" for i in range(100)], r"50 different texts.*max_categories \(now 40"),
        ([f"id{i}" for i in range(100)], "a different text in every row"),
        ([*NUMBERS[:33], "n/k", *NUMBERS[34:]], r"row 33, column 'extra': 'n/k' is not a number"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_texts_that_are_no_categories_are_refused_however_the_rows_are_split(
    column: list[str], message: str, seed: int, tmp_path: Path
) -> None:
    path = saved(flats().assign(extra=column), tmp_path)
    with pytest.raises(DataError, match=message):
        tabular(path=path, target="dear", max_categories=40, seed=seed)


@pytest.mark.parametrize("name", ["flats.csv", "flats.parquet"])
def test_the_most_categories_are_an_option(name: str, tmp_path: Path) -> None:
    extra = pd.Series([f"code{i // 2}" for i in range(100)], dtype="category")
    path = saved(flats().assign(extra=extra), tmp_path, name)
    with pytest.raises(DataError, match="'extra' has 50 different texts"):
        tabular(path=path, target="dear", max_categories=49)
    task = tabular(path=path, target="dear", max_categories=50)
    assert task.arrays("train")[0].shape[1] > 40


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ([f"2024-01-{1 + i % 28:02}" for i in range(100)], {}, "'extra' holds dates .* numbers "),
        (pd.date_range("2024-01-01", periods=100), {}, "'extra' holds dates .* numbers "),
        ([*NUMBERS[:33], "n/k", *NUMBERS[34:]], {}, "row 33, .* 'n/k' is not a number"),
        (["1", "2"] * 49 + ["3+", "x"], {"kind": "regression"}, r"row 98, .*'3\+' is not a number"),
        (["a", "b"] * 49 + ["c", "c"], {}, "'c' has 2 rows.* Merge or remove the class$"),
        ([1, 2] * 49 + [3, 3], {}, "'3' has 2 rows.* or use kind='regression'"),
        ([f"id{i}" for i in range(100)], {}, "'id0' has 1 rows.* Merge or remove the class$"),
    ],
)
def test_errors_about_a_target_suggest_what_works(
    column: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = saved(flats().assign(extra=column), tmp_path)
    with pytest.raises(DataError, match=message) as error:
        tabular(path=path, target="extra", **options)
    assert "impute" not in str(error.value)
    assert "leave it out" not in str(error.value)


@pytest.mark.parametrize("missing", ["error", "drop", "impute"])
@pytest.mark.parametrize("name", ["size", "dear"])
def test_a_column_without_any_value_is_named(missing: Any, name: str, tmp_path: Path) -> None:
    path = saved(flats().assign(**{name: np.nan}), tmp_path)
    with pytest.raises(DataError, match=f"column '{name}' has no value"):
        tabular(path=path, target="dear", missing=missing)


def test_imputing_is_suggested_only_where_the_target_is_whole(tmp_path: Path) -> None:
    table = flats()
    table.loc[::2, "size"] = np.nan
    table.loc[1::2, "city"] = None
    with pytest.raises(DataError, match="every row has a missing value; use missing='impute'"):
        tabular(path=saved(table, tmp_path), target="dear", missing="drop")
    with pytest.raises(DataError, match="every row has a missing value; leave out") as error:
        tabular(path=saved(table, tmp_path), target="city", missing="drop")
    assert "impute" not in str(error.value)


def test_a_missing_class_leaves_classes(tmp_path: Path) -> None:
    table = flats().assign(stars=np.arange(100) % 3)
    table.loc[7, "stars"] = np.nan
    path = saved(table, tmp_path)
    task = tabular(path=path, target="stars", missing="drop")
    assert task.kind == "labels"
    with pytest.raises(DataError, match=r"row 7, column 'stars': .* use missing='drop'$"):
        tabular(path=path, target="stars")


@pytest.mark.parametrize(
    ("day", "message"),
    [
        (pd.date_range("2024-01-01", periods=100), "holds datetime64"),
        (pd.date_range("2024-01-01", periods=100).date, "holds dates such as '2024-01-01'"),
        (pd.timedelta_range("1 day", periods=100), "holds timedelta64"),
    ],
)
def test_dates_are_refused(day: Any, message: str, tmp_path: Path) -> None:
    path = saved(flats().assign(day=day), tmp_path, "flats.parquet")
    with pytest.raises(DataError, match=f"column 'day' {message}.*days since a date"):
        tabular(path=path, target="rent")
    with pytest.raises(DataError, match="column 'day' holds"):
        tabular(path=path, target="day", kind="regression")


def test_dates_are_no_classes(tmp_path: Path) -> None:
    days = pd.date_range("2024-01-01", periods=4).repeat(25)
    path = saved(flats().assign(day=days), tmp_path, "flats.parquet")
    with pytest.raises(DataError, match="'day' holds dates such as '2024-01-01'"):
        tabular(path=path, target="day")


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

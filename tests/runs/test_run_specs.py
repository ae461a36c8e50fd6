"""Specs: loading, writing and reading back, overrides, and the message for each mistake."""

import dataclasses
import inspect
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dynopt_ray import plugins
from dynopt_ray.cluster import search
from dynopt_ray.errors import SpecError
from dynopt_ray.policies import DQNSettings
from dynopt_ray.runs.kinds.policy import PolicySpec
from dynopt_ray.runs.kinds.prune.spec import PruneSpec
from dynopt_ray.runs.kinds.registry import KINDS
from dynopt_ray.runs.kinds.search import SearchSettings, SearchSpec
from dynopt_ray.runs.loading import check_spec, find, load_spec, packaged, spec_text
from dynopt_ray.runs.spec.overrides import with_overrides
from dynopt_ray.runs.spec.yaml_text import parse

ROOT = Path(__file__).parents[2]
PRUNE: dict[str, Any] = {
    "kind": "prune",
    "task": "digits-mlp",
    "train": {"num_steps": 100, "lr": 0.1},
    "prune": {"target": {"remove": 0.5}},
}
SEARCH: dict[str, Any] = {
    "kind": "search",
    "task": "digits-mlp",
    "train": {"num_steps": 100, "lr": 0.1},
    "search": {"num_trials": 4},
    "space": {"remove_fraction": {"low": 0.1, "high": 0.9}},
}


def known(*families: plugins.Family, extra: Sequence[str] = ()) -> str:
    """The names in some families, as messages list them."""
    return ", ".join(sorted([*extra, *(name for f in families for name in plugins.names(f))]))


def refusal(data: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        check_spec(with_overrides(data, overrides), source="s.yaml")
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(packaged()))
def test_packaged_specs_survive_writing_and_reading(name: str) -> None:
    spec = load_spec(name)
    assert check_spec(parse(spec_text(spec), source="again"), source="again") == spec


def test_every_kind_has_a_packaged_spec_in_the_wheel() -> None:
    assert {load_spec(name).kind for name in packaged()} == set(KINDS)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "/experiments/*.yaml" in build["targets"]["wheel"]["include"]
    assert build["targets"]["wheel"]["sources"]["experiments"] == "dynopt_ray/experiments"
    assert {path.parent for path in packaged().values()} == {ROOT / "experiments"}


def test_defaults_are_in_the_resolved_spec() -> None:
    spec = check_spec(PRUNE, source="s.yaml")
    assert isinstance(spec, PruneSpec)
    resolved = parse(spec_text(spec), source="again")
    assert list(resolved)[:3] == ["kind", "seed", "num_threads"]
    assert resolved["prune"]["criterion"] == "magnitude"
    assert resolved["prune"]["target"] == {"remove": 0.5, "threshold": None, "budget": None}


def test_a_part_that_fills_a_dataclass_has_its_defaults_bounds_and_keys() -> None:
    policy: dict[str, Any] = {"kind": "policy", "policy": {"num_steps": 7, "hidden": [4]}}
    spec = check_spec(policy, source="s.yaml")
    assert isinstance(spec, PolicySpec)
    assert spec.policy == DQNSettings(num_steps=7, hidden=(4,))
    written = parse(spec_text(spec), source="again")["policy"]
    known = {field.name for field in dataclasses.fields(DQNSettings)}
    assert set(written) == known - {"env_id", "env_kwargs", "seed"}
    assert refusal(policy, "policy.n_step=0") == (
        "s.yaml: policy: n_step is 0; it must be at least 1"
    )
    assert refusal(policy, "policy.n_step=2.5") == (
        "s.yaml: policy.n_step: must be a whole number, not 2.5"
    )
    unknown = refusal(policy, "policy.learning_rat=0.1")
    assert "policy.learning_rat: unknown key (its value is 0.1). Did you mean 'learning_rate'?" in (
        unknown
    )
    assert "policy.seed: unknown key" in refusal(policy, "policy.seed=1")
    assert "policy: must be a mapping, not 3" in refusal(policy, "policy=3")


def test_defaults_of_a_search_are_those_of_the_function() -> None:
    spec = check_spec(SEARCH, source="s.yaml")
    assert isinstance(spec, SearchSpec)
    parameters = inspect.signature(search).parameters
    for name in SearchSettings.model_fields.keys() & parameters.keys() - {"num_trials"}:
        assert getattr(spec.search, name) == parameters[name].default, name
    assert "max_concurrent is 0; it must be at least 1" in refusal(
        SEARCH, "search.max_concurrent=0"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "prune.criterio=magnitude",
            "prune.criterio: unknown key (its value is 'magnitude'). Did you mean 'criterion'? "
            "Known: target, criterion, granularity, scope, rounds, schedule, min_widths, retrain, "
            "distillation, compensate, recovery.",
        ),
        ("seed=zero", "seed: must be a whole number, not 'zero'"),
        ("seed=1.5", "seed: must be a whole number, not 1.5"),
        ("seed=4294967296", "seed: must be less than or equal to 4294967295, not 4294967296"),
        ("num_threads=2000", "num_threads: must be less than or equal to 1024, not 2000"),
        ("prune.rounds=20000", "prune.rounds: must be less than or equal to 10000, not 20000"),
        ("seed=true", "seed: must be a whole number, not True"),
        ("seed=-1", "seed: must be greater than or equal to 0, not -1"),
        ("prune=3", "prune: must be a mapping, not 3"),
        ("prune.compensate=1", "prune.compensate: must be true or false, not 1"),
        ("prune.target.remove=.nan", "prune.target.remove: must be a finite number, not nan"),
        (
            "task=digits-mpl",
            f"task: no task 'digits-mpl'. Did you mean 'digits-mlp'? Known: {known('tasks')}.",
        ),
        (
            "task=[digits-mlp]",
            "task: must be the name of one of the tasks, or a mapping with 'name' and its "
            "arguments, not ['digits-mlp']",
        ),
        (
            "train.lr={name: cosin, initial: 0.1}",
            "train.lr: no schedule or LR controller 'cosin'. Did you mean 'cosine'? Known: "
            f"{known('schedules', 'lr_controllers', extra=['population'])}.",
        ),
        (
            "train.lr={name: cosine, initial: 0.1, finale: 0}",
            "train.lr: 'cosine' has no argument 'finale'. Did you mean 'final'? Known: initial, "
            "num_steps, final.",
        ),
        (
            "train.lr=fast",
            "train.lr: a learning rate is a number of at least 0, or a schedule such as {name: "
            "cosine, initial: 0.1}, not 'fast'",
        ),
        (
            "train.lr={name: article_step, initial: 0.1, period_steps: 50}",
            "train.lr: 'article_step' refuses its arguments: article_step: num_steps mod "
            "period_steps is 100 mod 50 = 0, and the article's formula divides by it. Choose a "
            "period that does not divide num_steps, or use step(initial, gamma=…, period_steps=50)",
        ),
        (
            "optimizer=adm",
            "optimizer: no optimizer 'adm'. Did you mean 'adam'? Known: adam, adamw, cocob, nadam, "
            "radam, rmsprop, sgd.",
        ),
        (
            "optimizer={name: sgd, lr: 0.1}",
            "optimizer: the optimizer takes no lr here: the rate is given with the training steps",
        ),
        (
            "optimizer={name: sgd, momentum: -1}",
            "optimizer: optimizer 'sgd' refuses its arguments: Invalid momentum value: -1",
        ),
        (
            "prune.recovery={name: greedy, share: 2}",
            "prune.recovery: recovery 'greedy' refuses its arguments: Greedy: share is 2; it must "
            "lie between 0 (nothing) and 1 (all)",
        ),
        (
            "prune.retrain={num_steps: 9, lr: {name: population, initial: 0.1}}",
            "prune.retrain: a population trains several networks; only one is retrained",
        ),
        (
            "prune.recovery=regrowth",
            'prune: regrowth masks weights; use granularity "weight" with it',
        ),
        (
            "prune.schedule={name: constant, value: 0.5}",
            "prune.schedule: prune: the schedule gives the shares [0.5] for rounds 1 to 1; they "
            "must rise to 1, e.g. polynomial(0.0, num_steps=1, power=3, final=1.0)",
        ),
        (
            "prune.schedule={name: polynomia, initial: 0}",
            "prune.schedule: no schedule 'polynomia'. Did you mean 'polynomial'? Known: "
            f"{known('schedules')}.",
        ),
        (
            "prune.min_widths={a: 0}",
            "prune.min_widths.a: must be greater than or equal to 1, not 0",
        ),
        ("prune.distillation={}", "prune: distillation is part of retraining; give retrain"),
        ("prune.target=null", "prune: target is missing, e.g. target: {remove: 0.5}"),
        (
            "prune.granularity=weights",
            'prune.granularity: must be "unit", "weight" or a pattern such as "2:4". Did you mean '
            "'weight'?",
        ),
        (
            "prune.granularity=2:4",
            'prune.granularity: YAML reads 2:4 as a number (here 124); write "2:4" in quotes',
        ),
        (
            'prune.granularity="2:4"',
            "prune: granularity '2:4' itself determines what is removed; leave out target and "
            "recovery",
        ),
        (
            "prune.target={}",
            "prune.target: give exactly one of remove (a fraction), threshold (a score) and budget "
            "(a fraction per cost), not none",
        ),
        (
            "prune.target.threshold=0.1",
            "prune.target: give exactly one of remove (a fraction), threshold (a score) and budget "
            "(a fraction per cost), not remove and threshold",
        ),
        (
            "prune.target={budget: {flop: 0.5}}",
            "prune.target.budget.flop: unknown key (its value is 0.5). Did you mean 'flops'? "
            "Known: params, nonzero, flops, bytes, latency_ms.",
        ),
        (
            "prune.target={budget: {}}",
            "prune.target.budget: a budget names at least one cost, e.g. {flops: 0.5}",
        ),
        (
            "train=null",
            "give either train, to train a new network, or start, the run directory or file of a "
            "trained one; --set train=null removes train from the spec",
        ),
        (
            "kind=prun",
            f"kind: no kind 'prun'. Did you mean 'prune'? Known: {', '.join(KINDS)}.",
        ),
        ("kind=[1]", f"kind: no kind [1]. Known: {', '.join(KINDS)}."),
        ("kind=null", f"kind: missing; it is one of {', '.join(KINDS)}"),
    ],
)
def test_one_mistake_is_one_line(override: str, message: str) -> None:
    assert refusal(PRUNE, override) == f"s.yaml: {message}"


def test_all_mistakes_are_listed() -> None:
    data = {**PRUNE, "sed": 3, "train": {"nm_steps": 5}, "seed": "a"}
    assert refusal(data) == (
        "s.yaml has 5 errors:\n"
        "  seed: must be a whole number, not 'a'\n"
        "  train.num_steps: missing; it is the number of optimizer steps\n"
        "  train.lr: missing; it is a number, or a schedule such as {name: cosine, initial: 0.1}\n"
        "  train.nm_steps: unknown key (its value is 5). Did you mean 'num_steps'? "
        "Known: num_steps, lr.\n"
        "  sed: unknown key (its value is 3). Did you mean 'seed'? Known: kind, seed, "
        "num_threads, device, precision, deterministic, task, start, optimizer, train, prune."
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space={}", "space: space: nothing to choose, every value is fixed; give a list of "
         "options or a range such as {low: 0.1, high: 0.9}"),
        ("space=3", "space: space: must be a mapping of settings to lists or ranges, or a list of "
         "such mappings, not 3"),
        ("space=[{remove_fraction: 0.5, scope: [global, leyer]}, {remove_fraction: 0.5}]",
         "space.scope: must be one of layer, global, not 'leyer'"),
        ("space.lr=[]", "space: space.lr: an empty list has no option to choose; give at least "
         "one"),
        ("space.criterion=[magnitude, tayler]", "space.criterion: no criterion 'tayler'. Did you "
         "mean 'taylor'? Known: "),
        ("space.criterio=[magnitude]", "space.criterio: a trial has no setting 'criterio'. Did you "
         "mean 'criterion'? Known: remove_fraction, criterion, granularity, scope, rounds, "
         "recovery, lr, optimizer, batch_size, seed."),
        ("space.optimizer=[sdg]", "space.optimizer: no optimizer 'sdg'. Did you mean 'sgd'?"),
        ("space.seed=[0, -1]", "space.seed: must be a whole number from 0, not -1"),
        ("space.remove_fraction.high=1.5", "space.remove_fraction: must be from 0 to below 1, not "
         "1.5"),
        ("space.scope=[global, leyer]", "space.scope: must be one of layer, global, not 'leyer'"),
        ("space.rounds=[1, 0]", "space.rounds: must be a whole number from 1 to 10,000, not 0"),
        ("space.rounds=[1, 2147483648]", "space.rounds: must be a whole number from 1 to 10,000"),
        ("space.lr=[{name: cosine}]", "space.lr: 'cosine' needs initial"),
        ("search.searcher=optun", "search.searcher: no searcher 'optun'. Did you mean 'optuna'?"),
        ("search.num_trials=0", "search: num_trials is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_search_spaces_are_checked(override: str, message: str) -> None:
    assert refusal(SEARCH, override).startswith(f"s.yaml: {message}")


def test_overrides_replace_values_and_make_mappings() -> None:
    data = {"train": {"lr": 0.1}, "drifts": [{"at": 1}]}
    changed = with_overrides(data, ["train.lr=1e-2", "a.b=[1, x]", "drifts.0.at=5", "empty="])
    assert changed == {
        "train": {"lr": 0.01},
        "drifts": [{"at": 5}],
        "a": {"b": [1, "x"]},
        "empty": None,
    }
    assert data == {"train": {"lr": 0.1}, "drifts": [{"at": 1}]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "--set 'lr' is not of the form path=value, e.g. train.lr=0.1"),
        ("=3", "--set '=3' is not of the form path=value, e.g. train.lr=0.1"),
        ("a..b=3", "--set 'a..b=3' is not of the form path=value, e.g. train.lr=0.1"),
        (
            "task.hidden=[8]",
            "--set 'task.hidden=[8]': task is 'digits-mlp', which has no 'hidden' within it; set "
            "task as a whole, to a mapping in {…}",
        ),
        (
            "drifts.1.at=3",
            "--set 'drifts.1.at=3': '1' is not a place in a list of 1; places are numbered 0 to 0",
        ),
    ],
)
def test_overrides_with_impossible_paths_are_refused(override: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        with_overrides({"task": "digits-mlp", "drifts": [{"at": 1}]}, [override])
    assert str(caught.value) == message


def test_an_override_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^--set 'a=\[1', line 1, column 3: not valid YAML"):
        with_overrides({}, ["a=[1"])


def test_specs_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("kind: prune")
    assert find(str(path)) == path
    assert find("demo").name == "demo.yaml"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dem", "no spec 'dem'. Did you mean 'demo'? Known: "),
        ("nowhere.yaml", "the spec nowhere.yaml does not exist; give a YAML file or one of "),
        ("some/where", "the spec some/where does not exist; give a YAML file or one of "),
    ],
)
def test_missing_specs_are_refused(name: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        find(name)
    assert str(caught.value).startswith(message)


def test_a_spec_must_be_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(SpecError) as caught:
        load_spec(str(path))
    assert str(caught.value) == f"{path}: a spec is a mapping with 'kind', not [1, 2]"


def test_a_spec_must_be_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"^cannot read the spec .*binary\.yaml: 'utf-8' codec"):
        load_spec(str(path))


@pytest.mark.parametrize("figure", [50, 5000])
def test_budgets_refuse_whole_costs_in_place_of_fractions(figure: int) -> None:
    assert refusal(PRUNE, f"prune.target={{budget: {{flops: {figure}}}}}") == (
        "s.yaml: prune.target.budget.flops: must be a fraction of the cost at the start, e.g. 0.5 "
        f"for half of it, not {figure}"
    )


def test_an_empty_list_has_no_places() -> None:
    with pytest.raises(SpecError, match=r"'a\.0=1': the list is empty, so it has no place '0'"):
        with_overrides({"a": []}, ["a.0=1"])
    assert with_overrides({"a": []}, ["a=[1]"]) == {"a": [1]}

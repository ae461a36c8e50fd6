"""The mean results of each configuration that was tried with several seeds."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_PREFIX, _SEED, _NONE = "config.", "config.seed", "none"
FIGURES = ("trials", "accuracy", "accuracy_sd", "cost", "utility")
"""The columns that follow those of the settings."""


def by_setting(trials: "pd.DataFrame") -> "pd.DataFrame | None":
    """Return the mean results of each configuration over the seeds, the most accurate first.

    Args:
        trials: the table `trials` of a `SearchResult`.

    Returns:
        A column for each setting that varies, unless an earlier setting determines it. Then
        `trials` (the number that finished), `accuracy` and its standard deviation `accuracy_sd`,
        `cost` and `utility`. None if the seed does not vary, or nothing else does.
    """
    if _SEED not in trials or trials[_SEED].nunique() < 2:
        return None
    settings = _settings(trials)
    if settings.empty:
        return None
    done = trials["status"] == "finished"
    figures = trials[["accuracy", "cost", "utility"]].astype(float).where(done)
    groups = settings.join(figures).groupby(list(settings), sort=False)
    table = groups[["accuracy", "cost", "utility"]].mean()
    table.insert(0, "trials", groups["accuracy"].count())
    table.insert(2, "accuracy_sd", groups["accuracy"].std())
    return table.reset_index().sort_values("accuracy", ascending=False, ignore_index=True)


def _settings(trials: "pd.DataFrame") -> "pd.DataFrame":
    """Return the settings that vary, without the seed, as strings."""
    import pandas as pd

    columns = [c for c in map(str, trials.columns) if c.startswith(_PREFIX) and c != _SEED]
    texts = (
        trials[columns]
        .astype(object)
        .map(lambda v: None if pd.api.types.is_scalar(v) and pd.isna(v) else f"{v}")
    )
    named_settings = [c.removesuffix(".name") for c in columns if c.endswith(".name")]
    for setting in sorted(named_settings, key=lambda c: -c.count(".")):  # the inner ones first
        arguments = [c for c in map(str, texts.columns) if c.startswith(f"{setting}.")]
        # An option is a plain name, or a mapping with a name.
        named = _named(texts[arguments], setting)
        place = min(map(list(texts.columns).index, arguments))
        alone = texts.pop(setting) if setting in texts else named
        texts = texts.drop(columns=arguments)
        texts.insert(min(place, texts.shape[1]), setting, alone.where(alone.notna(), named))
    texts = texts.fillna(_NONE)
    kept: list[str] = []
    for name in map(str, texts.columns):
        determined = any(texts.groupby(earlier)[name].nunique().max() == 1 for earlier in kept)
        if texts[name].nunique() > 1 and not determined:
            kept.append(name)
    return texts[kept].rename(columns=lambda name: str(name).removeprefix(_PREFIX))


def _named(texts: "pd.DataFrame", setting: str) -> "pd.Series[str]":
    """Return each option as its name and those arguments in which options of this name differ."""
    name = f"{setting}.name"
    options = texts[name].copy()
    for option, rows in texts.groupby(name):
        varying = [c for c in map(str, rows) if rows[c].nunique() > 1]
        for row, values in zip(rows.index, rows[varying].itertuples(index=False), strict=True):
            given = [
                f"{c.removeprefix(setting)[1:]} {value}"
                for c, value in zip(varying, values, strict=True)
                if value is not None
            ]
            options[row] = f"{option} ({', '.join(given)})" if given else option
    return options

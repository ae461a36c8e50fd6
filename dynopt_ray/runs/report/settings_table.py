"""What became of each configuration that several seeds tried."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_PREFIX, _SEED, _NONE = "config.", "config.seed", "none"
FIGURES = ("trials", "accuracy", "accuracy_sd", "cost", "utility")
"""The columns after those of the settings."""


def by_setting(trials: "pd.DataFrame") -> "pd.DataFrame | None":
    """Mean figures over the seeds of each configuration, the most accurate first.

    Args:
        trials: those of a `SearchResult`.

    Returns:
        A column for each setting that varies, and not just with another before it. Then `trials`
        (that finished), `accuracy` and its standard deviation `accuracy_sd`, `cost` and
        `utility`. None where seeds do not vary, or nothing else does.
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
    """What varies besides the seed, as texts."""
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
        # An option is a name alone, or a mapping with its name.
        named = _named(texts[arguments], setting)
        place = min(map(list(texts.columns).index, arguments))
        alone = texts.pop(setting) if setting in texts else named
        texts = texts.drop(columns=arguments)
        texts.insert(min(place, texts.shape[1]), setting, alone.where(alone.notna(), named))
    texts = texts.fillna(_NONE)
    kept: list[str] = []
    for name in map(str, texts.columns):
        told = any(texts.groupby(earlier)[name].nunique().max() == 1 for earlier in kept)
        if texts[name].nunique() > 1 and not told:
            kept.append(name)
    return texts[kept].rename(columns=lambda name: str(name).removeprefix(_PREFIX))


def _named(texts: "pd.DataFrame", setting: str) -> "pd.Series[str]":
    """Each option by its name, and the arguments in which options of this name differ."""
    name = f"{setting}.name"
    options = texts[name].copy()
    for option, rows in texts.groupby(name):
        told = [c for c in map(str, rows) if rows[c].nunique() > 1]
        for row, values in zip(rows.index, rows[told].itertuples(index=False), strict=True):
            given = [
                f"{c.removeprefix(setting)[1:]} {value}"
                for c, value in zip(told, values, strict=True)
                if value is not None
            ]
            options[row] = f"{option} ({', '.join(given)})" if given else option
    return options

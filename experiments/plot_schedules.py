"""Draw every built-in schedule into docs/schedules.png: `python -m experiments.plot_schedules`."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from dynopt_ray import plugins
from dynopt_ray.schedules import (
    Schedule,
    article_step,
    constant,
    cosine,
    exponential,
    linear,
    polynomial,
    rewind,
    sequence,
    step,
    warmup,
)

NUM_STEPS = 100
SCHEDULES: Mapping[str, Mapping[str, Schedule]] = {
    "constant": {"value=1": constant(1)},
    "linear": {"final=0.1": linear(1, num_steps=NUM_STEPS, final=0.1)},
    "polynomial": {
        f"power={power:g}": polynomial(1, num_steps=NUM_STEPS, power=power) for power in (0.5, 1, 3)
    },
    "cosine": {
        f"final={final:g}": cosine(1, num_steps=NUM_STEPS, final=final) for final in (0.0, 0.3)
    },
    "exponential": {f"gamma={gamma:g}": exponential(1, gamma=gamma) for gamma in (0.9, 0.97)},
    "step": {"gamma=0.5": step(1, gamma=0.5, period_steps=25)},
    "article_step": {
        f"period_steps={period}": article_step(1, num_steps=NUM_STEPS, period_steps=period)
        for period in (30, 55)
    },
    "warmup": {"cosine, 20 steps": warmup(cosine(1, num_steps=80), num_steps=20)},
    "sequence": {
        "two cosines": sequence(
            [cosine(1, num_steps=60), cosine(0.5, num_steps=40)], milestones=[60]
        )
    },
    "rewind": {"cosine, to_step=60": rewind(cosine(1, num_steps=100), to_step=60)},
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73")
_COLUMNS = 5


def main() -> None:
    """Draw the schedules, each on its own axes."""
    if missing := set(plugins.names("schedules")) - SCHEDULES.keys():
        raise SystemExit(f"add to SCHEDULES what is missing there: {', '.join(sorted(missing))}")
    figure = Figure(figsize=(11, 4.6), dpi=130, layout="constrained")
    fields = figure.subplots(-(-len(SCHEDULES) // _COLUMNS), _COLUMNS, sharex=True, sharey=True)
    for axes, (name, variants) in zip(fields.flat, SCHEDULES.items(), strict=True):
        for colour, (label, schedule) in zip(_COLOURS, variants.items(), strict=False):
            values = [schedule(index) for index in range(NUM_STEPS + 1)]
            axes.plot(values, color=colour, label=label, linewidth=1.6)
        axes.set_title(name, fontsize=10)
        axes.legend(
            fontsize=7, frameon=False, loc="lower left" if name == "constant" else "upper right"
        )
        axes.grid(color="#d8dde3", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(-0.05, 1.1)
    figure.supxlabel("step", fontsize=10)
    figure.savefig(Path(__file__).parents[1] / "docs" / "schedules.png")


if __name__ == "__main__":
    main()

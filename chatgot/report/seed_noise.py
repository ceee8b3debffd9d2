"""How much does the seed alone change a loss, and how large is a difference beside that?"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from chatgot.config import as_in_yaml
from chatgot.report.side_by_side import (
    ComparedRun,
    Measure,
    configuration_of,
    named,
    why_not_comparable,
)

# Keys that change nothing of what is learned: what is saved, logged, drawn, and where.
OBSERVING = (
    "paths.",
    "sampling.",
    "training.save_checkpoint_steps",
    "training.checkpoint_interval_minutes",
    "training.max_checkpoints_to_keep",
    "training.background_saves",
    "training.log_interval",
    "training.sample_interval_",
    "training.report",
    "training.niceness",
)
# These say where the text is and how it is read; its hash says more.
OF_THE_TEXT = ("data.path", "data.encoding")
# Quantiles of Student's t for 1, 2, ... degrees of freedom: in one of 20 cases chance alone gives
# more, in either direction. Source: any table of t at 0.975.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
# Between equal settings, in nats per token, as docs/experiments.md found them.
USUAL_NOISE = "0.005 to 0.012 nats per token"


@dataclass(frozen=True)
class Group:
    """Runs whose settings differ in nothing but the seed; of one run, a group too.

    losses: one for each seed; of several runs with one seed, their mean.
    """

    name: str
    runs: list[ComparedRun]
    losses: dict[str, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses.values())

    @property
    def deviation(self) -> float | None:
        """The standard deviation between seeds; None: one seed has none."""
        return statistics.stdev(self.losses.values()) if len(self.losses) > 1 else None

    @property
    def freedom(self) -> int:
        """Its degrees of freedom."""
        return len(self.losses) - 1


@dataclass(frozen=True)
class Noise:
    """What the seed alone changes; deviation None: no settings were run with two seeds."""

    groups: list[Group]  # the best mean first
    deviation: float | None
    left_out: list[ComparedRun]  # not at their end, or without a loss

    @property
    def freedom(self) -> int:
        return sum(group.freedom for group in self.groups)


def seed_noise(runs: Sequence[ComparedRun], measure: Measure) -> Noise:
    """Return the noise of seeds in these runs: the pooled deviation within all groups."""
    by_settings: dict[str, list[ComparedRun]] = {}
    left_out = []
    for run in runs:
        if not run.is_done or measure.of(run) is None:
            left_out.append(run)
        else:
            by_settings.setdefault(all_but_seed(run), []).append(run)
    names = _names(list(by_settings.values()))
    groups = [
        Group(name, group, _by_seed(group, measure))
        for name, group in zip(names, by_settings.values(), strict=True)
    ]
    groups.sort(key=lambda group: group.mean)
    squares = [
        group.freedom * group.deviation**2 for group in groups if group.deviation is not None
    ]
    freedom = sum(group.freedom for group in groups)
    deviation = math.sqrt(sum(squares) / freedom) if freedom else None
    return Noise(groups, deviation, left_out)


def all_but_seed(run: ComparedRun) -> str:
    """Return all that decides what a run learns except its seed, as a text to compare.

    A run whose settings are not known is like no other.
    """
    if run.settings is None:
        return f"only {run.run_dir.resolve()}"
    ignored = ("seed", *OBSERVING, *(OF_THE_TEXT if run.text_hash else ()))
    settings = {
        key: as_in_yaml(value) for key, value in run.settings.items() if not key.startswith(ignored)
    }
    around = {name: run.surroundings.get(name) for name in ("starts from", "precision", "ChatGoT")}
    return repr((sorted(settings.items()), run.text_hash, around))


def _by_seed(group: Sequence[ComparedRun], measure: Measure) -> dict[str, float]:
    losses: dict[str, list[float]] = {}
    for run in group:
        loss = measure.of(run)
        assert loss is not None, "others were left out"
        losses.setdefault(as_in_yaml(run.setting("seed")), []).append(loss)
    return {seed: statistics.fmean(values) for seed, values in losses.items()}


def _names(groups: Sequence[Sequence[ComparedRun]]) -> list[str]:
    """Return a name for each group: its configuration's, or else those of its runs."""
    configurations = [
        {configuration_of(run.run_dir.resolve().name) for run in group} for group in groups
    ]
    names = []
    for number, (group, own) in enumerate(zip(groups, configurations, strict=True)):
        others = set().union(*configurations[:number], *configurations[number + 1 :])
        is_its_own = len(own) == 1 and not own & others
        names.append(next(iter(own)) if is_its_own else named(group))
    return names


# --------------------------------------------------------------------------------------------------
# In words


def noise_lines(noise: Noise, runs: Sequence[ComparedRun], measure: Measure) -> list[str]:
    """Return what the seeds say, in sentences."""
    lines = []
    if noise.left_out:
        left_out = named(noise.left_out)
        lines.append(f"Not counted, since not at their end or without a loss: {left_out}.")
    if noise.deviation is None:
        return [
            *lines,
            "One run each says nothing about differences below the noise of seeds. Between equal "
            f"settings, {USUAL_NOISE} were measured (docs/experiments.md). Run them again with "
            "another seed (--set seed=N) to learn the noise here.",
        ]
    lines += [_group_line(group, measure) for group in noise.groups]
    several = sum(group.deviation is not None for group in noise.groups)
    within = "the group" if several == 1 else f"{several} groups"
    lines.append(
        f"The noise of seeds is {noise.deviation:.4f} {measure.unit}: the standard deviation "
        f"within {within} of runs that differ in nothing but seed. It is that of {measure.name}: "
        f"{measure.in_words}."
    )
    why_not = why_not_comparable(runs, measure)
    if len(noise.groups) == 1:
        return lines
    if why_not:
        return [*lines, f"No verdict on the difference of the groups: {why_not}."]
    return lines + [_difference_line(noise, other) for other in noise.groups[1:]]


def _group_line(group: Group, measure: Measure) -> str:
    seeds = ", ".join(group.losses)
    if group.deviation is None:
        return f"{group.name}: {group.mean:.4f} {measure.unit} (seed {seeds} alone)"
    return (
        f"{group.name}: mean {group.mean:.4f} {measure.unit}, "
        f"standard deviation {group.deviation:.4f} (seeds {seeds})"
    )


def _difference_line(noise: Noise, other: Group) -> str:
    """Return how far the best group is below another one, as a multiple of the noise."""
    best = noise.groups[0]
    difference = other.mean - best.mean
    line = f"{best.name} is {difference:.4f} lower than {other.name}"
    assert noise.deviation is not None, "only with a noise"
    if noise.deviation == 0:
        return f"{line}; the seeds made no difference at all"
    multiple = difference / noise.deviation
    by_chance = STUDENT[noise.freedom - 1] * math.sqrt(1 / len(best.losses) + 1 / len(other.losses))
    verdict = "more than" if multiple > by_chance else "no more than"
    return (
        f"{line}: {multiple:.1f} x the noise of seeds, {verdict} chance gives "
        f"(in one of 20 such comparisons, {by_chance:.1f} x or more)"
    )

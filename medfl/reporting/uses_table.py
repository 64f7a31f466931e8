"""The table of every use of patients' data, and whether the stated epsilon covers it."""

from __future__ import annotations

from medfl.reporting.tables import Table
from medfl.reporting.texts import ENGLISH, Texts
from medfl.runs.results import RunResults

Row = tuple[str, str, str]


def uses_table(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Every use of patients' data, whether epsilon covers it, and why."""
    covered = texts("uses.yes" if run.guarantee == "given" else "uses.no")
    return Table(
        caption=texts("uses.caption"),
        head=(texts("uses.use"), texts("uses.covered"), texts("uses.why")),
        rows=(
            (texts("uses.training"), covered, texts("uses.training.why")),
            (texts("uses.lost"), covered, texts("uses.lost.why")),
            _earlier_runs(run, texts),
            _settings(run, texts),
            (texts("uses.choice"), texts("uses.not_needed"), texts("uses.choice.why")),
            _scores(run, texts),
            _comparisons(run, texts),
            (
                texts("uses.normalisation"),
                texts("uses.not_needed"),
                texts("uses.normalisation.why"),
            ),
            _pretraining(run, texts),
            (texts("uses.split"), texts("uses.not_needed"), texts("uses.split.why")),
        ),
    )


def _earlier_runs(run: RunResults, texts: Texts) -> Row:
    use = texts("uses.earlier")
    if run.is_open_data:
        return (use, texts("uses.no"), texts("uses.earlier.open"))
    return (use, texts("uses.in_lifetime"), texts("uses.earlier.hospital"))


def _settings(run: RunResults, texts: Texts) -> Row:
    use, tuning = texts("uses.settings"), run.study.tuning
    if tuning is None:
        return (use, texts("uses.not_stated"), texts("uses.settings.not_stated"))
    if tuning.on == "sites":
        if run.is_open_data:
            return (use, texts("uses.no"), texts.count("uses.settings.sites_open", tuning.runs))
        return (use, texts("uses.in_lifetime"), texts.count("uses.settings.sites", tuning.runs))
    if not tuning.collections:
        return (use, texts("uses.not_needed"), texts("uses.settings.synthetic"))
    listed = texts.listing(tuning.collections)
    return (use, texts("uses.no"), texts("uses.settings.public", collections=listed))


def _scores(run: RunResults, texts: Texts) -> Row:
    use = texts("uses.scores")
    if run.scores:
        return (use, texts("uses.scores.released"), texts("uses.scores.released.why"))
    return (use, texts("uses.scores.none"), texts("uses.scores.none.why"))


def _comparisons(run: RunResults, texts: Texts) -> Row:
    use = texts("uses.comparisons")
    if set(run.variants) - {"federated", "initial-only"}:
        return (use, texts("uses.no"), texts("uses.comparisons.made"))
    return (use, texts("uses.none"), texts("uses.comparisons.none"))


def _pretraining(run: RunResults, texts: Texts) -> Row:
    use, synthetic = texts("uses.pretraining"), run.study.synthetic
    if synthetic is None or synthetic.pretraining_steps == 0:
        return (use, texts("uses.not_needed"), texts("uses.pretraining.none"))
    if not synthetic.collections:
        return (use, texts("uses.not_needed"), texts("uses.pretraining.synthetic"))
    listed = texts.listing(synthetic.collections)
    return (use, texts("uses.no"), texts("uses.pretraining.public", collections=listed))

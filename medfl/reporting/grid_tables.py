"""Tables of a grid's report: every number of its figures, with the worst hospital marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from medfl.config.study_grid import BASE
from medfl.reporting import grid_words, utility_tables, wording
from medfl.reporting.estimates import Estimate
from medfl.reporting.grid_scores import GridScores, Setting
from medfl.reporting.tables import NOTHING, Table
from medfl.reporting.texts import Texts
from medfl.runs.grid_records import GridRecord
from medfl.runs.records import Region, Variant

Show = Callable[[Estimate, Texts], str]

_OF_A_SETTING: tuple[Variant, ...] = ("federated", "adapted", "local-only")


def gains_tables(scores: GridScores, texts: Texts) -> list[Table]:
    """What joining brings at each site, a table a variant, the site that gains least marked."""
    found = []
    for variant, settings in _by_variant(scores):
        rows = []
        for region in scores.regions:
            for site in (*scores.sites, ""):
                alone = scores.mean("alone", settings[0], region, site=site)
                cells = [_shown(alone, wording.dice_estimate, texts)]
                for setting in settings:
                    gain = scores.gain(setting, region, site=site)
                    least = scores.least_gain(setting, region)
                    cells.append(
                        _shown(gain, wording.difference_estimate, texts)
                        + _mark(least is not None and least[0] == site)
                    )
                rows.append((_place(site, region, texts), *cells))
        if any(cell != NOTHING for row in rows for cell in row[2:]):
            found.append(
                Table(
                    caption=_caption("studies.gains.caption", variant, scores, texts),
                    head=(
                        texts("table.site_and_region"),
                        texts("gains.alone"),
                        *(grid_words.setting_name(each, scores, texts) for each in settings),
                    ),
                    rows=tuple(rows),
                )
            )
    return found


def epsilon_table(scores: GridScores, texts: Texts) -> Table:
    """The federated model by epsilon, a row a line of the figure and region."""
    bare = "non-private" in scores.models
    started = "initial-only" in scores.models
    rows = []
    for region in scores.regions:
        for variant in scores.variants:
            for trust in scores.trusts:
                at = [
                    Setting(variant=variant, trust=trust, epsilon=epsilon)
                    for epsilon in scores.epsilons
                ]
                means = [scores.mean("initial-only", at[0], region)] if started else []
                means += [scores.mean("federated", setting, region) for setting in at]
                means += [scores.mean("non-private", at[0], region)] if bare else []
                name = grid_words.line_name(variant, trust, scores, texts)
                label = texts("table.model_region", model=name, region=region)
                rows.append(
                    (label, *(_shown(mean, wording.dice_estimate, texts) for mean in means))
                )
    return Table(
        caption=texts("studies.epsilon.caption"),
        head=(
            texts("studies.epsilon.head"),
            *([texts("variant.initial-only")] if started else []),
            *(texts("studies.epsilon", epsilon=wording.plain(each)) for each in scores.epsilons),
            *([texts("studies.no_noise")] if bare else []),
        ),
        rows=tuple(rows),
    )


def site_tables(scores: GridScores, texts: Texts) -> list[Table]:
    """The federated model at each site, a table a variant, the lowest score marked."""
    found = []
    for variant, settings in _by_variant(scores):
        rows = []
        for region in scores.regions:
            worst = [scores.worst_site("federated", setting, region) for setting in settings]
            for site in (*scores.sites, ""):
                cells = (
                    _shown(
                        scores.mean("federated", setting, region, site=site),
                        wording.dice_estimate,
                        texts,
                    )
                    + _mark(lowest is not None and lowest[0] == site)
                    for setting, lowest in zip(settings, worst, strict=True)
                )
                rows.append((_place(site, region, texts), *cells))
        found.append(
            Table(
                caption=_caption("studies.sites.caption", variant, scores, texts),
                head=(
                    texts("table.site_and_region"),
                    *(grid_words.setting_name(each, scores, texts) for each in settings),
                ),
                rows=tuple(rows),
            )
        )
    return found


def model_tables(scores: GridScores, texts: Texts) -> list[Table]:
    """Every model over all sites, a table a variant; a model of all settings has one row."""
    found = []
    for variant, settings in _by_variant(scores):
        rows = []
        for model in scores.models:
            own = settings if model in _OF_A_SETTING else settings[:1]
            for setting in own:
                name = _model_name(model, texts)
                if model in _OF_A_SETTING:
                    told = grid_words.setting_name(setting, scores, texts)
                    name = texts("studies.pair", first=name, second=told)
                means = [scores.mean(model, setting, region) for region in scores.regions]
                if any(mean is not None for mean in means):
                    cells = (_shown(mean, wording.dice_estimate, texts) for mean in means)
                    rows.append((name, *cells))
        found.append(
            Table(
                caption=_caption("studies.models.caption", variant, scores, texts),
                head=(
                    texts("table.model"),
                    *(wording.region_label(region, texts) for region in scores.regions),
                ),
                rows=tuple(rows),
            )
        )
    return found


def spent_table(record: GridRecord, scores: GridScores, texts: Texts) -> Table:
    """The largest epsilon of any run of a setting, with the delta that belongs to it."""
    rows = []
    for setting in scores.settings:
        cells = [
            cell
            for cell in record.cells
            if (cell.variant, cell.trust, cell.epsilon)
            == (setting.variant, setting.trust, setting.epsilon)
        ]
        if cells:
            name = grid_words.setting_name(setting, scores, texts)
            if setting.variant != BASE:
                name = texts("studies.pair", first=setting.variant, second=name)
            rows.append(
                (
                    name,
                    str(len(cells)),
                    wording.at_most(max(cell.spent for cell in cells)),
                    wording.power(max(cell.delta for cell in cells)),
                )
            )
    return Table(
        caption=texts("studies.spent.caption"),
        head=(
            texts("studies.spent.setting"),
            texts("studies.spent.runs"),
            texts("studies.spent.epsilon"),
            texts("studies.spent.delta"),
        ),
        rows=tuple(rows),
    )


def model_notes(scores: GridScores, texts: Texts) -> list[tuple[str, str]]:
    """Name and one-line description of each model."""
    return [
        (_model_name(model, texts), texts(utility_tables.NOTES[model])) for model in scores.models
    ]


def _model_name(model: Variant, texts: Texts) -> str:
    return (
        texts("studies.federated")
        if model == "federated"
        else wording.variant_name(model, guarantee="given", texts=texts)
    )


def _by_variant(scores: GridScores) -> Iterator[tuple[str, list[Setting]]]:
    for variant, settings in groupby(scores.settings, key=lambda setting: setting.variant):
        yield variant, list(settings)


def _place(site: str, region: Region, texts: Texts) -> str:
    return texts("table.site_region", site=site or texts("table.all_sites"), region=region)


def _caption(key: str, variant: str, scores: GridScores, texts: Texts) -> str:
    caption = texts(key, mark=grid_words.WORST)
    if len(scores.variants) == 1:
        return caption
    return texts(
        "studies.of_variant", caption=caption, variant=grid_words.variant_name(variant, texts)
    )


def _mark(is_worst: bool) -> str:
    return f" {grid_words.WORST}" if is_worst else ""


def _shown(found: Estimate | None, show: Show, texts: Texts) -> str:
    return NOTHING if found is None else show(found, texts)

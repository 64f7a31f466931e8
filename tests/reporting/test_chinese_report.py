"""The report in Chinese says what the English one says, and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from medfl.reporting.dashboard import render_live
from medfl.reporting.plan_figure import PlannedLoss, draw_plan
from medfl.reporting.report import render, write_report
from medfl.reporting.texts import Texts
from medfl.runs.attendance import AWAY, STUDIES_AT_ONCE, Absence, Attendance
from medfl.runs.files import ATTENDANCE
from medfl.runs.live_run import read_live
from medfl.runs.records import SecureSum
from medfl.runs.results import read_run
from tests.reporting.test_audit_table import attacked
from tests.reporting.test_overstated import SIGNS, age
from tests.reporting.test_texts import LATIN

RunBuilder = Callable[..., Path]

# What a run brings along: names, settings, versions and commands.
NAMES = {
    *("made-up-study", "North", "South", "East", "West", "TC", "WT", "ET", "timeout", "west"),
    *(
        "SegResNet",
        "init",
        "filters",
        "adam",
        "sgd",
        "fedavg",
        "PyTorch",
        "MONAI",
        "Flower",
        "NumPy",
    ),
    *("Linux-x86", "Linux", "x86", "simulate", "toml", "sites"),
}


class Shown(HTMLParser):
    """Words and table cells of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[dict[str, str | None]] = []
        self._hidden = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag == "style"
        self.tags.append(dict(attrs))
        self.words += [value or "" for name, value in attrs if name in ("alt", "aria-label")]

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def both(folder: Path) -> tuple[Shown, Shown]:
    run = read_run(folder)
    return Shown(render(run, {})), Shown(render(run, {}, Texts("zh")))


def secure(**changes: int) -> SecureSum:
    values = {"sites": 4, "threshold": 3, "honest_sites": 3, "colluding_sites": 0}
    return SecureSum(**(values | changes))


def with_absence(folder: Path) -> Path:
    away = {"west": Absence(code=AWAY, seconds=30.0)}
    starts = [Attendance(first_round=1, absent=away), Attendance(first_round=4, absent={})]
    (folder / ATTENDANCE.name).write_text("".join(map(ATTENDANCE.line, starts)))
    return folder


OPTIONS: dict[str, dict[str, Any]] = {
    "private": {},
    "hospital": {"purpose": "hospital", "metrics": False},
    "overlaps": {"overlaps": [["North", "East"]]},
    "simulated": {"noise_origin": "seeded"},
    "no noise": {"noise_multiplier": 0.0},
    "secure": {"secure_sum": secure()},
    "secure and colluding": {"secure_sum": secure(honest_sites=2, colluding_sites=1)},
    "secure without noise": {"secure_sum": secure(), "noise_multiplier": 0.0},
}


def build(case: str, build_run: RunBuilder) -> Path:
    if case == "overstated":
        return age(build_run(pictures=0), *SIGNS)
    if case == "attacked":
        return with_absence(attacked(build_run(pictures=0)))
    return build_run(pictures=0, **OPTIONS[case])


@pytest.mark.parametrize("case", [*OPTIONS, "overstated", "attacked"])
def test_no_english_is_left_and_no_number_differs(case: str, build_run: RunBuilder) -> None:
    english, chinese = both(build(case, build_run))
    assert chinese.tags[0]["lang"] == "zh-Hans"
    words = set(re.findall(r"[A-Za-z][A-Za-z0-9-]*", chinese.text))
    words = {word for word in words if not re.fullmatch(r"[0-9a-f]{6,}|x86-?\d*", word)}
    assert words <= LATIN | NAMES, words - LATIN - NAMES
    assert "{" not in chinese.text.replace('{"init_filters": 8}', "")
    # Order of words differs between languages, the numbers said do not.
    said = [Counter(re.findall(r"\d[\d,.]*\d|\d", page.text)) for page in (english, chinese)]
    differences = {number for number in said[0] | said[1] if said[0][number] != said[1][number]}
    assert differences <= {"0", "1", "2", "100"}, differences  # also said in words


def test_the_guarantee_is_stated_in_the_terms_of_the_field(build_run: RunBuilder) -> None:
    _, page = both(build_run(pictures=0))
    text = re.sub(r"[\xa0\u202f]", " ", page.text)
    for words in (
        "对每一例患者，本次训练均满足 ε ≤ 7.90（δ = 10⁻⁵）",
        "满足 (ε, δ)-差分隐私，ε ≤ 7.90，δ = 10⁻⁵",
        "噪声倍数 σ",
        "裁剪范数 C",
        "采样概率 q",
        "全肿瘤（WT）",
        "95% 置信区间",
        "平均 Dice 系数",
        "非医疗器械",
        "2026年1月31日",
    ):
        assert words in text


def test_an_absent_site_is_named_with_the_reason(build_run: RunBuilder) -> None:
    _, page = both(with_absence(build_run(pictures=0)))
    assert "west 未参与：第 1 至 3 轮：30 秒内无应答（未连接）。" in page.text


def test_a_site_in_enough_studies_is_named_with_them(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    absence = Absence(code=STUDIES_AT_ONCE, seconds=1.0, beside=("other-2026",))
    start = Attendance(first_round=1, absent={"west": absence})
    (folder / ATTENDANCE.name).write_text(ATTENDANCE.line(start))
    _, page = both(folder)
    said = "策略上限（other-2026），须待其中一项结束后方可参与（policy-studies-at-once）"
    assert said in page.text


@pytest.mark.slow
def test_figures_are_drawn_with_chinese_letters(build_run: RunBuilder) -> None:
    """Warnings are errors: a letter that no font has would be one."""
    folder = build_run(sites=("北京协和医院", "South"))
    english = write_report(folder).read_text()
    chinese = write_report(folder, language="zh").read_text()
    for page in (english, chinese):  # a site's name needs the font in either language
        assert page.count("@font-face") == 1
        assert "url(data:font/woff;base64," in page
    assert "柱状图" in chinese
    assert "Bar chart" not in chinese


def test_other_pictures_draw_a_chinese_name_too(build_run: RunBuilder, tmp_path: Path) -> None:
    """Warnings are errors here as well."""
    name = "北京协和医院"
    loss = PlannedLoss(site=name, patients=40, losses={0: 0.0, 1: 4.0}, budget=8.0)
    draw_plan([loss], study="研究", target=8.0, path=tmp_path / "plan.png")
    folder = build_run(sites=(name,), pictures=0)
    (folder / "summary.json").unlink(missing_ok=True)
    assert "data:image/svg+xml" in render_live(read_live(folder))

"""The site file that a new site starts from: sound, explained, and never in the way."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from medfl.config import load_site
from medfl.config.monitoring import Monitoring
from medfl.config.site import CustomLayout, SiteAdaptation, SiteConfig, SiteData, SitePolicy
from medfl.config.site_template import SITE_FILE, write_site_template
from medfl.privacy.ledger.witness import Witness
from medfl.site.known_patients import require_apart

TABLES = (Monitoring, SiteAdaptation, SiteData, SitePolicy, CustomLayout | None)


def test_a_new_sites_file_loads_and_keeps_everything_in_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "north" / SITE_FILE
    assert write_site_template(path, name="north")
    site = load_site(path)
    assert site.name == "north"
    assert site.purpose == "hospital"
    assert site.state == tmp_path / "north"
    require_apart(site, Witness.of_this_machine())


def test_a_new_sites_file_is_no_weaker_than_what_is_not_said(tmp_path: Path) -> None:
    path = tmp_path / SITE_FILE
    write_site_template(path, name="north")
    written, unsaid = load_site(path).privacy, SitePolicy(epsilon=8.0)
    assert written.delta <= unsaid.delta
    assert written.min_noise_multiplier >= unsaid.min_noise_multiplier
    for cap in ("max_clip_norm", "max_sampling_prob", "max_local_steps", "max_rounds"):
        assert getattr(written, cap) <= getattr(unsaid, cap)


def test_the_template_explains_every_key_of_a_site_file(tmp_path: Path) -> None:
    path = tmp_path / SITE_FILE
    write_site_template(path, name="north")
    text = path.read_text()
    for section in (SiteConfig, SiteData, SitePolicy, SiteAdaptation, Monitoring):
        for key, field in section.model_fields.items():
            is_table = field.annotation in TABLES
            assert (f"{key}]" if is_table else f"{key} = ") in text, key


@pytest.mark.parametrize("content", ["", "name = 'mine'\n"])
def test_a_file_that_is_there_is_never_replaced(content: str, tmp_path: Path) -> None:
    path = tmp_path / SITE_FILE
    path.write_text(content)
    assert not write_site_template(path, name="north")
    assert path.read_text() == content


def test_nobody_else_can_read_the_new_file_or_its_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "north" / SITE_FILE
    write_site_template(path, name="north")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("St. Mary's (north)", "St-Mary-s-north"),
        ('quote"\n[privacy]', "quote-privacy"),
        ("_{name}", "name"),
        ("Köln", "K-ln"),
        ("", "site"),
        ("n" * 60, "n" * 40),
    ],
)
def test_any_folder_name_gives_a_file_that_loads(folder: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / SITE_FILE
    write_site_template(path, name=folder)
    assert load_site(path).name == name


def test_the_commented_table_of_adaptation_is_one_that_loads(tmp_path: Path) -> None:
    path = tmp_path / SITE_FILE
    write_site_template(path, name="north")
    before, table, after = path.read_text().partition("# [adapt]")
    lines = [line.removeprefix("# ") for line in (table + after).splitlines()]
    keys = [line for line in lines[: lines.index("")] if not line.startswith(" ")]
    path.write_text("\n".join([before, *keys, ""]))
    adapt = load_site(path).adapt
    assert adapt == SiteAdaptation(after_study=True)


def test_the_commented_table_of_monitoring_is_one_that_loads(tmp_path: Path) -> None:
    path = tmp_path / SITE_FILE
    write_site_template(path, name="north")
    before, table, after = path.read_text().partition("# [monitoring]")
    lines = [line.removeprefix("# ") for line in (table + after).splitlines()]
    path.write_text("\n".join([before, *lines[: lines.index("")], ""]))
    found = load_site(path).monitoring
    assert found == Monitoring(port=9464, hook=("/opt/medfl-hook.sh",))

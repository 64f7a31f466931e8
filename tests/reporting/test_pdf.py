"""The report on paper, on machines that have nothing to print it with but pip's packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pypdfium2
import pytest

from medfl.cli import main
from medfl.errors import PdfUnavailable, ReportError
from medfl.reporting.pdf import write_pdf
from medfl.reporting.report import render
from medfl.reporting.texts import Language, Texts
from medfl.runs.results import read_run

RunBuilder = Callable[..., Path]

A4 = (595.3, 841.9)  # points
NO_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{folder}</dir><cachedir>{folder}/cache</cachedir></fontconfig>
"""


def page_of(folder: Path, language: Language) -> Path:
    """Without figures, which take most of the time."""
    page = folder / "report.html"
    page.write_text(render(read_run(folder), {}, Texts(language)), encoding="utf-8")
    return page


def sheets(pdf: Path) -> list[str]:
    """The text of each page."""
    with pypdfium2.PdfDocument(pdf) as document:
        assert all(sheet.get_size() == pytest.approx(A4, abs=1) for sheet in document)
        return [sheet.get_textpage().get_text_range() for sheet in document]


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ("The training keeps", "Technical statement", "Not a medical device.")),
        ("zh", ("对每一例患者", "技术声明", "非医疗器械")),
    ],
)
def test_a_machine_without_fonts_prints_the_whole_report(
    language: Language, words: tuple[str, ...], build_run: RunBuilder, tmp_path: Path
) -> None:
    page = page_of(build_run(pictures=0), language)
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    (fonts / "fonts.conf").write_text(NO_FONTS.format(folder=fonts))
    code = "import sys; from pathlib import Path; from medfl.reporting.pdf import write_pdf; "
    subprocess.run(
        [sys.executable, "-c", f"{code}print(write_pdf(Path(sys.argv[1])))", str(page)],
        env=os.environ | {"FONTCONFIG_FILE": str(fonts / "fonts.conf")},
        check=True,
        timeout=300,
    )
    found = sheets(page.with_suffix(".pdf"))
    assert 5 < len(found) < 20
    for number, text in enumerate(found, start=1):
        assert f"{number} / {len(found)}" in text
    for word in words:
        assert any(word in text for text in found)
    assert str(page.parent) not in "".join(found)


def test_a_missing_printer_is_named_and_the_page_is_kept(
    build_run: RunBuilder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build_run(metrics=False, pictures=0)
    monkeypatch.setitem(sys.modules, "plutoprint", None)
    monkeypatch.setattr(sys, "argv", ["medfl", "report", str(folder), "--pdf", "--language", "zh"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "pip install plutoprint" in error
    assert str(folder / "report.html") in error
    assert "Traceback" not in error
    assert 'lang="zh-Hans"' in (folder / "report.html").read_text()
    assert not list(folder.glob("*.pdf*"))


def test_the_command_prints_beside_the_page(
    build_run: RunBuilder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build_run(metrics=False, pictures=0)
    monkeypatch.setattr(sys, "argv", ["medfl", "report", str(folder), "--pdf"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert f"PDF: {folder / 'report.pdf'}" in capsys.readouterr().out
    assert "The training keeps" in sheets(folder / "report.pdf")[0]


def test_a_page_that_asks_for_a_file_does_not_get_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret.html"
    secret.write_text("<p>secret</p>")
    page = tmp_path / "report.html"
    page.write_text(f'<style>@import "{secret.as_uri()}";</style><img src="{secret}"><p>shown</p>')
    assert "shown" in sheets(write_pdf(page))[0]
    assert "secret" not in sheets(page.with_suffix(".pdf"))[0]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>text</p>")
    (tmp_path / "report.pdf").mkdir()
    with pytest.raises(ReportError, match=r"report\.pdf: expected a writable file") as found:
        write_pdf(page)
    assert not isinstance(found.value, PdfUnavailable)

"""The files of the documents: what was completed is never lost by accident."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pypdfium2
import pytest

from medfl.cli import main
from medfl.errors import ReportError
from medfl.reporting.governance.write import write_documents

Builder = Callable[..., Path]


def names(paths: tuple[Path, ...]) -> set[str]:
    return {path.name for path in paths}


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["medfl", "documents", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_a_document_that_is_there_is_kept_unless_it_is_to_be_replaced(
    deployed_run: Builder,
) -> None:
    folder = deployed_run()
    first = write_documents(folder)
    assert {"dpia.en.html", "dpia.en.md", "data-flows.en.svg"} <= names(first.made)
    assert not first.kept
    completed = folder / "documents" / "dpia.en.md"
    completed.write_text("completed by a person")
    again = write_documents(folder)
    assert (names(again.made), names(again.kept)) == (set(), names(first.made))
    assert completed.read_text() == "completed by a person"
    replaced = write_documents(folder, replace=True)
    assert names(replaced.made) == names(first.made)
    assert completed.read_text() != "completed by a person"


def test_languages_stand_side_by_side(deployed_run: Builder) -> None:
    folder = deployed_run()
    write_documents(folder)
    made = names(write_documents(folder, language="zh").made)
    assert {"dpia.zh.html", "dpia.zh.md", "data-flows.zh.svg"} <= made
    assert (folder / "documents" / "dpia.en.md").exists()


def test_a_picture_that_a_file_names_is_there(deployed_run: Builder) -> None:
    folder = deployed_run() / "documents"
    write_documents(folder.parent)
    assert f"]({(folder / 'data-flows.en.svg').name})" in (folder / "dpia.en.md").read_text()


def test_a_run_that_stopped_gets_no_documents(
    deployed_run: Builder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = deployed_run()
    for name in ("environment.json", "privacy.json", "federation.json"):
        (folder / name).unlink()
    assert command(monkeypatch, str(folder)) == 1
    assert "expected a finished run, found one that stopped after 10 of 10" in (
        capsys.readouterr().err
    )
    assert not (folder / "documents").exists()


def test_a_folder_that_cannot_be_written_is_named(deployed_run: Builder) -> None:
    folder = deployed_run()
    (folder / "documents").write_text("a file")
    with pytest.raises(ReportError, match="documents: expected a writable folder"):
        write_documents(folder)


@pytest.mark.slow
def test_the_command_says_what_it_wrote_and_prints_it(
    deployed_run: Builder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = deployed_run()
    assert not command(monkeypatch, str(folder), "--language", "zh", "--pdf", "--crate")
    said = capsys.readouterr().out
    assert f"Written: {folder}/documents/dpia.zh.md" in said
    assert f"RO-Crate: {folder}/ro-crate-metadata.json" in said
    with pypdfium2.PdfDocument(folder / "documents" / "dpia.zh.pdf") as document:
        text = "".join(sheet.get_textpage().get_text_range() for sheet in document)
    assert "数据保护影响评估附件" in text
    assert "须由控制者填写" in text
    assert not command(monkeypatch, str(folder), "--language", "zh")
    assert "--replace writes it anew" in capsys.readouterr().out

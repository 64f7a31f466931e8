"""`write_documents`: the documents of a run, as files that people complete and hand on.

They lie apart from what the run has written. A file that is there already may have been completed
by somebody: it is kept unless it is to be replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medfl.durable import write_atomically
from medfl.errors import ReportError
from medfl.reporting.governance import statement
from medfl.reporting.governance.content import Document
from medfl.reporting.governance.dpia import dpia
from medfl.reporting.governance.markdown import to_markdown
from medfl.reporting.governance.page import to_page
from medfl.reporting.governance.public_facts import public_facts
from medfl.reporting.governance.public_summary import public_summary
from medfl.reporting.texts import Language, Texts
from medfl.runs.results import RunResults, read_run

FOLDER = "documents"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What became of each file.

    Attributes:
        made: Written now.
        kept: Left as they were found.
        pages: The pages among all of them, for whoever prints them.
    """

    made: tuple[Path, ...]
    kept: tuple[Path, ...]
    pages: tuple[Path, ...]


def write_documents(
    folder: str | Path, *, language: Language = "en", replace: bool = False
) -> Written:
    """Make the governance documents of a finished run.

    Args:
        folder: A run folder as the federation wrote it.
        language: ``en`` for English, ``zh`` for Chinese in simplified characters.
        replace: Write anew what is there already, together with what people wrote into it.

    Returns:
        What was written, in `documents` inside the run folder, and what was kept.

    Raises:
        ReportError: If the run is not finished, its folder is damaged or contradictory, or is
            read-only.
    """
    target = Path(folder) / FOLDER
    contents = documents(read_run(folder), Texts(language))
    made, kept = [], []
    try:
        for name, content in contents.items():
            path = target / name
            if path.exists() and not replace:
                kept.append(path)
                continue
            write_atomically(path, content.encode())
            made.append(path)
    except OSError as error:
        raise ReportError(f"{target}: expected a writable folder, found: {error}") from None
    pages = tuple(target / name for name in contents if name.endswith(".html"))
    return Written(made=tuple(made), kept=tuple(kept), pages=pages)


def documents(run: RunResults, texts: Texts) -> dict[str, str]:
    """The text of each file by its name.

    Args:
        run: Results.
        texts: Of the reader's language.
    """
    files: dict[str, str] = {}
    for name, make in _READ.items():
        document = make(run, texts)
        files[f"{name}.{texts.language}.html"] = to_page(document)
        files[f"{name}.{texts.language}.md"] = to_markdown(document)
        files |= {picture.file: str(picture.svg) for picture in document.pictures}
    files[statement.FILE] = statement.statement(public_facts(run))
    return files


_READ: dict[str, Callable[[RunResults, Texts], Document]] = {
    "dpia": dpia,
    "public-summary": lambda run, texts: public_summary(public_facts(run), texts),
}

"""The institutions of FeTS 2022: a partition file of the challenge becomes one site file each.

`partitioning_1.csv` is the real partition by institution, `partitioning_2.csv` splits the largest
ones further by tumour size (Pati et al., arXiv:2105.05874).
"""

from __future__ import annotations

import re
from pathlib import Path

from medfl.config.open_data_site import open_data_site
from medfl.config.site import MODALITY_ORDER
from medfl.durable import write_atomically
from medfl.errors import DataError
from medfl.text_files import read_table

_COLUMNS = ["Partition_ID", "Subject_ID"]


def read_partition(path: Path) -> dict[str, list[str]]:
    """The cases of each institution.

    Args:
        path: The partition file, with the columns ``Partition_ID`` and ``Subject_ID``.

    Returns:
        Institution -> its cases, both in ascending order.

    Raises:
        DataError: If the file is something else, or a case is in it twice.
    """
    try:
        rows = read_table(path, columns=_COLUMNS)
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, found: {error.strerror}.") from None
    except ValueError as error:
        raise DataError(f"{path}: expected {error}, found something else.") from None
    partition: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    for number, row in rows:
        if len(row) != 2 or not re.fullmatch(r"[A-Za-z0-9_-]{1,30}", row[0]) or not row[1]:
            shown = ",".join(row)[:80]
            raise DataError(f"{path}, line {number}: expected two values, found {shown!r}.")
        institution, case = row
        if case in lines:
            raise DataError(
                f"{path}, line {number}: expected each case once, found {case} in line "
                f"{lines[case]} too."
            )
        lines[case] = number
        partition.setdefault(institution, []).append(case)
    if not partition:
        raise DataError(f"{path}: expected at least one case, found none.")
    # Numbers in their order, not 1, 10, 11, 2.
    order = sorted(partition, key=lambda name: (len(name), name) if name.isdigit() else (99, name))
    return {institution: sorted(partition[institution]) for institution in order}


def write_fets_sites(
    root: Path, *, partition: Path, out: Path, held_out: float, at_least: int = 1
) -> list[Path]:
    """Write a site file for each institution.

    Args:
        root: Folder of the challenge's cases.
        partition: The partition file.
        out: A new or empty folder.
        held_out: Share of each institution's patients that never train.
        at_least: Institutions with fewer cases are left out.

    Returns:
        The site files, in the order of the institutions.

    Raises:
        DataError: If the partition is damaged, `out` holds files, or nobody is left.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: expected a new or empty folder, found files.")
    institutions = {
        name: cases for name, cases in read_partition(partition).items() if len(cases) >= at_least
    }
    if not institutions:
        raise DataError(f"{partition}: expected an institution with {at_least} cases, found none.")
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for institution, cases in institutions.items():
        name = f"fets-{int(institution):02d}" if institution.isdigit() else f"fets-{institution}"
        listed = "".join(f"{case}\n" for case in cases)
        write_atomically(out / f"{name}.cases", listed.encode())
        text = open_data_site(
            name,
            about="An institution of FeTS 2022. Its images are public",
            root=str(root.resolve()),
            layout="fets2022",
            label_scheme="brats",
            modalities=MODALITY_ORDER,
            patients=len(cases),
            held_out=held_out,
            include=f"{name}.cases",
        )
        file = out / f"{name}.toml"
        write_atomically(file, text.encode())
        files.append(file)
    return files

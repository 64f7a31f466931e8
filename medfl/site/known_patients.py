"""What the witness knows a site's patients by: their names, and every one of their images.

A renamed folder keeps its images, and a scan that was converted again keeps its name. One person
under two names is noticed by the images as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medfl.config import SiteConfig
from medfl.data.cache import TensorCache
from medfl.data.cohort import Patient, pseudonym
from medfl.data.fingerprint import patient_fingerprints
from medfl.errors import ConfigError, DataError
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.ledger.witness import LedgerMemory, Witness

Images = Mapping[str, frozenset[str]]
"""Patient id -> fingerprints of all images."""


def images_of(patients: Sequence[Patient], *, site: SiteConfig, cache: Path) -> Images:
    """Fingerprints of the patients' images, remembered in the cache.

    Raises:
        DataError: If an image cannot be read, or the cache not be made.
    """
    try:
        remembered = TensorCache(cache, max_bytes=int(site.cache_gigabytes * 1e9))
    except OSError as error:
        raise DataError(
            f"{cache}: expected a folder that medfl's account can write, found: {error.strerror}."
        ) from None
    return patient_fingerprints(patients, data=site.data, cache=remembered, threads=site.threads)


def marks_of(images: Images, *, witness: Witness) -> frozenset[str]:
    """The witness's marks of patients: one of each name and one of each image."""
    known = {f"id/{name}" for name in images}
    known.update(f"image/{each}" for fingerprints in images.values() for each in fingerprints)
    return witness.marks(known)


def require_unclaimed(
    patients: Sequence[Patient], *, site: SiteConfig, cache: Path, own: Path
) -> None:
    """Refuse patients whom another ledger of this machine pays for.

    Where no other ledger is remembered, no image is read.

    Args:
        patients: Of the site.
        site: Open data have no ledger that counts, so that none is their own.
        cache: Remembers fingerprints.
        own: Folder of the site's own ledger.

    Raises:
        DataError: If an image cannot be read.
        LedgerError: If there is such a ledger.
    """
    others = other_ledgers(site, own=own)
    if not others:
        return
    images, is_open = images_of(patients, site=site, cache=cache), site.purpose == "open-data"
    marks = marks_of(images, witness=Witness.of_this_machine())
    for memory in others:
        if memory.patients & marks:
            raise memory.is_no_open_data() if is_open else memory.already_stands()


def other_ledgers(site: SiteConfig, *, own: Path) -> list[LedgerMemory]:
    """What the witness remembers of all ledgers but the site's own; open data have none.

    Args:
        site: The site.
        own: Folder of its ledger.

    Raises:
        LedgerError: If the witness cannot be used.
    """
    # By its name, and not by its folder, which may have moved with the ledger or have lost it.
    name = "" if site.purpose == "open-data" else LedgerStore.name_in(own)
    return [each for each in Witness.of_this_machine().memories() if each.ledger != name]


def require_one_name_each(images: Images, *, key: bytes) -> None:
    """Refuse two patients of one site who share an image.

    They are one person, who would be drawn, clipped and counted as two: the guarantee holds for
    each of the two alone, and for the person not at all as stated.

    Args:
        images: Of the training patients.
        key: Of the pseudonyms that the error names them by.

    Raises:
        DataError: If two share one.
    """
    owners: dict[str, str] = {}
    for name, fingerprints in images.items():
        for each in fingerprints:
            first = owners.setdefault(each, name)
            if first != name:
                pair = sorted(pseudonym(other, key=key) for other in (first, name))
                raise DataError(
                    f"Expected each person under one patient id, found an image of {pair[0]} that "
                    f"is one of {pair[1]} too. `medfl check` names them: remove one of the two, or "
                    "let data.patient in the site's file make them one patient.",
                    code="doubled-patient",
                )


def witness_of(site: SiteConfig) -> Witness | None:
    """Who remembers the patients of a site's ledger; nobody those of open data.

    Raises:
        LedgerError: If the witness cannot be used.
    """
    # A ledger of open data lives and dies with its run folder: there is nothing to remember.
    if site.purpose == "open-data":
        return None
    witness = Witness.of_this_machine()
    require_apart(site, witness)
    return witness


def require_apart(site: SiteConfig, witness: Witness) -> None:
    """Refuse a witness and a state folder of which one lies in the other.

    Raises:
        ConfigError: If they do: what is lost together cannot bear witness.
    """
    state, folder = site.state.resolve(), witness.folder.resolve()
    if folder.is_relative_to(state) or state.is_relative_to(folder):
        raise ConfigError(
            f"Site {site.name}: expected a state folder apart from the witness, {folder}, found "
            f"{state}: what is lost together cannot bear witness. Move the state folder, or let an "
            "administrator make the machine's witness, /var/lib/medfl-witness."
        )

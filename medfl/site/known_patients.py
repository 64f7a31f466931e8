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
from medfl.privacy.ledger.witness import Witness

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

"""Patients whom the starting model of a study has seen before the study began.

A start may have been trained on public patients, without noise. A patient who is one of them gains
nothing from a guarantee that begins later, so a site that has such a patient takes no part. The
start's file carries a digest of every image that it has seen, the coordinator sends these to every
site, and the study pins their list by its own digest.

The digest of an image is the first half of its fingerprint (`medfl.data.fingerprint`): who has the
image can compute it without a secret, and nobody can go back.

Whether a site has one of these images is something about its patients that noise does not hide. So
a hospital compares with a list only if its own file names it, see `SitePolicy.seen_lists`: else a
coordinator could ask for one person after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from medfl.config import SiteConfig
from medfl.data.cohort import Patient, pseudonym
from medfl.errors import DataError, PolicyRefused, PrivacyError
from medfl.protocol.messages import Proposal
from medfl.site.known_patients import Images, images_of
from medfl.site.state import SiteState
from medfl.site.state_folder import CACHE

_DIGITS = 32
_NAMED = 5  # pseudonyms in an error


def digests_of(patients: Sequence[Patient], *, site: SiteConfig, cache: Path) -> frozenset[str]:
    """Digests of all images of patients on whom a start is trained.

    Args:
        patients: The patients.
        site: Their site.
        cache: Remembers the fingerprints of files.

    Returns:
        32 hexadecimal digits an image.

    Raises:
        DataError: If an image cannot be read, or no image of a patient identifies anybody: a
            hospital could not notice that it has the same one.
    """
    images = images_of(patients, site=site, cache=cache)
    unknown = sorted(name for name, fingerprints in images.items() if not fingerprints)
    if unknown:
        raise DataError(
            f"Site {site.name}: expected an image of each patient that can be told from others, "
            f"found none of {unknown[0]}."
        )
    return frozenset().union(*map(_shortened, images.values()))


def list_digest(seen: Iterable[str]) -> str:
    """SHA-256 of a list of digests, whatever their order and however often each occurs."""
    return hashlib.sha256("\n".join(sorted(set(seen))).encode()).hexdigest()


def require_unseen_by_start(site_state: SiteState, proposal: Proposal) -> None:
    """Check that the start of a study has seen nobody of a site, by the list that was agreed to.

    Args:
        site_state: The site.
        proposal: The study, with the list.

    Raises:
        PolicyRefused: If the list is another than the study's, or missing.
        PrivacyError: If a patient was seen.
        DataError: If an image cannot be read.
    """
    synthetic = proposal.study.synthetic
    start = synthetic.start if synthetic is not None else None
    agreed = list_digest(()) if start is None or start.seen_sha256 is None else start.seen_sha256
    found = list_digest(proposal.seen)
    if found != agreed:
        raise PolicyRefused(
            "Expected the list of images that the study's starting model has seen, with SHA-256 "
            f"{agreed[:12]}..., found {len(proposal.seen)} images with {found[:12]}...",
            code="start-list",
        )
    require_unseen(site_state, proposal.seen)


def require_unseen(site_state: SiteState, seen: Collection[str]) -> None:
    """Check that nobody of a site is among the patients whom a start has seen.

    Args:
        site_state: The site; its training and held-out patients count.
        seen: Digests of images.

    Raises:
        PrivacyError: If a patient was seen.
        DataError: If an image cannot be read.
    """
    if not seen:
        return
    site, cohort = site_state.site, site_state.patients
    images = images_of((*cohort.training, *cohort.held_out), site=site, cache=site.state / CACHE)
    met = sorted(pseudonym(name, key=site_state.key) for name in met_before(images, seen=seen))
    if met:
        more = f" and {len(met) - _NAMED} more" if len(met) > _NAMED else ""
        raise PrivacyError(
            f"Site {site.name}: expected patients whom the starting model has not seen, found "
            f"{len(met)} whom it has: {', '.join(met[:_NAMED])}{more}. It was trained on them "
            "without noise, so no guarantee covers them. Leave them out, or take another start.",
            code="start-seen",
        )


def met_before(images: Images, *, seen: Collection[str]) -> list[str]:
    """The patients of whom a start has seen an image, by id.

    Args:
        images: Fingerprints by patient.
        seen: Digests of images.
    """
    known = frozenset(seen)
    return [name for name, fingerprints in images.items() if known & _shortened(fingerprints)]


def _shortened(fingerprints: Iterable[str]) -> frozenset[str]:
    return frozenset(each[:_DIGITS] for each in fingerprints)

"""Patients of open data on whom a start is trained, after the synthetic ones and without noise.

Everybody may have the file that comes of it, so nobody's patients but public ones may be in it. It
names them: the sites with their numbers, and a digest of every image, by which a hospital finds out
whether it has one of these patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfl.config import SiteConfig, StudyConfig
from medfl.data.patient_store import PatientStore
from medfl.data.pooled_patients import PooledPatients
from medfl.errors import ConfigError, PrivacyError
from medfl.protocol.messages import MAX_SEEN_IMAGES
from medfl.site.seen_patients import digests_of
from medfl.site.state import simulated_state
from medfl.site.state_folder import CACHE


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicPatients(PooledPatients):
    """The training patients of several sites; those held out are left alone.

    Attributes:
        collections: Number of patients by site, in the order of the names.
        seen: Digests of all of their images, in ascending order.
        label_schemes: Of their masks.
    """

    collections: Mapping[str, int]
    seen: tuple[str, ...]
    label_schemes: frozenset[str]


def read_public_patients(
    study: StudyConfig, sites: Sequence[SiteConfig], *, scratch: Path
) -> PublicPatients:
    """Find the training patients of sites with open data, in the frame of a study.

    Args:
        study: Says what a site does that lacks a modality.
        sites: The sites, in any order.
        scratch: A folder for what is needed of them meanwhile.

    Raises:
        ConfigError: If two sites have one name, a site lacks a modality and the study does not do
            without, or there are more images than a proposal may list.
        DataError: If a cohort cannot be read, or a patient could not be recognised elsewhere.
        LedgerError: If a ledger of this machine pays for one of the patients.
        PrivacyError: If a site is no open data, or allows no training without noise.
    """
    ordered = sorted(sites, key=lambda site: site.name)
    stores: dict[str, PatientStore] = {}
    seen: set[str] = set()
    for site in ordered:
        _require_open(site)
        if site.name in stores:
            raise ConfigError(f"Expected one file a site, found several of {site.name}.")
        site_state = simulated_state(site, run_folder=scratch)
        stores[site.name], _ = site_state.stores(study)
        training = site_state.patients.training
        seen |= digests_of(training, site=site, cache=site.state / CACHE)
    if len(seen) > MAX_SEEN_IMAGES:
        raise ConfigError(
            f"Expected at most {MAX_SEEN_IMAGES} images in a start, which every site is told of, "
            f"found {len(seen)}."
        )
    return PublicPatients(
        stores=tuple(stores.values()),
        collections={name: len(store) for name, store in stores.items()},
        seen=tuple(sorted(seen)),
        label_schemes=frozenset(site.data.label_scheme for site in ordered),
    )


def _require_open(site: SiteConfig) -> None:
    if site.purpose != "open-data":
        raise PrivacyError(
            f"Site {site.name}: expected purpose = 'open-data', found {site.purpose!r}: a start is "
            "trained without noise, and everybody may have it."
        )
    if not site.privacy.allow_baselines:
        raise PrivacyError(
            f"Site {site.name}: expected privacy.allow_baselines = true, found false: a start is "
            "trained without noise."
        )

"""Images prepared for a study before it begins, so that its first round does not wait for them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from medfl.config import StudyConfig
from medfl.errors import DataError
from medfl.site.state import SiteState


def fill_cache(
    site_state: SiteState, study: StudyConfig, *, on_patient: Callable[[int, int], None]
) -> list[DataError]:
    """Prepare every patient whom a run of the study would ask for; nothing is charged.

    Each of the site's threads prepares one case at a time.

    Args:
        site_state: The site.
        study: Its frame.
        on_patient: Called with the patients done, and with all of them.

    Returns:
        One error for each patient who could not be prepared.

    Raises:
        ConfigError: If the site lacks a modality that the study needs.
        DataError: If the cohort cannot be read, or the cache has no room for all of it.
    """
    site = site_state.site
    training, held_out = site_state.stores(study)
    # Without metrics nobody asks for the held-out patients.
    stores = (training, held_out) if site.privacy.share_metrics else (training,)
    work = [(store, index) for store in stores for index in range(len(store))]

    def prepare(number: int) -> DataError | None:
        store, index = work[number]
        try:
            store.fill(index)
        except DataError as error:
            return error
        except OSError as error:
            raise DataError(
                f"{site.state}: expected room for prepared images, found: {error}"
            ) from None
        return None

    errors: list[DataError | None] = []
    torch.set_num_threads(1)  # for each of the site's threads
    with ThreadPoolExecutor(max_workers=site.threads) as pool:
        try:
            for error in pool.map(prepare, range(len(work))):
                errors.append(error)
                on_patient(len(errors), len(work))
        finally:
            pool.shutdown(cancel_futures=True)
    sound = [part for part, error in zip(work, errors, strict=True) if error is None]
    held = sum(store.holds(index) for store, index in sound)
    if held < len(sound):
        raise DataError(
            f"Site {site.name}: expected a cache_gigabytes that holds {len(sound)} patients, found "
            f"room for {held} in {site.cache_gigabytes:g}. Raise it, or the others are prepared "
            "anew whenever they are drawn."
        )
    return [error for error in errors if error is not None]

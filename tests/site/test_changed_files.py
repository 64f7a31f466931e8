"""Images that change after the preflight: a code, no charge for nothing, and no word of whose."""

from __future__ import annotations

import errno
import gzip
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medfl.config import SiteConfig
from medfl.data.cache import TensorCache
from medfl.privacy import engine
from medfl.privacy.ledger.ledger import Ledger
from medfl.protocol.messages import (
    Declaration,
    Proposal,
    TrainTask,
    read_body,
    refusal_code,
    to_record,
)
from medfl.segmentation.networks import trainable_state
from medfl.site.state import SiteState, hospital_state

SROW = 280  # where NIfTI-1 keeps its transform, in bytes
SITE_LOG = "medfl.site.client_app"


class Site:
    """A hospital with images of its own, asked for one round after the other.

    Args:
        federation: What makes it.
        forgets: Whether every message meets a new process, as in a deployment.
    """

    def __init__(self, federation: Any, *, forgets: bool) -> None:
        self.config: SiteConfig = federation.hospital("east", copy_patients=True)
        self._federation = federation
        self._forgets = forgets
        self._site_state = hospital_state(self.config)
        self._study = federation.study(privacy={"noise": "operating-system"})
        proposal = Proposal(study=self._study, run="first", private=True)
        answer = federation.ask(self._site_state, to_record(proposal), kind="query")
        self._mechanism = read_body(answer, Declaration).mechanism

    @property
    def site_state(self) -> SiteState:
        return hospital_state(self.config) if self._forgets else self._site_state

    @property
    def patients(self) -> list[Path]:
        return sorted(folder for folder in self.config.data.root.iterdir() if folder.is_dir())

    @property
    def cache(self) -> Path:
        return self.config.state / "cache"

    def train(self, number: int) -> Any:
        """The answer to the task of a round."""
        task = TrainTask(
            study=self._study,
            run="first",
            round=number,
            message_id=f"first/{number}/east",
            mechanism=self._mechanism,
        )
        site_state = self.site_state
        weights = trainable_state(site_state.network(self._study))
        return self._federation.ask(site_state, to_record(task, weights=weights), kind="train")

    def rounds(self) -> tuple[int, int]:
        """Rounds that were charged, and those that were released."""
        with self.site_state.open_ledger() as ledger:
            kinds = [entry.kind for entry in ledger.entries()]
        return kinds.count("charge"), kinds.count("release")


@pytest.fixture(params=[False, True], ids=["one process", "a process a message"])
def site(federation: Any, request: pytest.FixtureRequest) -> Site:
    return Site(federation, forgets=request.param)


@pytest.fixture
def everybody_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "poisson_draw", lambda *, population, **_: range(population))


def flair_of(patient: Path) -> Path:
    return patient / f"{patient.name}_flair.nii.gz"


def transform_lost(patient: Path) -> None:
    content = bytearray(gzip.decompress(flair_of(patient).read_bytes()))
    struct.pack_into("<12f", content, SROW, *[0.0] * 12)
    flair_of(patient).write_bytes(gzip.compress(content))


def other_shape(patient: Path) -> None:
    image = nibabel.load(flair_of(patient))
    smaller = np.asarray(image.dataobj)[:-1]
    nibabel.save(nibabel.Nifti1Image(smaller, image.affine), flair_of(patient))


def no_numbers(patient: Path) -> None:
    image = nibabel.load(flair_of(patient))
    voxels = np.full(image.shape, np.nan, np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), flair_of(patient))


CHANGES: dict[str, Callable[[Path], object]] = {
    "vanished": lambda patient: flair_of(patient).unlink(),
    "truncated": lambda patient: os.truncate(flair_of(patient), 2000),
    "emptied": lambda patient: os.truncate(flair_of(patient), 0),
    "header changed": transform_lost,
    "shape changed": other_shape,
    "voxels lost": no_numbers,
    "page in its place": lambda patient: flair_of(patient).write_bytes(b"<html>log in</html>"),
    "mask vanished": lambda patient: (patient / f"{patient.name}_seg.nii.gz").unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_before_the_first_round_costs_nothing(
    change: str, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused whoever is drawn, so that the answer says nothing about the draw either."""
    CHANGES[change](site.patients[-1])
    reply = site.train(1)
    assert refusal_code(reply) == "data"
    assert site.rounds() == (0, 0)
    for text in (str(reply), caplog.text):
        assert "BraTS2021" not in text
        assert str(site.config.data.root) not in text


@pytest.mark.slow
@pytest.mark.parametrize("change", ["vanished", "truncated", "header changed"])
def test_a_change_between_two_rounds_costs_nothing_more(change: str, site: Site) -> None:
    assert refusal_code(site.train(1)) == ""
    CHANGES[change](site.patients[0])
    assert refusal_code(site.train(2)) == "data"
    assert site.rounds() == (1, 1)


def test_a_file_that_is_put_back_trains_again(site: Site) -> None:
    path = flair_of(site.patients[0])
    content = path.read_bytes()
    path.unlink()
    assert refusal_code(site.train(1)) == "data"
    path.write_bytes(content)
    assert refusal_code(site.train(1)) == ""
    assert site.rounds() == (1, 1)


def test_a_replaced_image_is_prepared_anew(site: Site) -> None:
    assert refusal_code(site.train(1)) == ""
    before = set(site.cache.glob("*.case"))
    image = nibabel.load(flair_of(site.patients[0]))
    voxels = np.asarray(image.dataobj)[::-1]
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), flair_of(site.patients[0]))
    assert refusal_code(site.train(2)) == ""
    assert len(set(site.cache.glob("*.case")) - before) == 1
    assert site.rounds() == (2, 2)


def test_a_patient_whose_folder_is_removed_is_not_drawn_any_more(federation: Any) -> None:
    site = Site(federation, forgets=True)
    assert refusal_code(site.train(1)) == ""
    shutil.rmtree(site.patients[0])
    assert refusal_code(site.train(2)) == ""
    assert site.rounds() == (2, 2)


def test_a_folder_that_is_removed_while_a_site_runs_costs_nothing(federation: Any) -> None:
    site = Site(federation, forgets=False)
    assert refusal_code(site.train(1)) == ""
    shutil.rmtree(site.patients[0])
    assert refusal_code(site.train(2)) == "data"
    assert site.rounds() == (1, 1)


@pytest.fixture
def after_the_charge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Makes something happen once a round is paid and before its first step."""
    charge = Ledger.charge

    def make(event: Callable[[], object]) -> None:
        def charge_and_then(ledger: Ledger, **named: Any) -> Any:
            permit = charge(ledger, **named)
            event()
            return permit

        monkeypatch.setattr(Ledger, "charge", charge_and_then)

    return make


@pytest.mark.usefixtures("everybody_is_drawn")
def test_files_that_vanish_during_a_round_change_nothing(
    site: Site, after_the_charge: Callable[..., None]
) -> None:
    after_the_charge(lambda: shutil.rmtree(site.config.data.root))
    assert refusal_code(site.train(1)) == ""
    assert site.rounds() == (1, 1)


def spoil(cache: Path) -> None:
    for entry in cache.glob("*.case"):
        entry.write_bytes(entry.read_bytes()[:1000])


@pytest.mark.usefixtures("everybody_is_drawn")
def test_damaged_entries_of_the_cache_are_made_again(
    site: Site, after_the_charge: Callable[..., None]
) -> None:
    after_the_charge(lambda: spoil(site.cache))
    assert refusal_code(site.train(1)) == ""
    assert site.rounds() == (1, 1)


@pytest.mark.usefixtures("everybody_is_drawn")
def test_images_lost_with_their_cache_in_a_round_contribute_nothing_to_it(
    site: Site, after_the_charge: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """The round is answered like any other: a refusal would say that somebody had been drawn."""

    def lose() -> None:
        spoil(site.cache)
        shutil.rmtree(site.config.data.root)

    after_the_charge(lose)
    reply = site.train(1)
    assert refusal_code(reply) == ""
    assert site.rounds() == (1, 1)
    assert "3 patient gradients could not be computed (DataError)" in caplog.text
    for text in (str(reply), caplog.text):
        assert "BraTS2021" not in text
    # What is lost for good shows before the next charge.
    assert refusal_code(site.train(2)) == "data"
    assert site.rounds() == (1, 1)


@pytest.mark.parametrize("changed", [False, True])
def test_a_cache_without_room_serves_what_was_verified_or_nothing(
    federation: Any,
    after_the_charge: Callable[..., None],
    everybody_is_drawn: None,
    caplog: pytest.LogCaptureFixture,
    changed: bool,
) -> None:
    """Whose images come from the files is settled before the draw, and so is what they show."""
    site = Site(federation, forgets=True)
    site.config = site.config.model_copy(update={"cache_gigabytes": 1e-6})

    def change() -> None:
        # All of them: the cache keeps the one that was prepared last, whichever that was.
        for patient in site.patients:
            image = nibabel.load(flair_of(patient))
            voxels = np.asarray(image.dataobj)[::-1]
            nibabel.save(nibabel.Nifti1Image(voxels, image.affine), flair_of(patient))

    after_the_charge(change if changed else lambda: None)
    assert refusal_code(site.train(1)) == ""
    failed = re.findall(r"(\d+) patient gradients could not be computed \(DataError\)", caplog.text)
    others = len(site.patients) - 1
    assert failed == ([str(others)] if changed else [])
    # The changed images take part in the next round.
    caplog.clear()
    after_the_charge(lambda: None)
    assert refusal_code(site.train(2)) == ""
    assert "could not be computed" not in caplog.text


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_without_room_for_the_cache_costs_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TensorCache, "_replace", full)
        assert refusal_code(site.train(1)) == "cache"
    assert site.rounds() == (0, 0)
    lines = [r.getMessage() for r in caplog.records if r.name == SITE_LOG]
    (line,) = [line for line in lines if "code cache" in line]
    assert os.strerror(errno.ENOSPC) in line
    assert "Free space" in line
    assert "BraTS2021" not in line
    assert refusal_code(site.train(1)) == ""


@pytest.mark.usefixtures("everybody_is_drawn")
def test_a_disk_that_fills_during_a_round_only_costs_time(
    site: Site, after_the_charge: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        TensorCache(site.cache).clear()
        monkeypatch.setattr(TensorCache, "_replace", full)

    after_the_charge(fill)
    assert refusal_code(site.train(1)) == ""
    assert site.rounds() == (1, 1)


def test_a_cache_too_small_for_the_cohort_is_filled_once(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was prepared once and had to make room is known to be sound."""
    site = Site(federation, forgets=True)
    site.config = site.config.model_copy(update={"cache_gigabytes": 1e-6})
    monkeypatch.setattr(engine, "poisson_draw", lambda **_: [])
    written: list[str] = []
    write = TensorCache.write

    def counted(cache: TensorCache, key: str, tensors: Any) -> None:
        written.append(key)
        write(cache, key, tensors)

    monkeypatch.setattr(TensorCache, "write", counted)
    for number in (1, 2):
        assert refusal_code(site.train(number)) == ""
    assert len(set(written)) == len(written) == len(site.patients)

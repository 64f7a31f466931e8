"""What a bundle does with images, in the steps that its configuration names; copied into each.

It reads, segments and writes through the very modules that `medfl predict` does, which are copied
with it. What it takes of a case is an entry of the data list: ``image``, and on request ``volumes``
and ``name``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medfl.data.framing import framed_scans, restore_probabilities, stacked
from medfl.data.nifti.headers import FileFaults
from medfl.data.written_labels import written_labels
from medfl.errors import DataError
from medfl.prediction.mask_file import INSIDE, save_like
from medfl.segmentation.inference import segment

_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """From an entry to an image in the network's frame.

    Attributes:
        modalities: Channels of the network, in this order.
        spacing: Millimetres along right, anterior, superior, or ``native``.
        may_lack: Whether the network was trained to do without some of the modalities.
    """

    modalities: Sequence[str]
    spacing: Sequence[float] | Literal["native"]
    may_lack: bool

    def files(self, entry: Mapping[str, Any]) -> dict[str, Path]:
        """Modality -> file, in the network's order; several share a file of several volumes.

        Raises:
            DataError: If the entry does not say where the network's images are.
        """
        image = entry.get("image") if isinstance(entry, Mapping) else None
        if isinstance(image, str | Path):
            return {name: Path(image) for name in self._present(self._volumes(entry))}
        if (
            not isinstance(image, list | tuple)
            or len(image) != len(self.modalities)
            or "volumes" in entry
        ):
            raise DataError(
                f"datalist: expected 'image' with the files of {list(self.modalities)}, in this "
                f"order, or with one file and its 'volumes', found {entry!r}."
            )
        if not all(isinstance(path, str | Path | None) for path in image):
            raise DataError(f"datalist: expected names of files in 'image', found {image!r}.")
        given = dict(zip(self.modalities, image, strict=True))
        present = self._present([name for name, path in given.items() if path is not None])
        return {name: Path(given[name]) for name in present}

    def __call__(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Read the entry's files.

        Returns:
            The image in the frame as ``image``, the first file as ``source``.

        Raises:
            DataError: If the entry or a file of it cannot be used.
        """
        files = self.files(entry)
        one_file = isinstance(entry["image"], str | Path)
        held = self._volumes(entry) if one_file else []
        source = next(iter(files.values()))
        scans = framed_scans(
            files,
            channels={name: held.index(name) for name in files} if len(held) > 1 else {},
            volumes=max(len(held), 1),
            spacing=self.spacing,
            case_id=str(source),
        )
        return {"image": stacked(scans, modalities=self.modalities), "source": source}

    def _volumes(self, entry: Mapping[str, Any]) -> list[str]:
        """Modalities of the one file of an entry, by volume."""
        held = entry.get("volumes", self.modalities)
        if (
            not isinstance(held, list | tuple)
            or not all(isinstance(name, str) for name in held)
            or len(set(held)) != len(held)
        ):
            raise DataError(
                "datalist: expected 'volumes' with a name of its own for each volume of the file, "
                f"found {held!r}."
            )
        return list(held)

    def _present(self, given: Sequence[str]) -> list[str]:
        present = [name for name in self.modalities if name in given]
        if not present or (len(present) < len(self.modalities) and not self.may_lack):
            raise DataError(
                f"datalist: expected the model's modalities {list(self.modalities)}, found "
                f"{list(given)}."
            )
        return present


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The entries of a data list, each prepared when it is asked for.

    Attributes:
        entries: The data list.
        preparation: What becomes of an entry.
    """

    entries: Sequence[Mapping[str, Any]]
    preparation: Preparation

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.preparation(self.entries[index])


@dataclass(frozen=True, kw_only=True)
class Windows:
    """From an image in the frame to probabilities of the network's regions.

    Attributes:
        window_size: Voxels of the window that slides over the image.
        device: Where the network runs.
        tta: Also segment the mirror image, left to right, and average both.
    """

    window_size: Sequence[int]
    device: torch.device | str
    tta: bool

    def __call__(self, image_CDHW: Tensor, network: nn.Module) -> Tensor:
        """Segment one image."""
        first, second, third = self.window_size
        return segment(
            network,
            image_CDHW,
            window_size=(first, second, third),
            device=self.device,
            mirrored=self.tta,
        )


@dataclass(frozen=True, kw_only=True)
class MaskWriter:
    """From probabilities to a mask beside those of other cases.

    Attributes:
        regions: The region of each channel.
        label_scheme: Which of the schemes the masks are written in.
        label_schemes: Scheme -> region and label, the outermost first.
        output_dir: Where the masks go.
    """

    regions: Sequence[str]
    label_scheme: str
    label_schemes: Mapping[str, Sequence[tuple[str, int]]]
    output_dir: str | Path

    def place(self, entry: Mapping[str, Any], *, source: Path) -> Path:
        """Where the mask of a case goes.

        Raises:
            DataError: If the entry's name is none of a file.
        """
        suffix = next((end for end in _SUFFIXES if source.name.lower().endswith(end)), "")
        name = entry.get("name", source.name[: len(source.name) - len(suffix)])
        if not isinstance(name, str) or Path(name).name != name or name[:1] in ("", "."):
            raise DataError(f"datalist: expected a plain file name as 'name', found {name!r}.")
        return Path(self.output_dir) / name / f"{name}_seg.nii.gz"

    @property
    def written(self) -> list[tuple[str, int]]:
        """Region and label, the outermost first.

        Raises:
            DataError: If there is no such scheme, or it cannot show a region.
        """
        scheme = self.label_schemes.get(self.label_scheme)
        if scheme is None:
            raise DataError(
                f"label_scheme: expected one of {list(self.label_schemes)}, found "
                f"{self.label_scheme!r}."
            )
        written = [(region, value) for region, value in scheme]
        if not set(self.regions) <= {region for region, _ in written}:
            raise DataError(
                f"label_scheme {self.label_scheme!r}: expected a label for each of "
                f"{list(self.regions)}, found {written}."
            )
        return written

    def __call__(self, item: Mapping[str, Any]) -> None:
        """Write one mask, with the geometry of the case's first file.

        Args:
            item: What `Preparation` returned, with the probabilities as ``pred`` and the mask's
                name as ``place``.
        """
        probabilities_RXYZ = restore_probabilities(item["pred"], image=item["image"])
        label = written_labels(
            probabilities_RXYZ > INSIDE, regions=self.regions, written=self.written
        )
        save_like(label.numpy(), item["place"], source=item["source"])


def segment_cases(
    cases: Cases,
    *,
    network: nn.Module,
    checkpoint: str | Path,
    inferer: Windows,
    postprocessing: MaskWriter,
    device: torch.device | str,
) -> None:
    """Segment and save every case; one that fails does not stop the others.

    A mask that is there already is kept, so that an interrupted run goes on.

    Raises:
        SystemExit: If something failed, with a sentence and no traceback of MONAI's.
    """
    try:
        _require_places(cases, postprocessing)
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    network.load_state_dict(torch.load(checkpoint, weights_only=True, map_location=device))
    failed = 0
    for number in range(len(cases)):
        done = f"{number + 1} of {len(cases)}"
        try:
            place = _place(cases.entries[number], cases, postprocessing)
            if place.exists():
                _say(f"{done}: kept {place}")
                continue
            item = cases[number]
            probabilities = inferer(item["image"], network)
            postprocessing({**item, "pred": probabilities, "place": place})
            _say(f"{done}: {place}")
        except (DataError, FileFaults, OSError) as error:
            failed += 1
            _say(f"{done}: failed: {error}")
    if failed:
        raise SystemExit(f"error: expected a mask of every case, {failed} of {len(cases)} failed.")


def _require_places(cases: Cases, writer: MaskWriter) -> None:
    """Refuse what is wrong with the whole command before the first mask is made."""
    if not isinstance(cases.entries, list | tuple) or not cases.entries:
        raise DataError(f"datalist: expected a list of cases, found {cases.entries!r}.")
    _ = writer.written
    seen: set[str] = set()
    for entry in cases.entries:
        with suppress(DataError):  # an entry that fails by itself, when its turn comes
            place = str(_place(entry, cases, writer))
            # Where disks do not tell capital letters apart, one file would replace the other.
            if place.casefold() in seen:
                break
            seen.add(place.casefold())
    else:
        return
    raise DataError(
        f"datalist: expected a path of its own for every mask, found {place} twice. Give each case "
        "a 'name'."
    )


def _place(entry: Mapping[str, Any], cases: Cases, writer: MaskWriter) -> Path:
    return writer.place(entry, source=next(iter(cases.preparation.files(entry).values())))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()

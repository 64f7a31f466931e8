"""`SiteConfig`: what one hospital tells its own installation.

Everything that protects patients is decided here and nowhere else: the server can propose a study,
but the `[privacy]` table of this file decides whether the site takes part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)

from medfl.config.files import Section, expand_variables, load
from medfl.config.layouts import MODALITY_ORDER as MODALITY_ORDER
from medfl.config.layouts import BidsChoice, CustomLayout, case_pattern
from medfl.config.layouts import Layout as Layout
from medfl.config.layouts import Modality as Modality
from medfl.config.monitoring import Monitoring

Region = Literal["TC", "WT", "ET"]
LabelScheme = Literal[
    "brats",
    "brats2015",
    "brats2023",
    "brats2024",
    "brats-ped",
    "brats-men-rt",
    "lumiere",
    "msd",
    "nnunet",
    "lgg",
    "custom",
]
Tissue = Literal["background", "edema", "core", "enhancing", "tumour"]
OwnLabels = tuple[tuple[int, Tissue], ...]
"""Value and tissue, in ascending order of the values."""
MaskScheme = LabelScheme | OwnLabels
"""What the values of masks mean: by the name of a known scheme, or one by one."""
Purpose = Literal["hospital", "open-data"]

MAX_LABEL = 255
"""Of a mask's values."""

DEVICE = r"cpu|cuda(:\d+)?"
"""What a device may be called."""

REGION_ORDER: tuple[Region, ...] = ("TC", "WT", "ET")
KNOWN_SCHEMES: tuple[LabelScheme, ...] = tuple(
    scheme for scheme in get_args(LabelScheme) if scheme != "custom"
)

_WITNESS_MOVED = (
    "expected no such key, since a site cannot choose its own witness. It lies in "
    "/var/lib/medfl-witness if that folder exists, else in medfl below $XDG_STATE_HOME or "
    "~/.local/state of the account that runs medfl. Delete the key. To keep what was remembered, "
    "make the folder (install -d -m 0700 -o medfl /var/lib/medfl-witness, or a link there to a "
    "folder on another disk), and move everything into it that the old one holds, the key too"
)

# Ends where nothing that anybody runs lies: without them a slip of the pen asks for memory or hours
# without end, or for a number that a library cannot hold.
Positive = Annotated[float, Field(gt=0, le=1e6)]
Probability = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**7)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Voxels = Annotated[int, Field(ge=1, le=1024)]
Size = tuple[Voxels, Voxels, Voxels]
Millimetres = Annotated[float, Field(ge=0.1, le=20)]
Spacing = tuple[Millimetres, Millimetres, Millimetres]

MAX_ADAPTATION_STEPS = 10**6
MAX_FOLDS = 100
"""Of the cross-validation that chooses a hospital's own model."""


def in_order(values: tuple[str, ...], order: tuple[str, ...], noun: str) -> None:
    """Raise ValueError unless `values` are distinct members of `order`, in that order."""
    expected = tuple(value for value in order if value in values)
    if values != expected:
        raise ValueError(f"expected distinct {noun} in the order {list(order)}")


def _expanded(value: object) -> object:
    return expand_variables(value) if isinstance(value, str) else value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", value):
        raise ValueError("expected 1 to 40 letters, digits, '-' or '_', starting with no sign")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(DEVICE, value):
        raise ValueError("expected 'cpu', 'cuda' or 'cuda:N'")
    return value


def _patient_pattern(value: str) -> str:
    return value and case_pattern(value)


def _roots(value: object) -> Path | tuple[Path, ...]:
    if isinstance(value, str | Path):
        return _root(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("expected a folder in quotes, or a list of them")
    roots = tuple(map(_root, value))
    if len(set(roots)) < len(roots):
        raise ValueError("expected each folder once")
    return roots


def _written_roots(value: Path | tuple[Path, ...]) -> str | list[str]:
    return list(map(str, value)) if isinstance(value, tuple) else str(value)


def _root(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("expected a folder in quotes, or a list of them")
    return Path(expand_variables(value))


Trust = Literal["local", "secure"]
Name = Annotated[str, AfterValidator(_name)]
Device = Annotated[str, AfterValidator(_device)]
ExpandedPath = Annotated[Path, BeforeValidator(_expanded)]


class SiteData(Section):
    """Where the images are and how they are written.

    Attributes:
        root: Folder of the images, or several of them. A patient of one name is one patient under
            all of them, and a case may lie under one only.
        layout: How folders and files are named.
        label_scheme: What the masks' values mean; ``custom`` with `labels`.
        labels: Value -> tissue, for the label scheme ``custom``. ``edema``; ``core`` without
            enhancement (necrosis, solid parts, cysts); ``enhancing``; ``tumour``, where all of it
            has one value; ``background`` for what is no tumour, as a resection cavity.
        modalities: Those that every case has.
        held_out: Share of patients that never train.
        patient: Pattern (regular expression) whose group ``patient`` is the person in a case's
            name, where the layout cannot know; empty takes the layout's own.
        include: Text file with the names of the site's cases, one a line, where the root holds
            other sites' too; every case if absent.
        incomplete: What becomes of cases that lack a mask or one of the modalities: ``refuse`` the
            cohort, or ``leave-out`` these cases, which `medfl check` then names.
        custom: The layout ``custom``.
        bids: Entity -> values, by which one of several files is chosen with the layout ``bids``:
            files without the entity count where no other one has a value.
    """

    root: Annotated[
        Path | tuple[Path, ...],
        PlainValidator(_roots),
        PlainSerializer(_written_roots, when_used="json"),
    ]
    layout: Layout
    label_scheme: LabelScheme
    labels: dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,2})$")], Tissue] = Field(
        default_factory=dict
    )
    modalities: tuple[Modality, ...] = Field(min_length=1)
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patient: Annotated[str, AfterValidator(_patient_pattern)] = ""
    include: ExpandedPath | None = None
    incomplete: Literal["refuse", "leave-out"] = "refuse"
    custom: CustomLayout | None = None
    bids: BidsChoice = Field(default_factory=dict)

    @property
    def roots(self) -> tuple[Path, ...]:
        """All folders of the images."""
        return self.root if isinstance(self.root, tuple) else (self.root,)

    @model_validator(mode="after")
    def _modalities_in_order(self) -> Self:
        in_order(self.modalities, MODALITY_ORDER, "modalities")
        return self

    @property
    def mask_scheme(self) -> MaskScheme:
        """What the masks' values mean."""
        if self.label_scheme != "custom":
            return self.label_scheme
        return tuple(sorted((int(value), tissue) for value, tissue in self.labels.items()))

    @model_validator(mode="after")
    def _own_labels_are_described(self) -> Self:
        if (self.label_scheme == "custom") != bool(self.labels):
            found = f"{len(self.labels)} labels with label_scheme = {self.label_scheme!r}"
            raise ValueError(
                "expected a table [data.labels] (value = tissue) for label_scheme = 'custom' and "
                f"no other, found {found}"
            )
        tissues = set(self.labels.values())
        if self.labels and not tissues - {"background"}:
            raise ValueError("expected a value in data.labels that is tumour, found none")
        if "tumour" in tissues and tissues - {"tumour", "background"}:
            raise ValueError(
                "expected 'tumour' in data.labels only where all of a tumour has one meaning, "
                f"found {sorted(tissues)}"
            )
        if int(max(self.labels, key=int, default="0")) > MAX_LABEL:
            raise ValueError(f"expected values up to {MAX_LABEL} in data.labels")
        if self.labels.get("0", "background") != "background":
            raise ValueError("expected 0 to be background in data.labels")
        return self

    @model_validator(mode="after")
    def _custom_layout_is_described(self) -> Self:
        if (self.layout == "custom") != (self.custom is not None):
            found = "none" if self.custom is None else f"one beside layout = {self.layout!r}"
            raise ValueError(
                f"expected a table [data.custom] for layout = 'custom' and no other, found {found}"
            )
        if self.bids and self.layout != "bids":
            raise ValueError(
                "expected a table [data.bids] for layout = 'bids' and no other, found one beside "
                f"layout = {self.layout!r}"
            )
        return self


class SitePolicy(Section):
    """What the site accepts at most. A proposal beyond it is refused, never adapted.

    Attributes:
        answer_seconds: If above 0, an update leaves this many seconds after its task came, or a
            whole multiple of them where computing took longer: how long a step takes says how many
            patients were drawn. A task whose server does not wait that long is refused.
        seen_lists: SHA-256 of the lists of public images, seen by starting models, that a hospital
            compares its own with. A study whose start has seen others is refused: the answer tells
            whether a patient is on the list, so somebody here decides which list may be asked.
        trust: The trust modes of studies that the site takes part in: ``local``, where its own
            noise protects its patients from everybody, and ``secure``, where it relies on others.
        min_share_noise_multiplier: Of what the site adds by itself to a secure sum, over the clip
            norm: a floor under what its patients have if all others sided with the server.
        peers: Event keys of the other sites by name, compared by telephone: a hospital enters a
            secure sum with these only, since a server could make up the rest.
        studies_at_once: How many runs of studies the site is in at the same time; see
            `medfl.site.open_runs`. The budget is one for all of them, whatever this says.
    """

    epsilon: Positive
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    min_noise_multiplier: Annotated[float, Field(ge=0, le=1e6)] = 0.5
    max_clip_norm: Positive = 10.0
    max_sampling_prob: Probability = 0.5
    max_local_steps: Count = 100
    max_rounds: Count = 1000
    share_metrics: bool = False
    allow_baselines: bool = False
    answer_seconds: Annotated[float, Field(ge=0, le=86400)] = 0.0
    seen_lists: tuple[Sha256, ...] = ()
    trust: tuple[Trust, ...] = Field(default=("local",), min_length=1)
    min_share_noise_multiplier: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    peers: dict[Name, Sha256] = Field(default_factory=dict)
    studies_at_once: Annotated[int, Field(ge=1, le=100)] = 1

    @model_validator(mode="after")
    def _modes_are_distinct(self) -> Self:
        if self.trust not in (("local",), ("secure",), ("local", "secure")):
            raise ValueError(
                f"expected 'local' or 'secure' or both in this order, found {list(self.trust)}"
            )
        return self


class SiteAdaptation(Section):
    """How the hospital makes a model of its own, which stays there; what `medfl adapt` does, too.

    Attributes:
        after_study: Whether a running site does so by itself when a study's final model has come.
        steps: Steps of each training, without noise.
        folds: Parts of the cross-validation.
        seed: Of patients, crops and folds.
        device: Where the running site trains by itself. The CPU unless the file says otherwise,
            since the next round may need all memory of a GPU. `medfl adapt` takes the site's.
    """

    after_study: bool = False
    steps: Annotated[int, Field(ge=1, le=MAX_ADAPTATION_STEPS)] = 100
    folds: Annotated[int, Field(ge=2, le=MAX_FOLDS)] = 3
    seed: Seed = 0
    device: Device = "cpu"


class SiteConfig(Section):
    """One hospital: its data, its place in the federation, its policy.

    Attributes:
        name: Public name of the site.
        purpose: ``hospital`` enforces the lifetime ledger in `state`; ``open-data`` (public or
            synthetic patients) is for simulation only and keeps its ledger in the run folder.
        declared_patients: Public number of training patients; sets the divisor of the mechanism.
        weight: Public weight of the site's update in the global model.
        state: Folder of keys, ledger, outbox and cache (mode 0700).
        threads: CPU threads of one training process, of checks and of a pretraining; in a
            simulation each site has one, whatever this says.
        cache_gigabytes: Most disk for prepared images, in `state`; the longest unread go first.
        monitoring: What a running site shows on this machine, and whom it calls.
    """

    retired: ClassVar[Mapping[str, str]] = MappingProxyType({"witness": _WITNESS_MOVED})

    name: Name
    purpose: Purpose
    declared_patients: Annotated[int, Field(ge=1, le=10**7)]
    weight: Positive
    state: ExpandedPath
    device: Device = "cpu"
    threads: Threads = 2
    cache_gigabytes: Positive = 60.0
    data: SiteData
    privacy: SitePolicy
    adapt: SiteAdaptation = Field(default_factory=SiteAdaptation)
    monitoring: Monitoring = Field(default_factory=Monitoring)

    @model_validator(mode="after")
    def _privacy_fits_the_cohort(self) -> Self:
        largest = 1 / (10 * self.declared_patients)
        if self.privacy.delta > largest:
            raise ValueError(
                f"expected privacy.delta <= 1/(10 declared_patients) = {largest:.3g}, "
                f"found {self.privacy.delta:g}"
            )
        if self.purpose == "hospital" and (
            self.privacy.share_metrics or self.privacy.allow_baselines
        ):
            raise ValueError(
                "expected privacy.share_metrics and privacy.allow_baselines to be false for the "
                "purpose 'hospital': metrics and baselines on private patients carry no guarantee"
            )
        return self


def load_site(path: str | Path) -> SiteConfig:
    """Read a site file; relative paths in it are taken from the file's folder.

    Raises:
        ConfigError: If the file breaks a rule.
    """
    path = Path(path)
    site = load(path, SiteConfig)
    base = path.resolve().parent
    include = site.data.include and base / site.data.include
    roots = tuple(base / root for root in site.data.roots)
    root = roots if isinstance(site.data.root, tuple) else roots[0]
    data = site.data.model_copy(update={"root": root, "include": include})
    return site.model_copy(update={"state": base / site.state, "data": data})

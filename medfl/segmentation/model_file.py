"""A trained model as one safetensors file that says what it expects and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from medfl.config.site import Modality, Region, Size, Spacing
from medfl.config.study import StudyInput, StudyNetwork
from medfl.durable import write_atomically
from medfl.errors import ConfigError, ModelError
from medfl.segmentation.networks import build_network, load_trainable
from medfl.segmentation.notice import NOTICE

FORMAT = "medfl model 1"

STAYS = "not private: stays at this hospital"
"""What a model says of itself that was trained on patients without noise."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a model takes and gives.

    Attributes:
        network: Class of `monai.networks.nets`.
        arguments: Its keyword arguments.
        modalities: Order of the input channels.
        regions: Order of the output channels.
        spacing: Millimetres per voxel of the frame, or ``native``.
        crop_size: Voxels of one crop in training.
        window_size: Voxels of the window that slides over a whole image.
    """

    network: str
    arguments: dict[str, Any]
    modalities: tuple[Modality, ...]
    regions: tuple[Region, ...]
    spacing: Spacing | Literal["native"]
    crop_size: Size
    window_size: Size

    @property
    def shared(self) -> dict[str, Any]:
        """What a start has to have in common with what is trained from it, as JSON gives it back.

        Crops may differ where the network allows it.
        """
        names = ("network", "arguments", "modalities", "regions", "spacing")
        values: dict[str, Any] = json.loads(json.dumps({n: getattr(self, n) for n in names}))
        return values

    def build(self, *, seed: int = 0) -> nn.Module:
        """The network with fresh weights.

        Raises:
            ModelError: If it cannot be built or is unfit for DP training.
        """
        return build_network(
            name=self.network,
            arguments=self.arguments,
            in_channels=len(self.modalities),
            out_channels=len(self.regions),
            crop_size=self.crop_size,
            window_size=self.window_size,
            seed=seed,
        )


def model_bytes(
    weights: Mapping[str, Tensor], *, spec: ModelSpec, provenance: Mapping[str, Any]
) -> bytes:
    """A model file's content: the same for the same weights, specification and provenance.

    Args:
        weights: Trainable parameters by name.
        spec: What the model takes and gives.
        provenance: Study, round, mechanisms: JSON types only.
    """
    metadata = {
        "format": FORMAT,
        "notice": NOTICE,
        "spec": json.dumps(asdict(spec)),
        "provenance": json.dumps(dict(provenance)),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    return _in_order(save(tensors, metadata=metadata))


def _in_order(content: bytes) -> bytes:
    """The same file with the keys of its header in order, which safetensors leaves to chance.

    A file that is made again then has the digest that a study pins. The header is JSON behind its
    length, eight bytes in little-endian order; blanks fill it up to a multiple of eight.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def read_model(path: Path) -> tuple[ModelSpec, nn.Module]:
    """Read a model file.

    Returns:
        Its specification, and the network with its weights in evaluation mode.

    Raises:
        ModelError: If the file cannot be read or is no model of medfl.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: expected a model in safetensors, found: {error}") from None
    if metadata.get("format") != FORMAT:
        raise ModelError(
            f"{path}: expected the format {FORMAT!r}, found {metadata.get('format')!r}."
        )
    try:
        spec = _spec(metadata["spec"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelError(f"{path}: expected a model specification, found a damaged one.") from None
    network = spec.build()
    load_trainable(network, weights)
    return spec, network.eval()


def read_provenance(path: Path) -> dict[str, Any]:
    """Where a model comes from, as `model_bytes` was told.

    Raises:
        ModelError: If the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            provenance = json.loads((file.metadata() or {})["provenance"])
    except (OSError, SafetensorError, KeyError, ValueError):
        raise ModelError(f"{path}: expected a model of medfl, found none.") from None
    return provenance if isinstance(provenance, dict) else {}


def require_new_model_file(out: Path) -> None:
    """Find out before the minutes of training whether the model can be written.

    Raises:
        ConfigError: If `out` exists or cannot be written.
    """
    if out.exists():
        raise ConfigError(f"{out}: expected a new file, found one that exists.")
    # Under another name: a crash in between must not leave what looks like a model.
    probe = out.with_name(f".{out.name}.probe")
    try:
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{out}: expected a file that can be written, found: {error.strerror}."
        ) from None


def stays(path: Path) -> bool:
    """Whether a model says that a hospital made it for itself: as private as its patients' images.

    The file's own word is taken for that: this guards against a mistake, not against who forges it.

    Raises:
        ModelError: If the file cannot be read.
    """
    return bool(read_provenance(path).get("privacy") == STAYS)


def fills_missing(path: Path) -> bool:
    """Whether a model was trained to do without some modalities."""
    return read_provenance(path).get("missing_modality") == "zero-fill"


def _spec(text: str) -> ModelSpec:
    # Under the rules of a study's file: a forged one cannot ask for an endless network.
    values = json.loads(text)
    network = StudyNetwork(name=values.pop("network"), arguments=values.pop("arguments"))
    frame = StudyInput.model_validate_json(json.dumps(values))
    return ModelSpec(
        network=network.name,
        arguments=network.arguments,
        modalities=frame.modalities,
        regions=frame.regions,
        spacing=frame.spacing,
        crop_size=frame.crop_size,
        window_size=frame.window,
    )

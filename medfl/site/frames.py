"""How a site's cases become the tensors that a model takes, or why they cannot."""

from __future__ import annotations

from medfl.config import SiteConfig
from medfl.data.transforms import Frame
from medfl.errors import ConfigError
from medfl.segmentation.model_file import ModelSpec


def frame_of(site: SiteConfig, spec: ModelSpec, *, fills: bool, of: str) -> Frame:
    """The frame of a model at a site.

    Args:
        site: The site.
        spec: What the model takes.
        fills: Whether it does without a modality that the site lacks.
        of: Whose modalities they are, for the error.

    Raises:
        ConfigError: If the site lacks a modality and the model does not do without, or if it has
            none of them.
    """
    wanted, present = spec.modalities, set(site.data.modalities)
    missing = tuple(name for name in wanted if name not in present)
    if missing and (not fills or not present.intersection(wanted)):
        raise ConfigError(
            f"Site {site.name}: expected data.modalities with "
            f"{'one' if fills else 'all'} of the {of}'s "
            f"{list(wanted)}, found {list(site.data.modalities)}.",
            code="modalities",
        )
    return Frame(
        modalities=wanted,
        regions=spec.regions,
        spacing=spec.spacing,
        label_scheme=site.data.mask_scheme,
        absent=missing,
    )

"""`ScannerLook`: how one hospital's scanner turns tissue into four images.

A table of typical signals per tissue and modality is bent by the look's contrast curves, varied
from patient to patient, shaded by a bias field, blurred to the look's resolution and slice
thickness, and drowned in Rician noise (Gudbjartsson and Patz 1995, eq. 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medfl.config.site import MODALITY_ORDER, Modality
from medfl.config.synthetic import Variety
from medfl.phantom.anatomy import Head, Tissue
from medfl.phantom.coverage import stripped
from medfl.phantom.grid import FloatArray, HeadGrid
from medfl.phantom.lesion import Lesion

# White matter's signal of about 0.4 to 0.66 becomes a few hundred units, as scanners store it.
SCANNER_UNITS = 1000.0
MIDDLE_GREY = 0.5
MISSING_PROBABILITY = 0.07
MISSING_IN_RANDOM = 0.12
CUT_PROBABILITY = 0.3
SIGMA_PER_FWHM = 1 / 2.3548
# A box of one voxel has 0.29; a little more hides that tissue is drawn without partial volumes.
VOXEL_SIGMA = 0.4

# Signal of each tissue in t1n, t1c, t2w, t2f, as a share of the brightest. Parts of the lesion
# are varied together and relative to white matter, see `_signals`.
SIGNALS: Mapping[Tissue, tuple[float, float, float, float]] = {
    Tissue.AIR: (0.00, 0.00, 0.00, 0.00),
    Tissue.FAT: (1.00, 0.95, 0.65, 0.85),
    Tissue.MUSCLE: (0.36, 0.46, 0.20, 0.26),
    Tissue.BONE: (0.05, 0.05, 0.05, 0.04),
    Tissue.MARROW: (0.42, 0.44, 0.28, 0.30),
    Tissue.DURA: (0.34, 0.75, 0.20, 0.28),
    Tissue.EYE: (0.14, 0.15, 0.98, 0.08),
    Tissue.CSF: (0.16, 0.17, 1.00, 0.10),
    Tissue.GREY: (0.50, 0.53, 0.58, 0.49),
    Tissue.DEEP_GREY: (0.55, 0.57, 0.50, 0.45),
    Tissue.WHITE: (0.65, 0.66, 0.42, 0.41),
    Tissue.AGED_WHITE: (0.60, 0.61, 0.50, 0.52),
    Tissue.OEDEMA: (0.46, 0.47, 0.78, 0.74),
    Tissue.SOLID: (0.42, 0.43, 0.80, 0.72),
    Tissue.ENHANCING: (0.48, 0.98, 0.66, 0.68),
    Tissue.NECROSIS: (0.27, 0.29, 0.88, 0.60),
    Tissue.CYST: (0.18, 0.19, 0.97, 0.22),
}
LESION_TISSUES = (Tissue.OEDEMA, Tissue.SOLID, Tissue.ENHANCING, Tissue.NECROSIS, Tissue.CYST)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Curve of one modality: a gain, and a gamma that leaves middle grey where it is."""

    gain: float = 1.0
    gamma: float = 1.0

    def applied_to(self, signal: FloatArray) -> FloatArray:
        """Bend signals; both numbers are positive, so their order stays."""
        relative = np.maximum(signal, 0) / np.float32(MIDDLE_GREY)
        return np.asarray(self.gain * MIDDLE_GREY * relative**self.gamma, np.float32)


@dataclass(frozen=True, kw_only=True)
class ScannerLook:
    """The look of one scanner.

    Attributes:
        name: How the look is called.
        contrasts: Curve of each modality.
        variation: Standard deviation of each tissue's signal over patients, relative.
        texture: Standard deviation of the signal within a tissue, relative.
        bias: Standard deviation of the logarithm of the shading over the head.
        bias_length: Millimetres below which the shading has no structure.
        striping: Standard deviation of the logarithm of the gain over slices of the third axis.
        noise: Standard deviation of the noise, as a share of the brightest signal.
        blur: In-plane resolution, full width at half maximum in mm.
        slice_thickness: The same along the third axis.
        missing: Modalities that were not scanned and are filled in with t2f, as the TCGA-LGG
            archive does.
        cortex: Standard deviation of the cortex's signal over its regions, relative.
        remains: How far skull stripping leaves patches around the brain, in head millimetres.
        cut: Probability that slices are missing at an end of the head.
    """

    name: str
    contrasts: Mapping[Modality, Contrast]
    variation: float = 0.03
    texture: float = 0.03
    bias: float = 0.1
    bias_length: float = 220.0
    striping: float = 0.0
    noise: float = 0.015
    blur: float = 1.5
    slice_thickness: float = 1.5
    missing: tuple[Modality, ...] = ()
    cortex: float = 0.0
    remains: float = 0.0
    cut: float = 0.0


def hospital_looks() -> Mapping[str, ScannerLook]:
    """The looks of four demo hospitals, clearly different: north, east, south and west."""
    return {
        "north": ScannerLook(
            name="north",
            contrasts=_contrasts(gain=(1.0, 1.0, 1.0, 1.0), gamma=(1.0, 1.0, 1.0, 1.0)),
            bias=0.06,
            noise=0.012,
            blur=1.2,
            slice_thickness=1.2,
        ),
        "east": ScannerLook(
            name="east",
            contrasts=_contrasts(gain=(0.5, 0.55, 0.6, 0.45), gamma=(1.35, 1.3, 0.8, 1.25)),
            bias=0.2,
            noise=0.02,
            blur=1.6,
            slice_thickness=3.0,
        ),
        "south": ScannerLook(
            name="south",
            contrasts=_contrasts(gain=(1.7, 1.5, 1.3, 1.6), gamma=(0.7, 0.75, 1.25, 0.75)),
            bias=0.12,
            noise=0.02,
            blur=2.2,
            slice_thickness=5.0,
        ),
        "west": ScannerLook(
            name="west",
            contrasts=_contrasts(gain=(0.8, 1.2, 2.0, 1.0), gamma=(0.85, 1.2, 1.5, 1.4)),
            variation=0.05,
            bias=0.28,
            striping=0.03,
            noise=0.03,
            blur=2.6,
            slice_thickness=3.5,
        ),
    }


def public_look(seed: int, *, variety: Variety = "narrow") -> ScannerLook:
    """A random look for a public synthetic patient, from a range wider than the hospitals'.

    Args:
        seed: Same seed, same look.
        variety: With ``wide``, the scan also shows what preparation missed. With ``random``, it
            does, and contrasts, shading, noise and resolution go beyond what scanners show: a
            network that has met every look takes a real one for one more of them (Tobin et al.,
            arXiv 1703.06907; Billot et al., arXiv 2107.09559).
    """
    if variety == "random":
        return _random_look(seed)
    rng = np.random.default_rng([seed, 0x100C])
    gain = np.exp(rng.normal(0, 0.35, 4))
    gamma = np.exp(rng.uniform(np.log(0.6), np.log(1.7), 4))
    look = ScannerLook(
        name=f"public-{seed}",
        contrasts=_contrasts(gain=tuple(gain), gamma=tuple(gamma)),
        variation=rng.uniform(0.05, 0.2),
        texture=rng.uniform(0.01, 0.08),
        bias=rng.uniform(0.02, 0.3),
        bias_length=rng.uniform(100, 250),
        striping=max(rng.uniform(-0.03, 0.05), 0),
        noise=rng.uniform(0.003, 0.035),
        blur=rng.uniform(1.0, 3.5),
        slice_thickness=rng.uniform(1.0, 7.0),
        missing=tuple(m for m in ("t1n", "t1c") if rng.random() < MISSING_PROBABILITY),
    )
    if variety == "narrow":
        return look
    return replace(
        look, cortex=rng.uniform(0, 0.12), remains=max(rng.uniform(-2, 4), 0), cut=CUT_PROBABILITY
    )


def _random_look(seed: int) -> ScannerLook:
    """A look from ranges that are wider than real; no gain, since every scan is normalised."""
    rng = np.random.default_rng([seed, 0xD0D0])
    gamma = np.exp(rng.uniform(np.log(0.45), np.log(2.2), 4))
    return ScannerLook(
        name=f"random-{seed}",
        contrasts=_contrasts(gain=(1.0, 1.0, 1.0, 1.0), gamma=tuple(gamma)),
        variation=rng.uniform(0.05, 0.35),
        texture=rng.uniform(0.01, 0.12),
        bias=rng.uniform(0.02, 0.45),
        bias_length=rng.uniform(60, 250),
        striping=max(rng.uniform(-0.05, 0.08), 0),
        noise=rng.uniform(0.003, 0.05),
        blur=rng.uniform(1.0, 4.5),
        slice_thickness=rng.uniform(1.0, 7.0),
        missing=tuple(m for m in ("t1n", "t1c") if rng.random() < MISSING_IN_RANDOM),
        cortex=rng.uniform(0, 0.2),
        remains=max(rng.uniform(-2, 4), 0),
        cut=CUT_PROBABILITY,
    )


def acquire(
    *,
    grid: HeadGrid,
    head: Head,
    lesion: Lesion,
    look: ScannerLook,
    spacing: tuple[float, float, float],
    skull_stripped: bool,
    rng: np.random.Generator,
) -> dict[Modality, FloatArray]:
    """Scan a head in all four modalities.

    Args:
        grid: Where the voxels are.
        head: Healthy anatomy.
        lesion: Tumour over it.
        look: The scanner.
        spacing: Millimetres per voxel.
        skull_stripped: Set everything outside the brain to exactly 0, everything inside to at
            least 1.
        rng: Source of variation, shading and noise.

    Returns:
        One float32 image (D, H, W) per modality, without negative values.
    """
    signals = _signals(look, lesion.contrast_spread, rng)
    texture = np.float32(look.texture) * grid.smooth_field(wavelength=12, rng=rng)
    sigma = _blur_in_voxels(look, spacing)
    kept = stripped(grid, head.brain, remains=look.remains, rng=rng) if skull_stripped else None
    cortex = head.tissue == Tissue.GREY
    images: dict[Modality, FloatArray] = {}
    for signal, modality in zip(signals.T, MODALITY_ORDER, strict=True):
        clean = signal[head.tissue]
        if look.cortex:
            regional = np.float32(look.cortex) * grid.smooth_field(wavelength=40, rng=rng)
            clean[cortex] *= 1 + regional[cortex]
        clean += lesion.share * (signal[lesion.tissue] - clean)
        clean *= 1 + texture
        contrast = look.contrasts[modality]
        curved = contrast.applied_to(clean)
        shading = np.float32(look.bias) * grid.smooth_field(wavelength=look.bias_length, rng=rng)
        shading += np.float32(look.striping) * rng.standard_normal(grid.shape[2], dtype=np.float32)
        blurred = ndimage.gaussian_filter(curved, sigma, mode="nearest") * np.exp(shading)
        image = _with_noise(blurred, np.float32(look.noise * contrast.gain), rng)
        image *= np.float32(SCANNER_UNITS)
        if kept is not None:
            image = np.where(kept, np.maximum(image, 1), np.float32(0))
        images[modality] = image
    for modality in look.missing:
        images[modality] = images["t2f"].copy()
    return images


def _contrasts(*, gain: tuple[float, ...], gamma: tuple[float, ...]) -> Mapping[Modality, Contrast]:
    return {
        modality: Contrast(gain=g, gamma=c)
        for modality, g, c in zip(MODALITY_ORDER, gain, gamma, strict=True)
    }


def _signals(
    look: ScannerLook, contrast_spread: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """This patient's signal of each tissue (rows) and modality (columns).

    Lesions are varied as one: their contrast to white matter is stretched or flattened, never
    turned around, because the bright lesion in FLAIR is what defines the label.
    """
    table = np.array([SIGNALS[tissue] for tissue in Tissue])
    varied = table * np.exp(rng.normal(0, look.variation, table.shape))
    lesion = list(LESION_TISSUES)
    stretch = rng.uniform(0.5, 1.1) * np.exp(rng.normal(0, contrast_spread, (len(lesion), 1)))
    ratio = table[lesion] / table[Tissue.WHITE]
    varied[lesion] = varied[Tissue.WHITE] * np.maximum(1 + stretch * (ratio - 1), 0.15)
    return varied.astype(np.float32)


def _blur_in_voxels(look: ScannerLook, spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """Standard deviation of the blur along each axis; a voxel's own extent blurs as well."""
    width = np.array([look.blur, look.blur, look.slice_thickness]) * SIGMA_PER_FWHM / spacing
    return np.asarray(np.hypot(width, VOXEL_SIGMA))


def _with_noise(clean: FloatArray, sigma: np.float32, rng: np.random.Generator) -> FloatArray:
    """Magnitude of the signal with Gaussian noise in both channels."""
    real = clean + sigma * rng.standard_normal(clean.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(clean.shape, dtype=np.float32)
    magnitude: FloatArray = np.sqrt(real * real + imaginary * imaginary)
    return magnitude

"""Networks of MONAI by name, and the part of them that may leave a site.

A site sends its trainable parameters only. Whatever else a network learns in training, such as the
running statistics of BatchNorm, would either be lost or leave without noise, so such networks are
refused when they are built. No list of layers is complete, so a real forward pass decides.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import fnmatch
import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn

from medfl.errors import ModelError
from medfl.segmentation.heads import heads_of

Size = tuple[int, int, int]

NORMS = "norms"
"""Among the patterns of a study's parameters to train: those of all normalisation layers."""

_PROBED_CROPS = 2
_SET_BY_THE_STUDY = ("in_channels", "out_channels")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS = (*_INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm)

# What MONAI and torch raise for arguments or sizes that a network cannot take.
_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def build_network(
    *,
    name: str,
    arguments: Mapping[str, Any],
    in_channels: int,
    out_channels: int,
    crop_size: Size,
    window_size: Size | None = None,
    seed: int,
) -> nn.Module:
    """Build a network of `monai.networks.nets` and prove that it can be trained here.

    Args:
        name: Name of the class.
        arguments: Its keyword arguments; lists become tuples. The channels are filled in, and so
            are ``spatial_dims`` (3) and ``img_size`` (the crop) where the class takes them and
            they are not given.
        in_channels: Number of modalities.
        out_channels: Number of regions.
        crop_size: Voxels of one crop.
        window_size: Voxels of the window that slides over a whole image, if it is another.
        seed: Of the initial weights; torch's global generator is left as it was.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        ModelError: If the name is unknown, an argument is wrong, the network keeps statistics of
            the training data, or it does not map crops and windows of these sizes to one logit per
            region. Under deep supervision every head does, the main one at full resolution.
    """
    network_class = _class_of(name)
    keywords = constructor_arguments(
        name=name,
        arguments=arguments,
        in_channels=in_channels,
        out_channels=out_channels,
        crop_size=crop_size,
    )
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`, which also seeds every GPU.
        torch.default_generator.manual_seed(seed)
        try:
            network: nn.Module = network_class(**keywords)
        except _REFUSALS as error:
            _refuse_without_package(error, name=name)
            raise ModelError(
                f"network {name}: expected arguments that it accepts, found "
                f"{_shown(arguments)}: {_reason(error)}"
            ) from None
        _refuse_statistics(network, name=name)
        for size in dict.fromkeys((crop_size, window_size or crop_size)):
            _refuse_by_forward(
                network, name=name, crops=(_PROBED_CROPS, in_channels, *size), regions=out_channels
            )
    return network


def constructor_arguments(
    *,
    name: str,
    arguments: Mapping[str, Any],
    in_channels: int,
    out_channels: int,
    crop_size: Size,
) -> dict[str, Any]:
    """What a class of `monai.networks.nets` is called with: see `build_network`.

    Raises:
        ModelError: If the name is unknown or an argument is wrong.
    """
    return _keywords(
        _class_of(name),
        name=name,
        arguments=arguments,
        filled={
            "in_channels": in_channels,
            "out_channels": out_channels,
            "spatial_dims": 3,
            "img_size": crop_size,
        },
    )


def trained_names(network: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    """The trainable parameters that a study trains.

    Args:
        network: The network.
        patterns: Of names, as in file names; ``norms`` means the scales and shifts of all
            normalisation layers.

    Raises:
        ModelError: If a pattern names no trainable parameter.
    """
    names = sorted(_trainable(network))
    norms = {
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        if isinstance(module, _NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }
    chosen: set[str] = set()
    for pattern in patterns:
        found = norms.intersection(names) if pattern == NORMS else fnmatch.filter(names, pattern)
        if not found:
            raise ModelError(
                f"training.trainable: expected {NORMS!r} or a pattern of the network's parameters, "
                f"such as {names[-1]!r}, found {pattern!r}, which names none of them"
            )
        chosen.update(found)
    return frozenset(chosen)


@contextlib.contextmanager
def only_trained(network: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Let training change these trainable parameters alone, for as long as the context lasts."""
    frozen = [parameter for name, parameter in _trainable(network).items() if name not in names]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters: all that a model file holds.

    Within `only_trained` they are those that are trained: all that may leave a site.

    Returns:
        Parameter by name, names ascending; detached, on the CPU.
    """
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in sorted(_trainable(network).items())
    }


def load_trainable(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the trainable parameters of `network` in place, all of them or none.

    Args:
        network: The network.
        state: What `trainable_state` gives for the same architecture.

    Raises:
        ModelError: If names, shapes or types differ from the network's, or a value is not finite.
    """
    parameters = _trainable(network)
    missing, unknown = sorted(parameters.keys() - state), sorted(state.keys() - parameters)
    if missing or unknown:
        raise ModelError(
            f"weights: expected the network's {len(parameters)} trainable parameters, found "
            f"{len(missing)} missing {missing[:3]} and {len(unknown)} unknown {unknown[:3]}"
        )
    for name, parameter in parameters.items():
        _expect_loadable(state[name], name=name, parameter=parameter)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def _class_of(name: str) -> type[nn.Module]:
    classes = _segmentation_classes()
    if name in classes:
        return classes[name]
    # By the class's own name, since MONAI has many aliases that differ in case only.
    by_lower_case = {known.lower(): value.__name__ for known, value in classes.items()}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=5, cutoff=0.5)
    known = ", ".join(by_lower_case[match] for match in near)
    raise ModelError(
        "network.name: expected a class of monai.networks.nets with in_channels and out_channels"
        f"{f' (near: {known})' if known else ''}, found {name[:80]!r}"
    )


def _segmentation_classes() -> dict[str, type[nn.Module]]:
    return {
        name: value
        for name, value in vars(nets).items()
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and not name.startswith("_")
        and set(_SET_BY_THE_STUDY) <= inspect.signature(value).parameters.keys()
    }


def _keywords(
    network_class: type[nn.Module],
    *,
    name: str,
    arguments: Mapping[str, Any],
    filled: Mapping[str, Any],
) -> dict[str, Any]:
    parameters = inspect.signature(network_class).parameters
    named = {p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD}
    if fixed := [key for key in _SET_BY_THE_STUDY if key in arguments]:
        raise ModelError(
            f"network {name}: expected no arguments {fixed}, which follow from the study's "
            "modalities and regions"
        )
    if arguments.get("pretrained", False) is not False:
        # MONAI would fetch weights of unknown origin over the network.
        raise ModelError(f"network {name}: expected no argument 'pretrained' other than false")
    unknown = sorted(arguments.keys() - named)
    if unknown and len(named) == len(parameters):
        raise ModelError(
            f"network {name}: expected arguments among {sorted(named - filled.keys())}, "
            f"found unknown {unknown}"
        )
    given = {key: _as_tuple(value) for key, value in arguments.items()}
    keywords = {key: value for key, value in filled.items() if key in named} | given
    required = {p.name for p in parameters.values() if p.default is p.empty} & named
    if missing := sorted(required - keywords.keys()):
        raise ModelError(f"network {name}: expected the arguments {missing}, found none")
    return keywords


def _as_tuple(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_as_tuple(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _as_tuple(item) for key, item in value.items()}
    return value


def _refuse_statistics(network: nn.Module, *, name: str) -> None:
    for path, module in network.named_modules():
        tracking = isinstance(module, _INSTANCE_NORMS) and module.track_running_stats
        if isinstance(module, _BATCH_NORMS) or tracking:
            raise ModelError(
                f"network {name}: expected no layer that keeps or mixes statistics of patients, "
                f"found {type(module).__name__} at {path!r}; {_other_norm(type(network))}"
            )


def _other_norm(network_class: type[nn.Module]) -> str:
    """What to do about a norm, for this very network."""
    names = ("norm", "norm_name", "norm_type", "norm_layer", "feature_norm")
    found = next((n for n in names if n in inspect.signature(network_class).parameters), None)
    if found is None:
        return (
            "its norms cannot be chosen, so it cannot be trained with this guarantee: take another "
            "network, for example SegResNet, UNet or DynUNet"
        )
    return f"set arguments.{found} to GROUP, or to INSTANCE without running statistics"


def _refuse_without_package(error: Exception, *, name: str) -> None:
    """Name a package that a network needs and that is not installed."""
    missing = re.search(r"No module named '(\w+)|import (\w+)", str(error))
    if not isinstance(error, ImportError) or missing is None:
        return
    package = missing[1] or missing[2]
    extra = "medfl-dp[transformers]" if package == "einops" else package
    raise ModelError(
        f"network {name}: expected the package {package!r}, which this network needs, found none; "
        f"pip install '{extra}'"
    ) from None


def _refuse_by_forward(
    network: nn.Module, *, name: str, crops: tuple[int, ...], regions: int
) -> None:
    # A copy, so that neither buffers nor caches of the probe stay in the network.
    probe = copy.deepcopy(network).train()
    before = {key: buffer.clone() for key, buffer in probe.named_buffers()}
    try:
        with torch.no_grad():
            outputs = {"training": probe(torch.randn(crops))}
            # Some networks give another output when they segment.
            outputs["inference"] = probe.eval()(torch.randn(crops))
    except _REFUSALS as error:
        _refuse_without_package(error, name=name)
        raise ModelError(
            f"network {name}: expected a network that takes crops of {crops[2:]} voxels: "
            f"{_reason(error)}"
        ) from None
    after = dict(probe.named_buffers())
    changed = sorted(
        key
        for key in before.keys() | after.keys()
        if key not in before or key not in after or not torch.equal(before[key], after[key])
    )
    if changed:
        raise ModelError(
            f"network {name}: expected no buffer that changes in training, since it would leave "
            f"the site without noise, found {changed[:5]}"
        )
    for mode, output in outputs.items():
        _expect_heads(network, output, name=name, crops=crops, regions=regions, mode=mode)


def _expect_heads(
    network: nn.Module,
    output: Any,
    *,
    name: str,
    crops: tuple[int, ...],
    regions: int,
    mode: str,
) -> None:
    expected = (crops[0], regions, *crops[2:])
    try:
        shapes = [tuple(head.shape) for head in heads_of(network, output)]
    except TypeError as error:
        raise ModelError(f"network {name} in {mode}: {error}") from None
    fitting = all(
        len(shape) == len(expected)
        and shape[:2] == expected[:2]
        and all(0 < size <= full for size, full in zip(shape[2:], crops[2:], strict=True))
        for shape in shapes
    )
    if shapes[0] != expected or not fitting:
        raise ModelError(
            f"network {name} in {mode}: expected logits of shape {expected} from {crops[0]} crops "
            f"of {crops[2:]} voxels, and further heads, if any, with as many crops and regions and "
            f"no more voxels, found {shapes[0] if len(shapes) == 1 else shapes[:8]}"
        )


def _trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def _expect_loadable(value: Tensor, *, name: str, parameter: nn.Parameter) -> None:
    if value.shape != parameter.shape or value.dtype != parameter.dtype:
        raise ModelError(
            f"weights {name}: expected {parameter.dtype} of shape {tuple(parameter.shape)}, "
            f"found {value.dtype} of shape {tuple(value.shape)}"
        )
    if not torch.isfinite(value).all():
        raise ModelError(f"weights {name}: expected finite values, found NaN or infinity")


def _reason(error: Exception) -> str:
    # The first line only: MONAI's import errors carry a whole traceback.
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value!r}" for key, value in arguments.items())[:300] or "none"

"""Networks: built by name, refused where they would leak, exchanged by trainable part."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks import nets
from monai.utils import OptionalImportError
from torch import Tensor, nn

from medfl.errors import ModelError
from medfl.segmentation import networks
from medfl.segmentation.heads import heads_of, main_head
from medfl.segmentation.networks import build_network, load_trainable, trainable_state

SMALL_SEGRESNET = {"init_filters": 8, "blocks_down": [1, 2, 2], "blocks_up": [1, 1]}


def build(name: str = "SegResNet", *, crop: int = 16, seed: int = 0, **arguments: Any) -> nn.Module:
    return build_network(
        name=name,
        arguments=arguments,
        in_channels=4,
        out_channels=3,
        crop_size=(crop, crop, crop),
        seed=seed,
    )


def small(seed: int = 0) -> nn.Module:
    return build(seed=seed, **SMALL_SEGRESNET)


@pytest.mark.parametrize(
    ("name", "crop", "arguments"),
    [
        ("SegResNet", 16, SMALL_SEGRESNET),
        ("SegResNet", 16, {**SMALL_SEGRESNET, "norm": "INSTANCE"}),
        ("SegResNet", 16, {**SMALL_SEGRESNET, "norm": ["GROUP", {"num_groups": 4}]}),
        ("SegResNetDS", 16, {"init_filters": 4, "blocks_down": [1, 1], "norm": "INSTANCE"}),
        ("UNet", 16, {"channels": [4, 8], "strides": [2]}),
        ("UNETR", 16, {"feature_size": 2, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}),
        (
            "DynUNet",
            16,
            {
                "kernel_size": [[3, 3, 3], 3, 3],
                "strides": [1, [2, 2, 2], 2],
                "upsample_kernel_size": [2, 2],
                "filters": [4, 8, 8],
            },
        ),
        ("BasicUNet", 32, {"features": [4, 4, 4, 4, 4, 4]}),
    ],
)
def test_maps_crops_to_one_logit_per_region(
    name: str, crop: int, arguments: dict[str, Any]
) -> None:
    network = build(name, crop=crop, **arguments)
    logits = network(torch.zeros(2, 4, crop, crop, crop))
    assert logits.shape == (2, 3, crop, crop, crop)
    assert network.training


def test_small_segresnet_has_its_178_thousand_parameters_and_group_norms() -> None:
    network = small()
    assert sum(parameter.numel() for parameter in network.parameters()) == 178_315
    norms = {type(module) for module in network.modules() if "Norm" in type(module).__name__}
    assert norms == {nn.GroupNorm}


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (trainable_state(small(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small(seed=99)
    assert torch.equal(torch.rand(3), expected)


def test_dropout_in_the_trial_forward_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    build(**SMALL_SEGRESNET, dropout_prob=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_trial_forward_leaves_no_trace_in_the_weights() -> None:
    from monai.networks.nets import SegResNet

    torch.manual_seed(3)
    plain = SegResNet(
        in_channels=4, out_channels=3, init_filters=8, blocks_down=(1, 2, 2), blocks_up=(1, 1)
    )
    built = small(seed=3)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), built.parameters(), strict=True)
    )
    assert all(parameter.grad is None for parameter in built.parameters())


@pytest.mark.parametrize(
    ("name", "near"),
    [("SegResnet", "SegResNet"), ("unet", "UNet"), ("SwinUNTER", "SwinUNETR")],
)
def test_unknown_name_lists_near_matches(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=rf"near: .*\b{near}\b"):
        build(name)


@pytest.mark.parametrize("name", ["", "__init__", "torch", "resnet10", "Classifier", "nets.UNet"])
def test_names_that_are_no_segmentation_class_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"network\.name"):
        build(name)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("SegResNet", {"init_filter": 8}, r"unknown \['init_filter'\]"),
        ("SegResNet", {"init_filters": "many"}, r"init_filters = 'many'"),
        ("SegResNet", {"init_filters": 7}, r"init_filters = 7.*divisible"),
        ("SegResNet", {"norm": "NOSUCH"}, r"norm = 'NOSUCH'"),
        ("SegResNet", {"in_channels": 4}, r"\['in_channels'\]"),
        ("SegResNet", {"out_channels": 3}, r"\['out_channels'\]"),
        ("UNet", {}, r"\['channels', 'strides'\]"),
        ("FlexibleUNet", {"backbone": "efficientnet-b0", "pretrained": True}, "pretrained"),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build(name, **arguments)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "layer"),
    [
        ("SegResNetDS", {"init_filters": 4, "blocks_down": [1, 1]}, "BatchNorm3d"),
        ("VNet", {}, "BatchNorm3d"),
        ("AttentionUnet", {"channels": [4, 8], "strides": [2]}, "BatchNorm3d"),
        ("SegResNet", {**SMALL_SEGRESNET, "norm": "SYNCBATCH"}, "SyncBatchNorm"),
        (
            "SegResNet",
            {**SMALL_SEGRESNET, "norm": ["BATCH", {"track_running_stats": False}]},
            "BatchNorm3d",
        ),
        (
            "SegResNet",
            {**SMALL_SEGRESNET, "norm": ["INSTANCE", {"track_running_stats": True}]},
            "InstanceNorm3d",
        ),
    ],
)
def test_layers_with_statistics_of_patients_are_refused(
    name: str, arguments: dict[str, Any], layer: str
) -> None:
    with pytest.raises(ModelError, match=f"found {layer} at"):
        build(name, **arguments)


def test_any_other_buffer_that_changes_in_training_is_refused() -> None:
    # The codebook of a VQ-VAE is a moving average of the training data, and no norm layer.
    with pytest.raises(ModelError, match=r"buffer that changes.*ema_w"):
        build(
            "VQVAE",
            channels=[4, 4],
            num_res_channels=4,
            num_res_layers=1,
            downsample_parameters=[[2, 4, 1, 1]] * 2,
            upsample_parameters=[[2, 4, 1, 1, 0]] * 2,
            num_embeddings=4,
            embedding_dim=4,
        )


# Networks under deep supervision, with the shapes of their heads in voxels along each axis.
DEEP: dict[str, tuple[int, dict[str, Any], list[int]]] = {
    "SegResNetDS": (
        16,
        {"init_filters": 4, "blocks_down": [1, 1, 1], "norm": "INSTANCE", "dsdepth": 2},
        [16, 8],
    ),
    "DynUNet": (
        16,
        {
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 8, 8],
            "deep_supervision": True,
            "deep_supr_num": 1,
        },
        [16, 16],
    ),
    "BasicUNetPlusPlus": (32, {"features": [4] * 6, "deep_supervision": True}, [32] * 4),
}


@pytest.mark.parametrize("name", DEEP)
def test_every_head_maps_crops_to_one_logit_per_region(name: str) -> None:
    crop, arguments, sizes = DEEP[name]
    network = build(name, crop=crop, **arguments)
    crops = torch.randn(2, 4, crop, crop, crop)
    heads = heads_of(network, network(crops))
    assert [head.shape for head in heads] == [(2, 3, size, size, size) for size in sizes]
    network.eval()
    assert main_head(network, network(crops)).shape == (2, 3, crop, crop, crop)


@pytest.mark.parametrize("name", DEEP)
def test_the_main_head_is_the_same_in_training_and_in_use(name: str) -> None:
    crop, arguments, _ = DEEP[name]
    network = build(name, crop=crop, **arguments)
    crops = torch.randn(2, 4, crop, crop, crop)
    with torch.no_grad():
        trained = main_head(network.train(), network(crops))
        used = main_head(network.eval(), network(crops))
    torch.testing.assert_close(trained, used)


def test_the_main_head_of_a_nested_unet_is_its_whole_decoder() -> None:
    """Its first head is a U-Net of one level: what the deeper nodes compute must reach the main."""
    crop, arguments, _ = DEEP["BasicUNetPlusPlus"]
    network = build("BasicUNetPlusPlus", crop=crop, **arguments).eval()
    heads = heads_of(network, network(torch.randn(1, 4, crop, crop, crop)))
    deepest = next(network.conv_4_0.parameters())
    reached = [
        torch.autograd.grad(head.sum(), deepest, allow_unused=True, retain_graph=True)[0]
        is not None
        for head in heads
    ]
    assert reached == [True, False, False, False]


class Saying(nn.Module):
    """Gives what it was made to give."""

    def __init__(self, in_channels: int, out_channels: int, output: str) -> None:
        del in_channels, out_channels
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.output = SAID[output]

    def forward(self, crops: Tensor) -> Any:
        return self.output(crops)


class SayingLess(Saying):
    """Gives fewer regions once it is no longer trained."""

    def forward(self, crops: Tensor) -> Any:
        return super().forward(crops) if self.training else logits(crops, regions=1)


def logits(crops: Tensor, *, regions: int = 3, size: int = 16, number: int = 0) -> Tensor:
    return crops.new_zeros((number or len(crops), regions, size, size, size))


SAID: dict[str, Callable[[Tensor], Any]] = {
    "one head of a list": lambda crops: [logits(crops)],
    "smaller heads of a tuple": lambda crops: (logits(crops), logits(crops, size=4)),
    "too many regions": lambda crops: logits(crops, regions=8),
    "a smaller main head": lambda crops: [logits(crops, size=8), logits(crops)],
    "a larger head": lambda crops: [logits(crops), logits(crops, size=32)],
    "another head's regions": lambda crops: [logits(crops), logits(crops, regions=1)],
    "another head's crops": lambda crops: [logits(crops), logits(crops, number=1)],
    "a flat head": lambda crops: [logits(crops), logits(crops)[..., 0]],
    "an empty head": lambda crops: [logits(crops), logits(crops, size=0)],
    "an empty list": lambda _: [],
    "a dictionary": lambda crops: {"logits": logits(crops)},
    "a list in a list": lambda crops: [logits(crops), [logits(crops)]],
    "nothing": lambda _: None,
}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("too many regions", r"expected logits of shape .*, found \(2, 8, 16, 16, 16\)"),
        ("a smaller main head", r"expected logits of shape .*, found \[\(2, 3, 8, 8, 8\), "),
        ("a larger head", r"no more voxels, found .*\(2, 3, 32, 32, 32\)"),
        ("another head's regions", r"as many crops and regions.*\(2, 1, 16, 16, 16\)"),
        ("another head's crops", r"as many crops and regions.*\(1, 3, 16, 16, 16\)"),
        ("a flat head", r"found .*\(2, 3, 16, 16\)"),
        ("an empty head", r"found .*\(2, 3, 0, 0, 0\)"),
        ("an empty list", "expected a tensor or a list of tensors, found an empty list"),
        ("a dictionary", "expected a tensor or a list of tensors, found a dict"),
        ("a list in a list", "expected a list of tensors, found a list in it"),
        ("nothing", "expected a tensor or a list of tensors, found a NoneType"),
    ],
)
def test_output_that_is_not_one_logit_per_region_is_refused(
    said: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nets, "Saying", Saying, raising=False)
    with pytest.raises(ModelError, match=f"network Saying in training: .*{found}") as caught:
        build("Saying", output=said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", ["one head of a list", "smaller heads of a tuple"])
def test_a_list_of_fitting_heads_is_taken(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets, "Saying", Saying, raising=False)
    assert build("Saying", output=said).training


def test_output_that_changes_in_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets, "Saying", SayingLess, raising=False)
    with pytest.raises(ModelError, match=r"network Saying in inference: .*\(2, 1, 16, 16, 16\)"):
        build("Saying", output="one head of a list")


def test_a_real_network_without_its_last_layer_is_refused() -> None:
    with pytest.raises(ModelError, match=r"found \(2, 8, 16, 16, 16\)"):
        build("SegResNet", **SMALL_SEGRESNET, use_conv_final=False)


@pytest.mark.parametrize(
    ("name", "crop", "arguments"),
    [
        ("SegResNet", 18, SMALL_SEGRESNET),
        ("UNet", 15, {"channels": [4, 8], "strides": [2]}),
        ("SwinUNETR", 48, {"feature_size": 12}),
        ("SegResNet", 16, {**SMALL_SEGRESNET, "spatial_dims": 2}),
    ],
)
def test_crop_size_that_the_network_cannot_take_is_refused(
    name: str, crop: int, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=rf"crops of \({crop}, {crop}, {crop}\) voxels.*[a-z]"):
        build(name, crop=crop, **arguments)


def test_a_window_that_the_network_cannot_take_is_refused() -> None:
    values = {"name": "SegResNet", "arguments": SMALL_SEGRESNET, "crop_size": (16, 16, 16)}
    channels = {"in_channels": 4, "out_channels": 3, "seed": 0}
    assert build_network(**values, **channels, window_size=(24, 24, 16))
    with pytest.raises(ModelError, match=r"crops of \(18, 16, 16\) voxels"):
        build_network(**values, **channels, window_size=(18, 16, 16))


def test_arguments_are_left_as_they_were() -> None:
    # SegResNetDS writes ``affine`` into the table that it is given.
    norm: list[Any] = ["INSTANCE", {}]
    build("SegResNetDS", init_filters=4, blocks_down=[1, 1], norm=norm)
    assert norm == ["INSTANCE", {}]


class PartlyFrozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(2, 3)
        self.first = nn.Linear(3, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("statistics", torch.zeros(2))


def test_only_trainable_parameters_leave_and_in_ascending_order() -> None:
    assert list(trainable_state(PartlyFrozen())) == [
        "first.bias",
        "first.weight",
        "second.bias",
        "second.weight",
    ]


def test_state_shares_no_memory_with_the_network() -> None:
    network = PartlyFrozen()
    state = trainable_state(network)
    assert not any(value.requires_grad for value in state.values())
    state["first.bias"].fill_(7)
    assert not (network.first.bias == 7).any()


def test_loading_gives_back_exactly_what_was_taken() -> None:
    source, target = PartlyFrozen(), PartlyFrozen()
    frozen = target.frozen.weight.clone()
    load_trainable(target, trainable_state(source))
    assert torch.equal(target.second.weight, source.second.weight)
    assert torch.equal(target.first.bias, source.first.bias)
    assert torch.equal(target.frozen.weight, frozen)
    assert target.first.weight.requires_grad


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: without(state, "second.bias"), r"1 missing \['second\.bias'\]"),
        (lambda state: {**state, "frozen.bias": torch.zeros(2)}, r"1 unknown \['frozen\.bias'\]"),
        (lambda state: {**state, "second.bias": torch.zeros(4)}, r"shape \(3,\), found"),
        (lambda state: {**state, "second.bias": torch.zeros(1)}, r"shape \(3,\), found"),
        (lambda state: {**state, "second.bias": torch.zeros(3).double()}, "float64"),
        (lambda state: {**state, "second.bias": torch.tensor([0, float("nan"), 0])}, "finite"),
        (lambda state: {**state, "second.bias": torch.tensor([0, float("inf"), 0])}, "finite"),
    ],
)
def test_wrong_state_is_refused_and_changes_nothing(edit: Any, message: str) -> None:
    network = PartlyFrozen()
    before = trainable_state(network)
    # Every value differs, so that a half-loaded state would show.
    wrong = edit({name: value + 1 for name, value in before.items()})
    with pytest.raises(ModelError, match=message):
        load_trainable(network, wrong)
    after = trainable_state(network)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["VNet", "AttentionUnet"])
def test_no_norm_is_advised_where_none_can_be_chosen(name: str) -> None:
    arguments = {"channels": [4, 8], "strides": [2]} if name == "AttentionUnet" else {}
    with pytest.raises(ModelError, match=r"its norms cannot be chosen.*take another network"):
        build(name, **arguments)


def test_the_advice_on_a_norm_can_be_followed() -> None:
    arguments = {"init_filters": 8, "blocks_down": [1, 1]}
    with pytest.raises(ModelError, match=r"set arguments\.norm to GROUP"):
        build("SegResNetDS", **arguments)
    build("SegResNetDS", **arguments, norm=["GROUP", {"num_groups": 2}])


@pytest.mark.parametrize("name", ["UNETR", "SwinUNETR"])
def test_a_package_that_is_missing_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutEinops:
        def __init__(self, **_: object) -> None:
            raise OptionalImportError("import einops.layers.torch (No module named 'einops').")

    known = networks._segmentation_classes()[name]
    WithoutEinops.__signature__ = inspect.signature(known)  # type: ignore[attr-defined]
    monkeypatch.setattr(networks, "_class_of", lambda _: WithoutEinops)
    with pytest.raises(ModelError, match=r"'einops'.*pip install 'medfl-dp\[transformers\]'"):
        build(name)

"""What a network gives: one head of logits, or several under deep supervision."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# MONAI lists the main head first; this one's decoder comes last (Zhou et al., arXiv 1807.10165).
_MAIN_HEAD_LAST = "BasicUNetPlusPlus"


def heads_of(network: nn.Module, output: Any) -> tuple[Tensor, ...]:
    """The heads of an output, the main one first.

    Args:
        network: What gave it.
        output: One tensor KRDHW; a list or tuple of such, where other heads may be smaller along
            DHW; or one tensor KHRDHW with the heads on the second axis, as DynUNet gives them.

    Raises:
        TypeError: If it is anything else.
    """
    if isinstance(output, Tensor):
        return output.unbind(1) if output.ndim == 6 else (output,)
    if not isinstance(output, list | tuple) or not output:
        found = "an empty list" if output in ([], ()) else f"a {type(output).__name__}"
        raise TypeError(f"expected a tensor or a list of tensors, found {found}")
    for head in output:
        if not isinstance(head, Tensor):
            raise TypeError(f"expected a list of tensors, found a {type(head).__name__} in it")
    heads = tuple(output)
    return heads[::-1] if type(network).__name__ == _MAIN_HEAD_LAST else heads


def main_head(network: nn.Module, output: Any) -> Tensor:
    """The head that segments: logits KRDHW; see `heads_of`."""
    return heads_of(network, output)[0]

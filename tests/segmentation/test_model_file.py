"""A model as one file: the same bytes for the same model, and readable by safetensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load

from medfl.segmentation.model_file import ModelSpec, model_bytes, read_model, read_provenance
from medfl.segmentation.networks import trainable_state

SPEC = ModelSpec(
    network="SegResNet",
    arguments={"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    modalities=("t1c", "t2f"),
    regions=("WT",),
    spacing="native",
    crop_size=(16, 16, 16),
    window_size=(16, 16, 16),
)
PROVENANCE = {"study": "späte Ärzte", "seen": ["0" * 32] * 3, "mechanisms": {}}


def content() -> bytes:
    return model_bytes(trainable_state(SPEC.build(seed=3)), spec=SPEC, provenance=PROVENANCE)


def test_the_same_model_gives_the_same_bytes_in_every_process() -> None:
    # safetensors orders its metadata by a hash that each process draws anew.
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_model_file"
    code += "; sys.stdout.buffer.write(test_model_file.content())"
    for _ in range(2):
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert made.stdout == content()


def test_the_file_is_a_model_in_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content())
    expected = trainable_state(SPEC.build(seed=3))
    loaded = load(content())
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    spec, _ = read_model(path)
    assert spec == SPEC
    assert read_provenance(path) == PROVENANCE
    assert int.from_bytes(content()[:8], "little") % 8 == 0

"""A study's file: public, consistent, and unable to say anything about a site's own protection."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from medfl.config import StudyConfig, load_study
from medfl.config.study import StudyInput
from medfl.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
STUDY = """
id = "gliomas-1"
[input]
modalities = ["t1c", "t2f"]
regions = ["TC", "WT", "ET"]
crop_size = [32, 32, 32]
[network]
name = "SegResNet"
[privacy]
epsilon = 6.0
sampling_prob = 0.25
[training]
rounds = 10
local_steps = 4
optimizer = "sgd"
learning_rate = 0.5
[aggregation]
strategy = "fedavg"
min_sites = 3
"""


def loaded(tmp_path: Path, text: str = STUDY) -> StudyConfig:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return load_study(path)


def changed(old: str, new: str) -> str:
    assert old in STUDY
    return STUDY.replace(old, new)


def test_what_is_not_said_is_safe(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    assert study.privacy.noise == "operating-system"
    assert study.privacy.clip_norm == 1.0
    assert study.evaluation.baselines == ()
    assert study.synthetic is None
    assert study.overlap == ()
    assert study.input.spacing == "native"


def test_total_steps_are_those_of_all_rounds(tmp_path: Path) -> None:
    assert loaded(tmp_path).total_steps == 40


def test_the_digest_names_the_content_and_not_the_writing(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    assert re.fullmatch("[0-9a-f]{64}", study.digest)
    assert loaded(tmp_path, "# a comment\n" + STUDY).digest == study.digest
    assert loaded(tmp_path, changed("0.25", "0.250")).digest == study.digest
    assert loaded(tmp_path, changed("epsilon = 6.0", "epsilon = 6.1")).digest != study.digest
    sent = StudyConfig.model_validate_json(json.dumps(study.model_dump(mode="json")))
    assert sent == study
    assert sent.digest == study.digest


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('["t1c", "t2f"]', '["t2f", "t1c"]', "key input: expected distinct modalities in the ord"),
        ('["t1c", "t2f"]', "[]", "key input.modalities: .* at least 1 item"),
        (
            'modalities = ["t1c", "t2f"]',
            'modalities = ["t2f"]\nmissing_modality = "zero-fill"\nmodality_dropout = 0.2',
            "key input: expected modality_dropout = 0 with one modality, found 0.2",
        ),
        ('["TC", "WT", "ET"]', '["WT", "TC"]', "key input: expected distinct regions in the order"),
        ('["TC", "WT", "ET"]', '["core"]', "key input.regions.0: .* found 'core'"),
        ("[32, 32, 32]", "[32, 32]", "key input.crop_size.2: required, but missing"),
        ("[32, 32, 32]", "[32, 32, 0]", "key input.crop_size.2: .* found 0"),
        ("0.25", "1.5", "key privacy.sampling_prob: .* found 1.5"),
        ("0.25", "0.25\nnoise_multiplier = 0.1", "key privacy.noise_multiplier: unknown key"),
        ("0.25", '0.25\nnoise = "none"', "key privacy.noise: .* found 'none'"),
        ("0.25", '0.25\nclipping = "per-layer"', "key privacy.clipping: .* found 'per-layer'"),
        ("epsilon = 6.0", "epsilon = inf", "key privacy.epsilon: .* found inf"),
        ("rounds = 10", "rounds = 0", "key training.rounds: .* found 0"),
        ('"sgd"', '"adamw"', "key training: expected weight_decay > 0 with optimizer = 'adamw'"),
        (
            '"sgd"',
            '"adam"\nweight_decay = 0.1',
            "key training: expected weight_decay = 0 with optimizer = 'adam', found 0.1; use 'adam",
        ),
        ("0.5\n", "0.5\nweight_decay = -0.1\n", "key training.weight_decay: .* found -0.1"),
        ("0.5\n", "0.5\nweight_decay = nan\n", "key training.weight_decay: .* found nan"),
        ("0.5\n", "0.5\nweight_decay = 2.0\n", "learning_rate x weight_decay < 1.*found 1"),
        (
            "0.5\n",
            '0.5\nlearning_rate_schedule = { shape = "cosine" }\n',
            "training.learning_rate_schedule: expected final_fraction < 1 exactly where",
        ),
        (
            "0.5\n",
            '0.5\nlearning_rate_schedule = "cosine"\n',
            "key training.learning_rate_schedule: .* found 'cosine'",
        ),
        (
            "0.5\n",
            "0.5\nlearning_rate_schedule = { warmup_rounds = 10 }\n",
            r"training.learning_rate_schedule: expected warmup_rounds in \[0, 9\].*found 10",
        ),
        (
            "0.5\n",
            "0.5\nlearning_rate_schedule = { warmup_rounds = 1, factor = 2 }\n",
            "key training.learning_rate_schedule.factor: unknown key",
        ),
        (
            "min_sites = 3",
            "min_sites = 3\nserver_learning_rate_schedule = { warmup_rounds = 2 }",
            "expected strategy = 'fedavgm' or 'fedadam' with a server_learning_rate_sch.*'fedavg'",
        ),
        (
            "0.25",
            '0.25\nclip_norm = 1e-5\n[privacy.clip_norm_schedule]\nshape = "linear"\n'
            "final_fraction = 0.01",
            "privacy.clip_norm_schedule: expected a clip norm >= 1e-06 in every round, found 1e-07",
        ),
        ('"sgd"', '"lamb"', "key training.optimizer: .* found 'lamb'"),
        ("0.5\n", "0.5\nproximal_mu = 0.1\n", "expected aggregation.strategy = 'fedprox'"),
        ('"fedavg"', '"mean"', "key aggregation.strategy: .* found 'mean'"),
        ('"fedavg"', '"krum"', "expected faulty_sites >= 1 with strategy = 'krum', found 0"),
        (
            '"fedavg"',
            '"krum"\nfaulty_sites = 1',
            r"min_sites >= 2 x faulty_sites \+ 3 = 5 with strategy = 'krum', found 3",
        ),
        (
            '"fedavg"',
            '"trimmed-mean"\nfaulty_sites = 2',
            r"min_sites >= 2 x faulty_sites \+ 1 = 5 with strategy = 'trimmed-mean', found 3",
        ),
        (
            '"fedavg"',
            '"median"\nfaulty_sites = 1',
            "expected strategy = 'trimmed-mean' or 'krum' with faulty_sites, found 'median'",
        ),
        ("min_sites = 3", "min_sites = 0", "key aggregation.min_sites: .* found 0"),
        (
            "min_sites = 3",
            "min_sites = 3\nema_decay = 1.0",
            "key aggregation.ema_decay: .* found",
        ),
        (
            '"SegResNet"',
            '"SegResNet"\narguments = { blocks_down = [1, 1000000000] }',
            r"key network.arguments: expected numbers within .*, found blocks_down with 1e\+09",
        ),
        (
            '"SegResNet"',
            '"SegResNet"\narguments = { norm = ["GROUP", { eps = nan }] }',
            "key network.arguments: .* found norm with nan",
        ),
        (
            '"SegResNet"',
            f'"SegResNet"\narguments = {{ blocks_up = {[1] * 65} }}',
            "key network.arguments: expected at most 64 entries, found 65",
        ),
        ('"gliomas-1"', '"a b"', "key id: expected 1 to 40 letters.* found 'a b'"),
        ('"gliomas-1"', '"x"\nsite = "DU"', "key site: unknown key"),
        (
            "min_sites = 3",
            'min_sites = 3\n[[overlap]]\nsites = ["DU"]',
            "overlap.0.sites: .* 2 items",
        ),
        (
            "min_sites = 3",
            'min_sites = 3\n[[overlap]]\nsites = ["DU", "HT"]\n[[overlap]]\nsites = ["DU", "DU"]',
            "key overlap.1: expected distinct sites",
        ),
        (
            "min_sites = 3",
            'min_sites = 3\n[[overlap]]\nsites = ["DU", "H T"]',
            "overlap.0.sites.1: expected 1 to 40 letters",
        ),
    ],
)
def test_a_mistake_is_named(old: str, new: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, changed(old, new))
    assert re.search(expected, str(caught.value))


def test_each_schedule_gives_the_number_of_its_round(tmp_path: Path) -> None:
    text = changed("0.25", '0.25\nclip_norm_schedule = { shape = "linear", final_fraction = 0.1 }')
    text = text.replace("0.5\n", "0.5\nlearning_rate_schedule = { warmup_rounds = 1 }\n")
    text = text.replace('"fedavg"', '"fedadam"\nserver_learning_rate = 0.4')
    study = loaded(
        tmp_path, text + 'server_learning_rate_schedule = { shape = "cosine", final_fraction = 0.5}'
    )
    assert [study.learning_rate(number) for number in (1, 2, 10)] == [0.25, 0.5, 0.5]
    assert [study.server_learning_rate(number) for number in (1, 10)] == [0.4, 0.2]
    assert [study.clip_norm(number) for number in (1, 10)] == [1.0, 0.1]
    assert study.clip_norm(4) == pytest.approx(0.7)
    assert study.clip_norm_schedule is not None
    assert loaded(tmp_path).clip_norm_schedule is None
    assert study.digest != loaded(tmp_path, text).digest


def test_one_modality_is_enough(tmp_path: Path) -> None:
    assert loaded(tmp_path, changed('["t1c", "t2f"]', '["t2f"]')).input.modalities == ("t2f",)


def test_several_groups_of_sites_may_share_patients(tmp_path: Path) -> None:
    groups = '[[overlap]]\nsites = ["DU", "HT"]\n[[overlap]]\nsites = ["HT", "CS", "FG"]\n'
    study = loaded(tmp_path, STUDY + groups)
    assert [group.sites for group in study.overlap] == [("DU", "HT"), ("HT", "CS", "FG")]
    assert study.digest != loaded(tmp_path).digest


def test_fedprox_takes_its_term(tmp_path: Path) -> None:
    text = changed("0.5\n", "0.5\nproximal_mu = 0.1\n").replace('"fedavg"', '"fedprox"')
    assert loaded(tmp_path, text).training.proximal_mu == 0.1


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=str(file.relative_to(REPOSITORY)))
        for file in sorted((REPOSITORY / "site_configs").rglob("*.toml"))
        if "[network]" in file.read_text()
    ],
)
def test_the_study_files_of_the_repository_are_sound(file: Path) -> None:
    assert load_study(file).total_steps >= 1


def test_a_window_is_as_large_as_a_crop_unless_the_study_says_more() -> None:
    values = {"modalities": ("t1c", "t2f"), "regions": ("WT",), "crop_size": (16, 16, 16)}
    assert StudyInput(**values).window == (16, 16, 16)
    assert StudyInput(**values, window_size=(24, 16, 16)).window == (24, 16, 16)


def test_modality_dropout_needs_a_study_that_fills() -> None:
    values = {"modalities": ("t1c", "t2f"), "regions": ("WT",), "crop_size": (16, 16, 16)}
    with pytest.raises(ValidationError, match="modality_dropout = 0"):
        StudyInput(**values, modality_dropout=0.2)
    assert StudyInput(**values, missing_modality="zero-fill", modality_dropout=0.2)


SYNTHETIC = """
[synthetic]
shape = [20, 20, 16]
spacing = [9.0, 9.0, 10.0]
skull_stripped = true
pretraining_steps = 3
"""


@pytest.mark.parametrize(
    ("start", "steps", "expected"),
    [
        ('"start.safetensors"', 3, "key synthetic.start: .* found 'start.safetensors'"),
        ('{ file = "x" }', 3, "key synthetic.start.sha256: required, but missing"),
        ('{ file = "x", sha256 = "12ab" }', 3, "key synthetic.start.sha256: .* found '12ab'"),
        (f'{{ file = "x", sha256 = "{"a" * 64}" }}', 0, "pretraining_steps >= 1 with start"),
        (f'{{ sha256 = "{"a" * 64}" }}', 3, "either file or shipped, found neither"),
        (
            f'{{ file = "x", shipped = "lgg", sha256 = "{"a" * 64}" }}',
            3,
            "either file or shipped, found both",
        ),
        (f'{{ shipped = "../x", sha256 = "{"a" * 64}" }}', 3, "key synthetic.start.shipped"),
    ],
    ids=[
        "a path alone",
        "no digest",
        "half a digest",
        "no pretraining",
        "no file",
        "two files",
        "a path as a name",
    ],
)
def test_a_start_that_is_not_pinned_or_not_pretrained_is_refused(
    start: str, steps: int, expected: str, tmp_path: Path
) -> None:
    text = STUDY + SYNTHETIC.replace("steps = 3", f"steps = {steps}") + f"start = {start}\n"
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert re.search(expected, str(caught.value))


def test_another_start_is_another_study_and_an_absent_file_can_still_be_planned(
    tmp_path: Path,
) -> None:
    line = 'start = {{ file = "models/x.safetensors", sha256 = "{}" }}\n'
    digests = {
        loaded(tmp_path, STUDY + SYNTHETIC + line.format(digit * 64)).digest for digit in "ab"
    }
    assert len(digests | {loaded(tmp_path, STUDY + SYNTHETIC).digest}) == 3

"""The air-gap bundle says exactly what it is made of, and its files can be checked."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.utils import canonicalize_name, parse_wheel_filename

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / ".ci" / "bundle.py"
CONSTRAINTS = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
WHEELS = [
    "medfl_dp-0.2.0-py3-none-any.whl",
    "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
    "typing_extensions-4.16.0-py3-none-any.whl",
    "with_build-1.0-2-py3-none-any.whl",
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundle", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bundle"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    wheels = tmp_path / "bundle" / "wheels"
    wheels.mkdir(parents=True)
    for name in WHEELS:
        (wheels / name).write_text(f"content of {name}")
    return wheels.parent


def completed(folder: Path) -> Path:
    subprocess.run([sys.executable, SCRIPT, folder], check=True, timeout=60)
    return folder


def test_bill_of_materials_lists_every_pin_of_the_constraints_once(script: ModuleType) -> None:
    document = script.bill_of_materials(script.read_pins(CONSTRAINTS))
    lines = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
    expected = [tuple(line.split("==")) for line in lines]
    assert len(expected) > 100
    assert [(part["name"], part["version"]) for part in document["components"]] == expected
    references = [part["bom-ref"] for part in document["components"]]
    assert len(set(references)) == len(references)


def test_bill_of_materials_is_cyclonedx(folder: Path) -> None:
    document = json.loads((completed(folder) / "sbom.cdx.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    assert document["specVersion"] == "1.6"
    assert re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", document["serialNumber"]
    )
    assert document["version"] == 1
    assert document["metadata"]["component"]["name"] == "medfl_dp"
    assert document["metadata"]["component"]["type"] == "application"
    assert {part["type"] for part in document["components"]} == {"library"}


def test_packages_are_named_as_the_index_names_them(folder: Path) -> None:
    document = json.loads((completed(folder) / "sbom.cdx.json").read_text())
    parts = {part["name"]: part["purl"] for part in document["components"]}
    assert parts["torch"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    for name, purl in parts.items():
        assert purl.startswith(f"pkg:pypi/{canonicalize_name(name)}@")


def test_every_wheel_is_required_with_its_hash(folder: Path) -> None:
    lines = (completed(folder) / "requirements.txt").read_text().splitlines()
    assert len(lines) == len(WHEELS)
    for line, file in zip(lines, sorted(WHEELS), strict=True):
        name, version, _, _ = parse_wheel_filename(file)
        digest = hashlib.sha256(f"content of {file}".encode()).hexdigest()
        requirement, _, hashed = line.partition(" --hash=sha256:")
        assert canonicalize_name(requirement.partition("==")[0]) == name
        assert requirement.partition("==")[2] == str(version)
        assert hashed == digest


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
@pytest.mark.parametrize("damaged", ["", WHEELS[1], "../sbom.cdx.json", "../requirements.txt"])
def test_checksums_tell_a_damaged_file(damaged: str, folder: Path) -> None:
    completed(folder)
    if damaged:
        with (folder / "wheels" / damaged).open("a") as file:
            file.write("x")
    command = ["sha256sum", "--quiet", "--strict", "--check", "SHA256SUMS"]
    result = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=60)
    assert (result.returncode == 0) == (damaged == "")


def test_checksums_cover_every_file(folder: Path) -> None:
    completed(folder)
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert listed == there - {"SHA256SUMS"}


def test_the_same_wheels_give_the_same_bundle(folder: Path) -> None:
    first = (completed(folder) / "SHA256SUMS").read_bytes()
    assert (completed(folder) / "SHA256SUMS").read_bytes() == first


@pytest.mark.parametrize("line", ["torch>=2.8", "torch", "torch==2.13.0 --hash=md5:00", "-e ."])
def test_what_is_no_exact_pin_is_refused(script: ModuleType, line: str) -> None:
    with pytest.raises(ValueError, match="Expected name==version"):
        script.read_pins(f"numpy==2.4.6\n{line}\n")


@pytest.mark.parametrize("file", ["medfl-0.2.0.tar.gz", "notes.txt", "medfl.whl"])
def test_what_is_no_wheel_is_refused(script: ModuleType, file: str, folder: Path) -> None:
    (folder / "wheels" / file).touch()
    with pytest.raises(ValueError, match=f"Expected wheels only, found '{file}'"):
        script.pins_of(folder / "wheels")


def test_a_bundle_without_medfl_is_refused(script: ModuleType, folder: Path) -> None:
    (folder / "wheels" / WHEELS[0]).unlink()
    with pytest.raises(ValueError, match="Expected a wheel of medfl_dp, found 3 others"):
        script.pins_of(folder / "wheels")


def test_a_package_that_only_bears_our_name_is_not_carried(
    script: ModuleType, folder: Path
) -> None:
    (folder / "wheels" / "medfl-9.9-py3-none-any.whl").touch()
    with pytest.raises(ValueError, match="Expected no wheel of medfl, which is not ours"):
        script.pins_of(folder / "wheels")


def test_the_distribution_is_not_called_like_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["name"] == "medfl-dp"
    # Whoever names an extra names the distribution, too.
    assert not [
        each
        for group in project["optional-dependencies"].values()
        for each in group
        if each.startswith("medfl[")
    ]


def wheel(path: Path, *, name: str, version: str) -> None:
    """A wheel with nothing in it."""
    info = f"{path.stem.partition('-')[0]}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda text: text, ""),
        (lambda text: f"{text}medfl==9.9 --hash=sha256:{'0' * 64}\n", "No matching distribution"),
        (lambda text: re.sub("[0-9a-f]{64}", "0" * 64, text), "DO NOT MATCH THE HASHES"),
        (lambda text: text.partition(" ")[0] + "\n", "Hashes are required"),
    ],
    ids=["as it is", "more than it carries", "another file", "no hash"],
)
def test_only_what_a_bundle_carries_is_installed_from_it(
    change: Callable[[str], str], error: str, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels / "medfl_dp-0.2.0-py3-none-any.whl", name="medfl-dp", version="0.2.0")
    completed(tmp_path)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(change(requirements.read_text()))
    # As the README and the Dockerfile do it.
    offline = ["--no-index", "--find-links", wheels, "--require-hashes", "-r", requirements]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--target", tmp_path / "there", *offline],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode == 0) is (error == "")
    assert error in result.stderr

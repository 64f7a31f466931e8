"""From a TOML file to a frozen model, or to one clear error.

TOML is read by the standard library, which refuses doubled keys; pydantic then checks every key and
type. Both kinds of failure become one `ConfigError` that names the file, the key, the rule and the
value found.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medfl.errors import ConfigError
from medfl.text_files import decoded

MAX_BYTES = 1_000_000
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Section(BaseModel):
    """A part of a configuration file: frozen, strict, and closed to unknown keys.

    Attributes:
        retired: Keys of earlier versions, each with what holds now and what to do.
    """

    retired: ClassVar[Mapping[str, str]] = MappingProxyType({})

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Section)


def load(path: Path, model: type[Model]) -> Model:
    """Read one TOML file into `model`.

    Args:
        path: The file.
        model: The section that describes the whole file.

    Returns:
        The validated, frozen value.

    Raises:
        ConfigError: If the file cannot be read, is no TOML, or breaks a rule of the model.
    """
    table = _read_table(path)
    try:
        # Through JSON, so that strict mode still turns lists into tuples and strings into paths.
        return model.model_validate_json(json.dumps(table))
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems(error, retired=model.retired)}") from None
    except TypeError:
        raise ConfigError(
            f"{path}: expected strings, numbers, booleans, lists and tables; found a date or time"
        ) from None


def expand_variables(text: str) -> str:
    """Replace every ``${NAME}`` by the environment variable of that name.

    Raises:
        ValueError: If a variable is not set.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ValueError(f"expected the environment variable {name} to be set")
        return os.environ[name]

    return _VARIABLE.sub(value_of, text)


def problems(error: ValidationError, *, retired: Mapping[str, str] = MappingProxyType({})) -> str:
    """Every broken rule with its key and the value found.

    Args:
        error: What pydantic found.
        retired: See `Section`.
    """
    return "; ".join(
        _problem(detail, retired=retired) for detail in error.errors(include_url=False)
    )


def _read_table(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: expected at most {MAX_BYTES} bytes, found {size}")
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable file, found: {error.strerror}") from None
    try:
        text = decoded(content)  # editors on Windows put a byte order mark in front
    except ValueError as error:
        raise ConfigError(f"{path}: expected {error}, found other bytes") from None
    try:
        return tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: expected TOML, found: {error}") from None


def _problem(detail: Any, *, retired: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "(whole file)"
    if detail["type"] == "extra_forbidden" and key in retired:
        return f"key {key}: {retired[key]}; found {str(detail['input'])[:200]!r}"
    if detail["type"] == "missing":
        return f"key {key}: required, but missing"
    if detail["type"] == "extra_forbidden":
        return f"key {key}: unknown key"
    rule = str(detail["msg"]).removeprefix("Value error, ")
    found = detail["input"]
    shown = repr(found) if not isinstance(found, dict) else "a table"
    return f"key {key}: {rule}, found {shown[:200]}"

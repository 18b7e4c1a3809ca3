"""Settings of a command: flag over YAML over default, for any pydantic model."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, field_validator

from tinybeauty.errors import Parser, UserError, find_similar, one_line
from tinybeauty.files import path_flag, tidy_path


def check_folder(value: Any) -> str:
    """Return the path of a folder as it was meant; raise ValueError where it cannot be one."""
    if not (path := tidy_path(value)):
        raise ValueError("must be a folder, got '' (this folder: .)")
    return path


# Plain: pydantic's own str takes no Path, and no name whose bytes are not UTF-8.
Folder = Annotated[str, PlainValidator(check_folder)]
FolderOrNothing = Annotated[str, PlainValidator(tidy_path)]


class Settings(BaseModel):
    """Keys that are all known, values of their own type; nothing changes once it is checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation in (int, float):
            raise ValueError(f"must be a number, got {value}")
        return value


Model = TypeVar("Model", bound=BaseModel)


def explain_problem(problem: dict[str, Any], keys: list[str]) -> str:
    """Return one line for one of pydantic's errors: key, what is wrong, what was found."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        similar = find_similar(key, keys)
        return f"{key}: unknown key" + (f", did you mean {similar}?" if similar else "")
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}"
    text = problem["msg"].replace("Input should", "must")
    text = text.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return f"{key}: {text}, got {problem['input']!r}"


# PyYAML also trips over dates that are none, tags that do not fit, numbers of thousands of digits.
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that appears twice in a mapping; PyYAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping.

        Raises:
            yaml.YAMLError: a key appears twice.
        """
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"the key {twice[0]} appears twice")
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        UserError: the file is missing or no YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except YAML_ERRORS as error:
        raise UserError(f"{path} is not valid YAML: {one_line(error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file.

    Raises:
        UserError: the file is missing, no YAML, or no list of `key: value`.
    """
    values = load_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold lines of `key: value`, found a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def load_settings(
    model: type[Model], flags: dict[str, Any], path: Path, trial: dict[str, Any] | None = None
) -> Model:
    """Return the checked settings: flag over a sweep's trial over YAML over default.

    Raises:
        UserError: lists every unknown key, wrong type and value out of range at once.
    """
    try:
        return model(**{**read_yaml(path), **(trial or {}), **flags})
    except ValidationError as error:
        lines = [explain_problem(problem, list(model.model_fields)) for problem in error.errors()]
        raise UserError("bad configuration:\n  " + "\n  ".join(lines)) from None


def join_values(argv: list[str], keys: Collection[str]) -> list[str]:
    """Return a command line in which `--key -1e-3` is `--key=-1e-3`: argparse takes many for flags.

    No flag but -h has one dash, so what follows a setting and has one is its value.
    """
    joined: list[str] = []
    for word in argv:
        has_one_dash = word.startswith("-") and not word.startswith("--") and word != "-h"
        if has_one_dash and joined and joined[-1].startswith("--") and joined[-1][2:] in keys:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def read_settings(
    parser: Parser,
    model: type[Model],
    argv: list[str],
    default: Path,
    trial: dict[str, Any] | None = None,
) -> tuple[Model, argparse.Namespace]:
    """Return the checked settings, and the flags that are no settings.

    Args:
        parser: has the flags that are no settings; `--config FILE` and one flag a setting are added to it.
        model: the settings.
        argv: the command line.
        default: the YAML file that is read without `--config`.
        trial: what a sweep wants to try.

    Raises:
        UserError: an unknown flag, a flag without its value, or whatever `load_settings` finds.
    """
    text = f"YAML file (default: {default.name} beside the script)"
    parser.add_argument("--config", type=path_flag, default=default, help=text)
    own_flags = vars(parser.parse_args([]))
    for key, info in model.model_fields.items():
        optional = {"nargs": "?", "const": "true"} if info.annotation is bool else {}
        told = f"{info.description} (default: {info.default})"
        parser.add_argument(
            f"--{key}",
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=told.replace("%", "%%"),  # argparse fills in what a % announces
            **optional,
        )
    known, unknown = parser.parse_known_args(join_values(argv, [*model.model_fields, "config"]))
    problems = []
    if unknown:
        told = []
        for flag in [word.split("=")[0] for word in unknown if word.startswith("--")] or unknown:
            similar = find_similar(flag.lstrip("-").replace("-", "_"), [*model.model_fields, *own_flags])
            told.append(flag + (f" (did you mean --{similar}?)" if similar else ""))
        problems.append(f"unknown arguments, see --help: {', '.join(told)}")
    flags = {key: value for key, value in vars(known).items() if key not in own_flags}
    try:
        settings = load_settings(model, flags, known.config, trial)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return settings, known

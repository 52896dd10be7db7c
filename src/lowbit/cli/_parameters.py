"""Parameters of the commands, made from the fields of a class of options; ``--config`` and ``--print-config``."""

from __future__ import annotations

import inspect
import json
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from lowbit.console import save_record
from lowbit.recipes.options import Checked, Option, option_table, parse_options
from lowbit.runs.errors import RecipeError

__all__ = ["Json", "answers", "config_text", "option_command", "place", "read_config", "save"]


def place(text: str) -> Path:
    """A path that was given on the command line; an empty one would mean the current folder."""
    if not text.strip():
        raise typer.BadParameter("name a file or a directory")
    return Path(text)


Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", parser=place, help="Write the result as JSON; - is standard output."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", parser=place, help="TOML file with the same options; what is said here wins."
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print all options as such a file, and do nothing else.")
]

_SHORT = {"out": "-o"}


def answers(json: Path | None) -> TextIO:
    """Where a command says what it found: beside the record where that takes standard output for itself."""
    return sys.stderr if str(json) == "-" else sys.stdout


def save(path: Path | None, record: Mapping[str, Any]) -> None:
    """The record of a command where ``--json`` says."""
    if path is not None:
        save_record(path, record)


def option_command(
    kind: type[Checked],
    *arguments: str,
    names: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    unset: Mapping[str, str] | None = None,
) -> Callable[[Callable[[dict[str, Any], Path | None, bool], None]], Callable[..., None]]:
    """Makes a command out of a function that takes what was given, ``--json`` and ``--quiet``.

    Args:
        kind: a class of options.
        arguments: the fields that are given by their place, in their order in the class.
        names: fields that are offered; all, together with ``--config`` and ``--print-config``, if none is named.
        defaults: in place of those of the fields.
        unset: what the help says of a field that may be left out.
    """
    own = dict(defaults or {})
    table = {name: option for name, option in option_table(kind).items() if not names or name in names}

    def decorate(work: Callable[[dict[str, Any], Path | None, bool], None]) -> Callable[..., None]:
        def command(context: typer.Context, **values: Any) -> None:
            told = {name for name in table if _was_given(context, name)}
            file = {} if values.get("config") is None else read_config(values["config"], kind)
            given = own | file | {name: values[name] for name in told}
            try:
                if values.get("print_config"):
                    typer.echo(config_text(kind, given), nl=False)
                else:
                    work(given, values["json"], values["quiet"])
            except RecipeError as error:
                flags = {name: _flag(name, arguments) for name in table if name in told or name not in file}
                raise RecipeError(_with_flags(str(error), flags)) from error

        parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        for name, option in table.items():
            default = own.get(name, option.default)
            told = (unset or {}).get(name) or option.told.unset
            parameters.append(_parameter(option, default, told, positional=name in arguments))
        extra: dict[str, tuple[Any, Any]] = {"json": (Json, None), "quiet": (Quiet, False)}
        if not names:
            extra = {"config": (Config, None), "print_config": (PrintConfig, False)} | extra
        for name, (annotation, default) in extra.items():
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )
        command.__doc__ = work.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _flag(name: str, arguments: Sequence[str]) -> str:
    """How the command line calls a field, a short form included."""
    if name in arguments:
        return name.upper()
    return "/".join(filter(None, [_SHORT.get(name), f"--{name.replace('_', '-')}"]))


def _with_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message of the recipes with options as the command line calls them.

    Said of options: ``option NAME``, a name that only an option can be, and at the beginning a name with its value.
    """
    names = {re.escape(name): flag for name, flag in flags.items()}
    for name, flag in names.items():
        message = re.sub(rf"\boption {name}\b", flag, message)
        if "_" in name:
            message = re.sub(rf"(?<![\w/.'\"\\-]){name}(?![\w/='\"-]|\.\w)", flag, message)
        value = r"(?= (?:above )?-?\d| '| (?:eora|gptq|none)\b)"
        message = re.sub(rf"^{name.replace('_', '[_ ]')}{value}", flag, message)
    return message


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _parameter(option: Option, default: Any, unset: str | None, *, positional: bool) -> inspect.Parameter:
    """One field as typer wants it. One that is required has no value here: the file may still bring it."""
    needed = default is MISSING and unset is None
    default = None if default is MISSING else default
    text = option.told.help
    if needed:
        text = f"{text.removesuffix('.')}; required, here or in --config."
    kind = type(option.choices[0]) if option.choices else option.kind
    metavar = f"[{'|'.join(map(str, option.choices))}]" if option.choices else option.told.metavar
    if kind is Path:  # "" would become the current folder before anybody sees it
        kind, metavar, default = str, metavar or "<path>", None if default is None else str(default)
    facts: dict[str, Any] = {"help": text, "show_default": unset or True}
    if option.choices:
        facts["autocompletion"] = lambda: [str(choice) for choice in option.choices]
    if positional:
        info: Any = typer.Argument(**facts)
    else:
        names = [f"--{option.name}", _SHORT[option.name]] if option.name in _SHORT else []
        info = typer.Option(*names, metavar=metavar, **facts)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind if default is not None else kind | None, info],
    )


def read_config(path: Path, kind: type[Checked]) -> dict[str, Any]:
    """Options out of a TOML file, by the names of their fields.

    Raises:
        RecipeError: not TOML, or a key that is no option.
        OSError: as the system says it.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path}: not a TOML file: {error}") from error
    unknown = [key for key in found if key not in option_table(kind)]
    if unknown:
        raise RecipeError(f"{path}: unknown option {', '.join(unknown)}")
    return found


def config_text(kind: type[Checked], given: Mapping[str, Any]) -> str:
    """All options as TOML that :func:`read_config` reads back; what has no value stands in a comment.

    Raises:
        RecipeError: a value outside what is allowed, or options that contradict each other.
    """
    table = option_table(kind)
    unnamed = {name: "?" for name, option in table.items() if option.default is MISSING and name not in given}
    parse_options(kind, **unnamed, **given)
    lines = []
    for name, option in table.items():
        value = given.get(name, option.default)
        lines.append(f"# {option.told.help}")
        if value is MISSING:
            lines.append(f"# {name} = ...")
        elif value is None:
            lines.append(f"# {name} = {option.told.unset or '...'}")
        else:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A number, truth value or text; JSON's text is TOML's, but for DEL."""
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)

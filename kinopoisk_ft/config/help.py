"""Build the text of `--help`, and explain invalid overrides on the command line."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from traceback import walk_tb
from typing import Any

from kinopoisk_ft.config.groups import get_conf_dir, list_options
from kinopoisk_ft.errors import UserError, first_line, install_extra, suggest_name

USAGE = """\
Fine-tune a text classifier, and record everything that a fair comparison needs.

  kinopoisk-ft train model=bert adapter=lora data=kinopoisk
  kinopoisk-ft train model=mamba adapter=none trainer.epochs=1
  kinopoisk-ft train --multirun model=bert,mamba adapter=none,lora seed=0,1,2
  kinopoisk-ft train sweep=study
  kinopoisk-ft train sweep=lr_search model=bert_scratch adapter=lora data=demo

`python -m kinopoisk_ft` is the same as `kinopoisk-ft train`.
group=option selects an option of a config group; group.key=value sets a value.
Flags: --multirun (-m), --config-dir DIR (your own config groups), --cfg job (print
the composed config and exit), --hydra-help, --version.
A sweep skips jobs that finished with the same config, data, code and hardware; rerun=true runs
them again.
dry_run=true prints the jobs and the expected time, and stops.
Without a network: use tracking=offline, and later kinopoisk-ft sync <output_dir>.
Parallel jobs: hydra/launcher=joblib hydra.launcher.n_jobs=2 (extra 'parallel'); on a cluster
hydra/launcher=slurm (extra 'slurm') or hydra/launcher=ray (extra 'ray'); see docs/scale.md.
One run in several processes: torchrun --nproc-per-node 2 -m kinopoisk_ft ...
Completion in bash (or fish, zsh): eval "$(kinopoisk-ft -sc install=bash)"
"""
OVERVIEW = """\
kinopoisk-ft compares ways of fine-tuning a text classifier: quality, time and memory.
  train              train and test a model: kinopoisk-ft train model=tfidf data=demo
{commands}
`kinopoisk-ft COMMAND --help` explains a command; `--version` prints the versions."""

# Groups that `--help` lists first; the others follow in alphabetical order.
FIRST_GROUPS = ["model", "adapter", "data", "trainer", "tracking", "task", "experiment", "sweep"]
# Shows all keys of a run with their values.
SHOW_CONFIG = "kinopoisk-ft train --cfg job"
# Names of the same options in `transformers.TrainingArguments` and its examples.
OTHER_NAMES = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "max_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "accumulate",
    "max_grad_norm": "clip_norm",
    "warmup_ratio": "warmup_share",
    "lr_scheduler_type": "schedule",
    "optim": "optimizer",
    "fp16": "precision",
    "bf16": "precision",
    "torch_compile": "compile",
    "save_steps": "checkpoint_every",
    "eval_steps": "eval_every",
    "logging_steps": "log_every",
    "label_smoothing_factor": "loss",
    "metric_for_best_model": "best_metric",
    "early_stopping_patience": "patience",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "max_train_samples": "train_limit",
    "model_name_or_path": "name",
    "model_name": "name",
    "run_name": "experiment",
}
# The optional dependencies (extra) of this package that each Hydra launcher needs.
LAUNCHER_EXTRAS = {
    "joblib": "parallel",
    "submitit_slurm": "slurm",
    "submitit_local": "slurm",
    "ray_base": "ray",
}
# All jobs of a sweep write below one folder, so these options accept only a single value.
SINGLE_VALUE_KEYS = ("output_dir", "result_json")


def build_overview(commands: Mapping[str, str]) -> str:
    """Return an overview of the commands, which are given as {name: description}."""
    lines = (f"  {name:18} {text}" for name, text in commands.items())
    return OVERVIEW.format(commands="\n".join(lines))


def build_help(user_folders: list[Path]) -> str:
    """Return the usage text, followed by the options of all config groups."""
    groups = list_options(get_conf_dir())
    for folder in user_folders:
        for group, options in list_options(folder).items():
            groups.setdefault(group, {}).update(options)
    first = [group for group in FIRST_GROUPS if group in groups]
    lines = [USAGE]
    for group in [*first, *sorted(groups.keys() - set(first))]:
        lines.append(f"{group}")
        lines += [f"  {name:18} {text}" for name, text in groups[group].items()]
    return "\n".join(lines)


def explain_error(error: Exception, args: list[str]) -> str | None:
    """Return a message that explains an error in a config and suggests a correction.

    If the config did not cause the error, return None.
    """
    # Hydra is imported only in functions, so that `--help` starts without it.
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from yaml import YAMLError

    text = str(error)
    if isinstance(error, YAMLError | UnicodeDecodeError) or find_unread_file(error):
        return str(_explain_file(error, args))
    if isinstance(error, RecursionError) and _comes_from(error, ("antlr4.", "omegaconf.")):
        return "the config has values that are nested too deeply: use fewer brackets"
    if isinstance(error, TypeError) and is_composition_error(error):
        fix = "write group=option, or group=[option1,option2] for groups that allow several options"
        return f"Hydra cannot compose {' '.join(args)}: {fix}"
    if not isinstance(error, HydraException | ValueError):
        return None
    if isinstance(error, OverrideParseException):
        return str(_explain_syntax_error(error.override, args))
    # Hydra raises the same class for other errors, so only the text identifies this error.
    if ambiguous := re.match(r"Ambiguous value for argument '(.*?)'\n", text, re.DOTALL):
        return str(_explain_comma(ambiguous[1]))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if not group:
            return f"there is no config '{option}': correct --config-name, or remove it"
        # The config of a launcher is missing if its plugin is not installed.
        if group == "hydra/launcher" and option in LAUNCHER_EXTRAS:
            extra = LAUNCHER_EXTRAS[option]
            return f"parallel jobs need an extra: {install_extra(extra)}"
        known = error.options or []
        return f"there is no option '{option}' in group '{group}': {suggest_name(option, known)}"
    missing = re.match(r"Could not override '([^']*)'", text)
    if missing:
        key = missing.group(1)
        if not key:
            return "an override needs a name before its '=': write group.key=value, see --help"
        return f"there is no option '{key}': {suggest_key(key, _list_keys(args, key))}"
    return text.strip()


def find_config_dirs(args: list[str]) -> list[Path]:
    """Return the folders that the user names with --config-dir."""
    pairs = [*pairwise([*args, ""]), *(arg.split("=", 1) for arg in args if "=" in arg)]
    return [Path(value) for flag, value in pairs if flag in ("--config-dir", "-cd")]


def _explain_file(error: Exception, args: list[str]) -> UserError:
    mark, reason = getattr(error, "problem_mark", None), first_line(error)
    if mark is not None:
        where = f"{mark.name}:{mark.line + 1}"
        what = f"malformed YAML: {getattr(error, 'problem', '')}"
        return UserError(what, where=where, fix="correct the file")
    # OmegaConf raises an OSError for a file with a single number, for example.
    is_value = isinstance(error, OSError)
    fix = "write lines such as `key: value` into the file" if is_value else None
    if isinstance(error, RecursionError):
        reason, fix = "its values are nested too deeply", "correct the file"
    return UserError(
        f"a config file cannot be read: {reason}",
        where=find_unread_file(error) or ", ".join(map(str, find_config_dirs(args))),
        fix=fix or "save the file as UTF-8, without control characters",
    )


def find_unread_file(error: Exception) -> str | None:
    """Return the config file that OmegaConf could not load; None if the error has another cause."""
    for frame, _ in walk_tb(error.__traceback__):
        name = (frame.f_globals["__name__"], frame.f_code.co_name)
        if name == ("omegaconf.omegaconf", "load"):
            file = frame.f_locals["file_"]
            return str(getattr(file, "name", file))
    return None


def _comes_from(error: Exception, packages: tuple[str, ...]) -> bool:
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(frame.f_globals["__name__"].startswith(packages) for frame in frames)


def suggest_key(key: str, known: Sequence[str]) -> str:
    """Return up to three keys that the user may have meant.

    If no key is similar, return a hint how to list all keys.

    Args:
        known: all keys, with their groups, such as "trainer.lr".
    """
    group, _, name = key.replace("/", ".").rpartition(".")
    name = OTHER_NAMES.get(name, name)
    found = [one for one in known if re.split(r"[./]", one)[-1] == name]
    # If an option with this name is in the given group, only this option is suggested.
    found = [one for one in found if one == f"{group}.{name}"] or found
    if not found:
        # First compare names within the group, because names of different groups look similar.
        for choices in ([one for one in known if one.startswith(f"{group}.")], known):
            lower = {one.lower(): one for one in choices}
            wanted = f"{group}.{name}".strip(".").lower()
            found = [lower[one] for one in difflib.get_close_matches(wanted, lower, 1, 0.7)]
            if found:
                break
    if not found:
        return f"see --help, or list the options of a run with: {SHOW_CONFIG}"
    return f"did you mean {' or '.join(repr(one) for one in found[:3])}?"


def check_commas(args: list[str]) -> None:
    """Raise UserError if an argument contains a path with an unquoted comma.

    Hydra would split such a path into several values.
    """
    for arg in args:
        key, _, value = arg.partition("=")
        # Hydra reads a comma inside brackets or quotes as part of one value.
        if "," not in value or value[:1] in tuple("[{'\""):
            continue
        # A comma in the path of an existing file or folder is probably part of its name.
        if key in SINGLE_VALUE_KEYS or os.path.exists(value):
            raise _explain_comma(arg)


def _explain_comma(override: str) -> UserError:
    key, _, value = override.partition("=")
    fixes = [f"for one value: {_quote_override(key, value)}"]
    if key not in SINGLE_VALUE_KEYS:
        fixes.append(f"for a list: {shlex.quote(f'{key}=[{value}]')}")
        fixes.append(f"for a sweep over {len(value.split(','))} values: add --multirun")
    return UserError(
        f"{override} contains an unquoted comma, so Hydra reads it as several values of a sweep",
        fix="; ".join(fixes),
    )


def _explain_syntax_error(override: str, args: list[str]) -> UserError:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = override.partition("=")
    if not equals:
        return _explain_stray_argument(override, args)
    try:
        # With a value that is certainly valid, the parser fails only if the key is invalid.
        OverridesParser.create().parse_override(f"{key}=1")
    except HydraException:
        fix = "write group=option or group.key=value; --help lists the groups and options"
        return UserError(f"'{key}' in {override} is not a valid option name", fix=fix)
    quoted = _quote_override(key, value)
    fix = f"quote the value for Hydra and the whole argument for the shell: {quoted}"
    if value.startswith(("[", "{")):
        fix += "; if it is a list [a,b] or a mapping {a: 1}, close its brackets"
    return UserError(f"Hydra cannot read this value without quotes: {override}", fix=fix)


def _explain_stray_argument(arg: str, args: list[str]) -> UserError:
    start = args.index(arg) if arg in args else 0
    end = start
    # The shell splits a value with spaces and without quotes into several arguments.
    while end < len(args) and "=" not in args[end] and not args[end].startswith("-"):
        end += 1
    fix = "write group=option or group.key=value; see --help"
    if start:
        joined = " ".join(args[start - 1 : end])
        key, equals, value = joined.partition("=")
        quoted = _quote_override(key, value) if equals and key[:1] != "-" else shlex.quote(joined)
        fix += f". If it is the end of the previous argument, quote both: {quoted}"
    return UserError(f"'{arg}' is not an override: it has no '='", fix=fix)


def _quote_override(key: str, value: str) -> str:
    from kinopoisk_ft.config.command import format_override

    # Shells do not expand ~ inside quotes.
    expanded = str(Path(value).expanduser()) if value.startswith("~/") else value
    return shlex.quote(format_override(key, expanded))


def _list_keys(args: list[str], unknown: str) -> list[str]:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    groups = list_options(get_conf_dir())
    # The chosen options decide which keys exist. Other overrides may be invalid, too.
    choices = [
        f"{group}={option}"
        for group, _, option in (arg.partition("=") for arg in args)
        if option in groups.get(group, {}) and not group.startswith(unknown)
    ]
    with initialize_config_dir(str(get_conf_dir()), version_base="1.3"):
        config = compose("train", overrides=choices)
    return sorted({*_list_nodes(OmegaConf.to_container(config)), *groups})


def _list_nodes(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    # Keys such as `_target_` belong to Hydra.
    nodes = {f"{prefix}{key}": value for key, value in node.items() if key[:1] != "_"}
    inner = [path for key, value in nodes.items() for path in _list_nodes(value, f"{key}.")]
    return [*nodes, *inner]


def is_composition_error(error: Exception) -> bool:
    """Return whether Hydra's own code raised an error, for example for `adapter=[1]`."""
    last = error.__traceback__
    # The last entry of a traceback is the frame in which the error was raised.
    while last and last.tb_next:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals["__name__"].startswith("hydra._internal.")

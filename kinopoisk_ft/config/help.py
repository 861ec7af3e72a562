"""Show `--help`, and explain mistakes on the command line."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from kinopoisk_ft.config.groups import conf_dir, group_options
from kinopoisk_ft.errors import UserError, suggest_name

USAGE = """\
Fine-tune one text classifier and log what a fair comparison needs.

  python -m kinopoisk_ft model=bert adapter=lora data=kinopoisk
  python -m kinopoisk_ft model=mamba adapter=none trainer.epochs=1
  python -m kinopoisk_ft --multirun model=bert,mamba adapter=none,lora seed=0,1,2
  python -m kinopoisk_ft sweep=study
  python -m kinopoisk_ft sweep=lr_search model=bert_scratch adapter=lora data=demo

group=option chooses a file of a group, group.key=value changes a value.
Flags: --multirun (-m), --config-dir DIR (your own groups), --cfg job (show
the composed config and stop), --hydra-help.
A sweep skips jobs that are finished and identical; rerun=true trains them again.
Without a network: tracking=offline, and later python -m kinopoisk_ft.sync <output_dir>.
In parallel: hydra/launcher=joblib hydra.launcher.n_jobs=2 (extra 'parallel'), on a cluster
hydra/launcher=slurm (extra 'slurm') or hydra/launcher=ray (extra 'ray'); see docs/scale.md.
One run in several processes: torchrun --nproc-per-node 2 -m kinopoisk_ft ...
"""


def help_text(extra: list[Path]) -> str:
    """Return usage, then each group with its options and a line on each."""
    groups = group_options(conf_dir())
    for folder in extra:
        for group, options in group_options(folder).items():
            groups.setdefault(group, {}).update(options)
    order = ["model", "adapter", "data", "trainer", "tracking", "task", "experiment", "sweep"]
    lines = [USAGE]
    for group in sorted(groups, key=lambda g: (order.index(g) if g in order else 99, g)):
        lines.append(f"{group}")
        lines += [f"  {name:18} {text}" for name, text in groups[group].items()]
    return "\n".join(lines)


# Launchers that are there when their extra is installed.
EXTRAS = {"joblib": "parallel", "submitit_slurm": "slurm", "submitit_local": "slurm",
          "ray_base": "ray"}  # fmt: skip
# All jobs of a sweep write below one folder, so these take one value.
ONE_VALUE = ("output_dir", "result_json")


def explain(error: Exception, args: list[str]) -> str:
    """Turn Hydra's message on an override into one that says what to write instead."""
    from hydra.errors import MissingConfigException, OverrideParseException

    text = str(error)
    if isinstance(error, OverrideParseException):
        return str(_unread(error.override, args))
    if ambiguous := re.match(r"Ambiguous value for argument '(.*?)'\n", text, re.DOTALL):
        return str(_several_values(ambiguous[1]))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if not group:
            return f"there is no config '{option}': leave out --config-name, or correct it"
        if group == "hydra/launcher" and option in EXTRAS:
            return f"parallel jobs need an extra: pip install 'kinopoisk-ft[{EXTRAS[option]}]'"
        known = error.options or []
        return f"there is no '{option}' in group '{group}': {suggest_name(option, known)}"
    missing = re.match(r"Could not override '([^']*)'", text)
    if missing:
        key = missing.group(1)
        if not key:
            return "an override needs a name before its '='; see --help"
        return f"there is no option '{key}': {suggest_name(key, _known_keys(args, key))}"
    return text.strip()


def check_commas(args: list[str]) -> None:
    """Raise UserError for a value with a comma that is one path, not the values of a sweep."""
    for arg in args:
        key, _, value = arg.partition("=")
        if "," not in value or value[:1] in tuple("[{'\""):
            continue
        if key in ONE_VALUE or os.path.exists(value):
            raise _several_values(arg)


def _several_values(override: str) -> UserError:
    key, _, value = override.partition("=")
    fixes = [f"as one value: {_quoted(key, value)}"]
    if key not in ONE_VALUE:
        fixes.append(f"as a list: {shlex.quote(f'{key}=[{value}]')}")
        fixes.append(f"as a sweep over {len(value.split(','))} values: add --multirun")
    return UserError(
        f"the comma in {override} separates the values of a sweep", fix="; ".join(fixes)
    )


def _unread(override: str, args: list[str]) -> UserError:
    """Return what to write instead of an override that Hydra's grammar does not have."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = override.partition("=")
    if not equals:
        return _stray(override, args)
    try:
        OverridesParser.create().parse_override(f"{key}=1")
    except HydraException:
        fix = "write group=option or group.key=value; --help lists the groups and options"
        return UserError(f"'{key}' in {override} cannot be the name of an option", fix=fix)
    fix = f"quote the value for Hydra and the whole for the shell: {_quoted(key, value)}"
    if value.startswith(("[", "{")):
        fix += "; or close the brackets: a list is [a,b], a mapping {a: 1}"
    return UserError(f"Hydra cannot read this value without quotes: {override}", fix=fix)


def _stray(arg: str, args: list[str]) -> UserError:
    """Return what to do about an argument without `=`, such as the end of a path with spaces."""
    at = args.index(arg) if arg in args else 0
    end = next((i for i in range(at, len(args)) if "=" in args[i] or args[i][:1] == "-"), len(args))
    fix = "write group=option or group.key=value; see --help"
    if at:
        whole = " ".join(args[at - 1 : end])
        key, equals, value = whole.partition("=")
        quoted = _quoted(key, value) if equals and key[:1] != "-" else shlex.quote(whole)
        fix += f". If it belongs to the argument before it: {quoted}"
    return UserError(f"'{arg}' is not an override: it has no '='", fix=fix)


def _quoted(key: str, value: str) -> str:
    """Return an override with this text as its value, as it is typed in a POSIX shell."""
    from kinopoisk_ft.config.command import as_override

    # A shell expands ~ at the start of a word only, and no shell expands it inside quotes.
    expanded = str(Path(value).expanduser()) if value.startswith("~/") else value
    return shlex.quote(as_override(key, expanded))


def _known_keys(args: list[str], bad: str) -> list[str]:
    """Return each key and group of the config as composed without the overrides of `bad`."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    choices = [a for a in args if re.match(r"^[\w/]+=[\w/]+$", a) and not a.startswith(bad)]
    groups = group_options(conf_dir())
    chosen = [
        a
        for a in choices
        if a.split("=")[0] in groups and a.split("=")[1] in groups[a.split("=")[0]]
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=chosen)
    return sorted({*_leaves(OmegaConf.to_container(config)), *groups})


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    keys = [f"{prefix}.{k}" if prefix else str(k) for k in node if k != "_target_"]
    return keys + [
        leaf for k, v in node.items() for leaf in _leaves(v, f"{prefix}.{k}" if prefix else str(k))
    ]


def in_composing(error: TypeError) -> bool:
    """Return whether Hydra itself tripped, over a choice such as `adapter=[1]`."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals["__name__"].startswith("hydra._internal.")

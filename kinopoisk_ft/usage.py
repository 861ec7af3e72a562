"""What `--help` shows, without any heavy import."""

from __future__ import annotations

from pathlib import Path

from kinopoisk_ft.conf_path import conf_dir, group_options

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

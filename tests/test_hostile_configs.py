"""Folders of configs from elsewhere: nothing in them is run, wherever Hydra would come by it.

Each attack, if it succeeded, would leave a marker file.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from places import ROOT

from kinopoisk_ft.cli import main
from kinopoisk_ft.config_files import check_folders
from kinopoisk_ft.targets import trust_held, trusted_packages

HOSTILE_FILES = {
    "adapter/nice.yaml": "_target_: os.mkdir\npath: {marker}\n",
    "experiment/nice.yaml": "# @package _global_\nhydra:\n  callbacks:\n    nice:\n"
    "      _target_: pathlib.Path\n",
    "hydra/callbacks/nice.yaml": "nice:\n  _target_: subprocess.run\n",
    "model/nice.yaml": "_target_: own.evil.run\n",
    "experiment/made.yaml": "# @package _global_\nhydra:\n  callbacks:\n"
    "    nice: \"${{oc.create:'{{_target_: pathlib.Path}}'}}\"\n",
    "experiment/named.yaml": "# @package _global_\nname: os.mkdir\nadapter:\n"
    "  _target_: ${{name}}\n",
    "experiment/escaped.yaml": "# @package _global_\nhydra:\n  callbacks:\n"
    "    nice: \"${{oc\\x2ecreate:'{{_target_: pathlib.Path}}'}}\"\n",
    "experiment/resolver.yaml": "# @package _global_\nmade: create\nhydra:\n  callbacks:\n"
    "    nice: \"${{oc.${{made}}:'{{_target_: pathlib.Path}}'}}\"\n",
    **{
        f"experiment/{name}.yaml": "# @package _global_\nhydra:\n  job_logging:\n    handlers:\n"
        f"      nice: {{{{{text}}}}}\n"
        for name, text in {
            "factory": "'()': os.mkdir, path: {marker}",
            "popen": "class: subprocess.Popen, args: [touch, {marker}]",
            "logs_own": "class: logging.os.mkdir, path: {marker}",
            "ini": "class: logging.config.fileConfig, fname: {marker}",
            "queue": "class: logging.handlers.QueueHandler, queue: os.getcwd",
            "imported": "class: logging.StreamHandler, stream: ext://own.evil",
            "looked_up": "class: logging.StreamHandler, stream: cfg://root.x",
            "joined": "class: logging.StreamHandler, stream: 'e${{seed}}own.evil'",
            "taken": "class: '${{name}}'",
        }.items()
    },
    "experiment/whole.yaml": "# @package _global_\nmine: {{a: ext, b: 1}}\nhydra:\n"
    "  job_logging: ${{mine}}\n",
    "hydra/job_logging/nice.yaml": "handlers:\n  console:\n    stream: ${{seed}}\n",
    "hydra/job_logging/moved.yaml": "defaults:\n  - /model@handlers: nice\n",
    "experiment/header.yaml": "# @package hydra.job.env_set\nKINOPOISK_FT_TARGETS: os\n",
    "experiment/sent.yaml": "defaults:\n  - /model@hydra.job.env_set: nice\n",
    "experiment/env.yaml": "# @package _global_\nhydra:\n  job:\n    env_set:\n"
    "      KINOPOISK_FT_TARGETS: os\n",
    "experiment/params.yaml": "# @package _global_\nhydra:\n  sweeper:\n    params:\n"
    "      +hydra.job.chdir: 'true'\n",
    "experiment/out.yaml": "defaults:\n  - ../../elsewhere/evil\n",
    "experiment/searched.yaml": "# @package _global_\nhydra:\n  searchpath: [elsewhere]\n",
    "hydra/job_logging/far.yaml": "handlers:\n  file:\n    filename: {marker}\n",
    "hydra/job_logging/up.yaml": "handlers:\n  file:\n"
    "    filename: ${{hydra.runtime.output_dir}}/../../up.log\n",
    "hydra/launcher/shell.yaml": "defaults: [slurm]\nsetup: [touch {marker}]\n",
    "experiment/cluster.yaml": "# @package _global_\nhydra:\n  launcher:\n"
    "    additional_parameters: {{wrap: touch {marker}}}\n",
    "experiment/run.yaml": "# @package _global_\nhydra:\n  runtime:\n    output_dir: 'ext:'\n",
}


FLAGS = (
    ["--config-dir", "{own}"], ["--config-dir={own}"], ["hydra.searchpath=[file://{own}]"],
    ["hydra.searchpath=[file://own]"], ["hydra.searchpath=[own]"], ["hydra.searchpath=['./own']"],
    ['hydra.searchpath=[pkg://hydra.conf, "{own}"]'],
)  # fmt: skip
EVERY = "experiment/searched.yaml"  # the file that all flags are tried with


@pytest.mark.parametrize("file", HOSTILE_FILES)
def test_a_folder_of_configs_is_looked_at_before_hydra_is(
    tmp_path: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    path = tmp_path / "own" / file
    path.parent.mkdir(parents=True)
    path.write_text(HOSTILE_FILES[file].format(marker=marker))
    (tmp_path / "own" / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for flag in FLAGS if file == EVERY else FLAGS[:3]:
        named = [part.format(own=tmp_path / "own") for part in flag]
        assert main([*named, "adapter=nice", "--cfg", "job"]) == 1
        told = capsys.readouterr()
        assert f"own/{file}" in told.err
        assert told.out == ""
    assert not marker.exists()


def test_a_folder_of_configs_is_looked_at_behind_links(
    tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    (own / "model").mkdir(parents=True)
    (own / "model" / "round").symlink_to(own)
    other.mkdir()
    (other / "nice.yaml").write_text(f"handlers:\n  a:\n    filename: ${{x}}{marker}\n")
    (own / "adapter").symlink_to(other)
    check_folders([own])  # an adapter may say so
    (own / "hydra").mkdir()
    (own / "hydra" / "job_logging").symlink_to(other)
    assert main(["--config-dir", str(own), "adapter=nice", "--cfg", "job"]) == 1
    assert "hydra/job_logging/nice.yaml" in capsys.readouterr().err


def test_configs_of_ones_own_may_log_and_launch_as_they_like(tmp_path: Path) -> None:
    """What is refused leaves what people write: files, streams, launchers, sweeps."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /adapter: lora\n"
        "  - override /hydra/launcher: joblib\nhydra:\n  job_logging:\n    handlers:\n"
        "      console: {class: logging.StreamHandler, stream: ext://sys.stderr}\n"
        "      more: {class: logging.FileHandler, filename: '${hydra.runtime.output_dir}/x.log'}\n"
        "  sweeper:\n    params: {seed: '0,1', +trainer.lr: 0.1}\n"
        "data: {path: ../reviews.csv}\ntracking: {uri: 'http://${oc.env:HOST,a}:5000'}\n"
    )
    check_folders([ROOT / "conf", tmp_path])


def test_trust_is_what_the_environment_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with trust_held():
        monkeypatch.setenv("KINOPOISK_FT_TARGETS", "fractions")
        assert trusted_packages() == ()
    assert trusted_packages() == ("fractions",)


def test_a_job_changes_no_trust(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even where the user lets Hydra set the environment: it is for the job's own ends."""
    monkeypatch.chdir(tmp_path)
    hostile = ["++adapter._target_=fractions.Fraction"]
    with pytest.raises(SystemExit):
        main(
            [
                "+hydra.job.env_set.KINOPOISK_FT_TARGETS=fractions",
                "model=tfidf",
                "data=demo",
                *hostile,
            ]
        )
    assert "neither this project's nor your own code" in capsys.readouterr().err

"""Fuzz event logs and configs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mutations as m
from hypothesis import strategies as st
from mutations import Check

from kinopoisk_ft.errors import UserError


def event_logs(home: Path) -> Check:
    """Read damaged event logs, continue them, and send them to an MLflow store."""
    import tracked

    from kinopoisk_ft.tracking import delivery
    from kinopoisk_ft.tracking.event_log import EventLog, find_logs
    from kinopoisk_ft.tracking.offline import find_recorded
    from kinopoisk_ft.tracking.sync_runs import sync_folders

    for name in ("PAUSE", "MAX_PAUSE", "INTERVAL"):
        setattr(delivery, name, 0.01)
    uri = f"sqlite:///{home / 'mlflow.db'}"
    run = tracked.offline(experiment="fuzz")
    tracked.record(run, home / "run", steps=3)
    (home / "run" / "scores.json").write_text('{"a": 1}')
    run.artifact(home / "run" / "scores.json")
    run.finish("FINISHED")
    (log,) = find_logs(home / "run")
    assert [one.status for one in sync_folders([home / "run"], uri, None, "KILLED")] == ["sent"]
    log.state_file.unlink()
    whole = log.file.read_bytes().splitlines()
    sent = 0

    def check(data: st.DataObject, folder: Path) -> None:
        nonlocal sent
        shutil.copytree(home / "run", folder, dirs_exist_ok=True)
        lines, kept = list(whole), len(whole)
        place = data.draw(st.integers(0, len(lines) - 1))
        body = json.loads(lines[place])
        match data.draw(st.sampled_from(["json", "json", "bytes", "insert", "state"])):
            case "json":
                body.pop("crc")
                lines[place] = m.write_json(m.change_json(data, body))
                kept -= 1
            case "bytes":
                changed = m.change_bytes(data, lines[place])
                kept -= changed != lines[place]
                lines[place : place + 1] = changed.split(b"\n")
            case "insert":
                lines.insert(place, data.draw(m.contents))
            case "state":
                state = {"uri": uri, "run_id": "0" * 32, "seq": 3, "refused": {"2": "x"}}
                (folder / "tracking" / log.state_file.name).write_bytes(
                    m.write_json(m.change_json(data, state))
                )
        file = folder / "tracking" / log.file.name
        file.write_bytes(b"\n".join(lines) + b"\n")
        read = EventLog(file)
        # Lines that are not damaged are never lost, unless their number comes twice.
        numbers = {event["seq"] for event in read.events}
        assert len(numbers) == len(read.events)
        untouched = [json.loads(line)["seq"] for line in whole if line in lines]
        last = max(numbers, default=0)
        assert last > len(whole) or numbers >= {*untouched}, (numbers, untouched)
        find_recorded(folder, {})
        sent += 1
        if sent % 8:
            return
        with suppress(UserError):
            list(sync_folders([folder], uri, None, "KILLED"))
            events = EventLog(file)
            assert events.seq == events.state.seq

    return check


def configs(home: Path) -> Check:
    """Compose configs from overrides and from files in --config-dir, and build the parts."""
    from composing import CHOICES, VALUES
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from parsed_configs import parse_once

    from kinopoisk_ft import cli, run
    from kinopoisk_ft.sweeps import jobs

    wrong: list[BaseException] = []
    find_cause = cli._find_cause

    def watch(raised: Exception) -> BaseException:
        cause = find_cause(raised)
        if not isinstance(cause, UserError):
            wrong.append(raised)
        return cause

    def build(prepared: Any, *_: Any) -> None:
        for group in ("model", "adapter", "data", "trainer", "tracking"):
            instantiate(prepared.cfg[group])

    parse_once()
    cli._find_cause, run.run_together, jobs.run_job = watch, build, build
    # This imports everything before the first input, and checks that the choices are valid.
    for choice in CHOICES:
        assert cli.main(["train", *choice, f"hydra.run.dir={home}/run"]) == 0
    keys = sorted(_list_keys())
    key = st.sampled_from(keys) | st.sampled_from(keys).map(lambda k: k.rpartition(".")[0] or k)
    value = m.mostly(st.sampled_from([*VALUES, "lora", "bert", "1,2"]), m.unicode_text)
    override = st.builds("{}{}={}".format, m.mostly(st.just(""), st.sampled_from("+~")), key, value)
    flag = st.sampled_from(["--multirun", "--cfg=job", "--help", "--resolve", "x", "=", "", "-cd"])
    argument = m.mostly(override, flag)
    files = ("experiment/mine", "model/mine", "adapter/mine", "data/mine", "trainer/mine", "mine")

    def check(data: st.DataObject, folder: Path) -> None:
        arguments = [*data.draw(st.sampled_from(CHOICES)), f"hydra.run.dir={folder}/run",
                     f"hydra.sweep.dir={folder}/sweep"]  # fmt: skip
        arguments += data.draw(st.lists(argument, max_size=3))
        if data.draw(st.booleans()):
            name = data.draw(st.sampled_from(files))
            file = folder / "conf" / f"{name}.yaml"
            file.parent.mkdir(parents=True)
            file.write_bytes(draw_yaml(data, keys))
            group, _, option = name.rpartition("/")
            sign = "+" if group == "experiment" else ""
            chosen = f"{sign}{group}={option}" if group else "--config-name=mine"
            arguments += [f"--config-dir={folder}/conf", chosen]
        wrong.clear()
        with suppress(SystemExit):
            cli.main(["train", *arguments])
        if wrong:
            raise wrong[0]

    def draw_yaml(data: st.DataObject, keys: list[str]) -> bytes:
        if not data.draw(st.integers(0, 3)):
            return data.draw(m.contents)
        node = OmegaConf.create()
        for name in data.draw(st.lists(st.sampled_from(keys), max_size=3)):
            with suppress(Exception):
                OmegaConf.update(node, name, data.draw(m.values))
        head = data.draw(st.sampled_from(["", "# @package _global_\n", "defaults: [_self_]\n"]))
        whole = (head + OmegaConf.to_yaml(node)).encode("utf-8", "surrogatepass")
        return m.change_bytes(data, whole) if data.draw(st.booleans()) else whole

    return check


def _list_keys() -> Iterator[str]:
    from composing import CHOICES, compose_config, plain

    from kinopoisk_ft.config.prepared import flatten

    for choice in CHOICES:
        yield from flatten(plain(compose_config(choice)))

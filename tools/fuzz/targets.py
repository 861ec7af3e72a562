"""List what is fuzzed: for each kind of input, how it is made and what must hold for it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations as m
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from kinopoisk_ft.data.local import LocalFile
from kinopoisk_ft.data.prediction_files import prepare_output
from kinopoisk_ft.data.tables import SUFFIXES, read_table
from kinopoisk_ft.errors import UserError

# Reads the input that it draws in a folder; raises what the package raises, except UserError.
Check = Callable[[st.DataObject, Path], None]


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Args:
        prepare: makes valid originals in a folder, and returns the check of one input.
        modules: files of the package whose lines are counted.
        seconds: CPU time that one input may take.
    """

    prepare: Callable[[Path], Check]
    modules: tuple[str, ...]
    seconds: float = 10.0


COLUMNS = ("text", "label", "film", "author", "date", "grade10", "row", "x")
TEXTS = ["хороший фильм", "плохой фильм", "8 из 10, хороший", ""]
rows = st.lists(
    st.dictionaries(st.sampled_from(COLUMNS), m.values | st.sampled_from(TEXTS)),
    min_size=1,
    max_size=8,
)


def draw_table(data: st.DataObject, suffix: str, rows: list[dict[str, Any]]) -> bytes:
    """Return rows in the format of a file extension."""
    plain = suffix.removesuffix(".gz")
    names = list(dict.fromkeys(name for row in rows for name in row))
    if plain == ".parquet":
        made = {}
        for name in names:
            cells = [row.get(name) for row in rows]
            try:
                made[name.encode(errors="replace").decode()] = pa.array(cells)
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                made[name] = pa.array([str(cell).encode(errors="replace") for cell in cells])
        stream, table = io.BytesIO(), pa.table(made)
        notes = {b"huggingface": m.write_json({"info": {"features": data.draw(m.values)}})}
        with suppress(pa.ArrowException):
            pq.write_table(table.replace_schema_metadata(notes), stream)
        return stream.getvalue()
    if plain in (".csv", ".tsv"):
        lines = io.StringIO(newline="")
        writer = csv.writer(lines, delimiter="," if plain == ".csv" else "\t")
        writer.writerows([names, *([row.get(name) for name in names] for row in rows)])
        return lines.getvalue().encode("utf-8", "surrogatepass")
    return b"".join(m.write_json(row) + b"\n" for row in rows)


def tables(_: Path) -> Check:
    """Read tables of all formats, split them, and prepare to add predictions."""

    def check(data: st.DataObject, folder: Path) -> None:
        suffix = data.draw(st.sampled_from([*SUFFIXES, ".xlsx", ".txt"]))
        content = draw_table(data, suffix, data.draw(rows))
        match data.draw(st.sampled_from(["whole", "damaged", "scraps"])):
            case "damaged":
                content = m.change_bytes(data, content)
            case "scraps":
                content = data.draw(m.contents)
        content = gzip.compress(content) if suffix.endswith(".gz") else content
        path = folder / f"a{suffix}"
        path.write_bytes(content)
        options = {
            "limit": None, "max_length": 32, "classes": data.draw(st.sampled_from([None, 2])),
            "empty": data.draw(st.sampled_from(["drop", "refuse"])),
            "near_duplicates": data.draw(st.sampled_from(["drop", "keep"])),
            "split": data.draw(st.sampled_from(["random", "film", "author", "time"])),
            "text_column": "text", "label_column": "label",
        }  # fmt: skip
        output = folder / f"b{data.draw(st.sampled_from(['.csv', '.jsonl', '.parquet']))}"
        with suppress(UserError):
            LocalFile(path=str(path), quoting=data.draw(st.sampled_from(["auto", "csv", "none"])),
                      **options).load()  # fmt: skip
        with suppress(UserError):
            table = read_table(path)
            assert len(table.places()) == len(table.frame) > 0
            write = prepare_output(table, output)
            write(pd.DataFrame({"predicted": ["Good"] * len(table.frame)}))
            assert len(read_table(output).frame) == len(table.frame)
        assert path.read_bytes() == content

    return check


def predictions(_: Path) -> Check:
    """Compare files with predictions, as `kinopoisk-ft compare` does."""
    from kinopoisk_ft.commands.compare import main

    any_name = st.sampled_from(["Good", "Bad", 1, 0, "1.0", None, "\ud800", " "]) | m.scalars
    numbers = st.sampled_from([0, 1, 2, "3", 4.0, None, 2**63, -1, "x"])

    def check(data: st.DataObject, folder: Path) -> None:
        arguments = []
        names = data.draw(st.sampled_from([st.sampled_from(["Good", "Bad"])] * 3 + [any_name]))
        count = data.draw(st.integers(1, 12))
        labels = [data.draw(names) for _ in range(count)]
        for name in "ab" if data.draw(st.booleans()) else "abc":
            suffix = data.draw(st.sampled_from(SUFFIXES))
            optional = {"row": numbers, "film": m.scalars, "group": numbers}
            made = [{"label": label, "predicted": data.draw(names)} for label in labels]
            for column in data.draw(st.sets(st.sampled_from(sorted(optional)))):
                made = [row | {column: data.draw(optional[column])} for row in made]
            if not data.draw(st.integers(0, 4)):
                made = data.draw(rows)
            content = draw_table(data, suffix, made)
            if not data.draw(st.integers(0, 4)):
                content = m.change_bytes(data, content)
            content = gzip.compress(content) if suffix.endswith(".gz") else content
            (folder / f"{name}{suffix}").write_bytes(content)
            arguments.append(f"{name}{suffix}")
        if data.draw(st.booleans()):
            arguments += ["--margin", str(data.draw(st.floats()))]
        with suppress(SystemExit):
            main(arguments)

    return check


def texts(home: Path) -> Check:
    """Clean, shorten and tokenize any text, and divide it into windows."""
    import networks

    from kinopoisk_ft.data.cleaning import has_lone_surrogate
    from kinopoisk_ft.data.preprocessing import TRUNCATIONS, Preprocessing
    from kinopoisk_ft.data.tokens import encode, encode_with_spans, find_windows
    from kinopoisk_ft.data.written_grades import strip_scores
    from kinopoisk_ft.text import (
        clean_name,
        escape_formula,
        fold_name,
        replace_controls,
        shorten_paths,
        to_one_line,
    )

    tokenizers = [networks.make(kind)[3] for kind in ("bert_scratch", "mamba_scratch")]
    words = [
        "8 из 10",
        "10/10",
        "оценка: 7",
        "ставлю",
        "твёрдая семёрка",
        "балл",
        " ",
        "\n",
        "-",
        "9",
        "из",
        "*",
        "∞",
        "не ",
        "[SEP]",
        "/home/a",
        "(2009)",
        "é",
        "e\u0301",
        "1e9",
    ]
    pieces = st.builds(
        lambda text, times: text * times,
        st.sampled_from(words) | m.unicode_text,
        st.sampled_from([1, 1, 2, 3, 400, 4000]),
    )
    any_text = st.lists(pieces, max_size=6).map("".join)

    def check(data: st.DataObject, _: Path) -> None:
        text = data.draw(any_text)
        for clean in (clean_name, fold_name):
            name = clean(text)
            assert name is None or name.strip()
        assert len(strip_scores(text)) <= len(text)
        for function in (escape_formula, replace_controls, shorten_paths, to_one_line):
            assert isinstance(function(text), str)
        options = Preprocessing(
            max_length=data.draw(st.integers(1, 40)),
            truncation=data.draw(st.sampled_from(sorted(TRUNCATIONS))),
            max_characters=data.draw(st.none() | st.integers(1, 5000)),
            strip_scores=data.draw(st.booleans()),
            window_stride=data.draw(st.none() | st.integers(1, 40)),
            max_windows=data.draw(st.none() | st.integers(1, 4)),
            text_prefix=data.draw(st.sampled_from(["", "query: ", "а"])),
        )
        cleaned = options.clean(text)
        if has_lone_surrogate(cleaned) or not cleaned.strip():
            return
        cut = options.cut(cleaned)
        assert len(cut) <= (options.max_characters or len(cleaned))
        tokenizer = data.draw(st.sampled_from(tokenizers))
        with suppress(UserError):
            windows = find_windows(tokenizer, options)
            columns = encode([cleaned], tokenizer, options)
            ids, spans = encode_with_spans(cut, tokenizer, options)
            assert ids == columns["input_ids"][0]
            assert all(0 <= a <= b <= len(cut) for a, b in filter(None, spans))
            assert 0 <= columns["characters_seen"][0] <= columns["characters"][0]
            divided = windows.cut(ids) if windows else [ids]
            assert all(len(part) <= options.max_length for part in divided)
            if windows and windows.max_windows is None:
                assert {*ids} == {number for part in divided for number in part}

    return check


def event_logs(home: Path) -> Check:
    """Read damaged event logs, continue them, and send them to an MLflow store."""
    import tracked

    from kinopoisk_ft.tracking import delivery
    from kinopoisk_ft.tracking.event_log import EventLog, find_logs
    from kinopoisk_ft.tracking.offline import find_unsent
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
        find_unsent(folder, {})
        sent += 1
        if sent % 8:
            return
        with suppress(UserError):
            list(sync_folders([folder], uri, None, "KILLED"))
            events = EventLog(file)
            assert events.seq == events.state.seq

    return check


def model_folders(home: Path) -> Check:
    """Load damaged model folders of each kind, and classify two texts."""
    import hostile
    import tiny
    import torch
    from composing import compose_config
    from hydra.utils import instantiate

    from kinopoisk_ft.models.card import Card
    from kinopoisk_ft.serving.predictor import Predictor

    torch.set_num_threads(1)
    originals = home / "models"
    for kind, adapter in (
        ("bert", "none"),
        ("pooled", "none"),
        ("mamba", "none"),
        ("bert", "lora"),
    ):
        hostile.saved(kind, adapter, originals / f"{kind} {adapter}")
    texts, labels = tiny.reviews(20)
    tfidf = instantiate(compose_config(["model=tfidf"]).model)
    tfidf.fit_texts(texts, np.array(labels), 2).save(originals / "tfidf")
    Card(kind="tfidf", class_names=["Bad", "Good"], max_length=64).write(originals / "tfidf")
    names = sorted(folder.name for folder in originals.iterdir())
    reviews = ["хороший фильм", "8 из 10"]
    # This also compiles kernels, which an input may not write to disk.
    for name in names:
        Predictor(originals / name, "cpu").predict(reviews)

    def check(data: st.DataObject, folder: Path) -> None:
        shutil.copytree(originals / data.draw(st.sampled_from(names)), folder, dirs_exist_ok=True)
        m.change_folder(data, folder)
        before = digest(folder)
        with suppress(UserError):
            found = Predictor(folder, "cpu").probabilities(reviews)
            assert np.isfinite(found).all(), "probabilities are not finite numbers"
            if data.draw(st.booleans()):
                again = Predictor(folder, "cpu").probabilities(reviews)
                assert np.array_equal(found, again), "some weights are drawn at random"
        assert digest(folder) == before

    return check


def base_models(home: Path) -> Check:
    """Load damaged tokenizers and checkpoints from a folder, as from the hub."""
    import tiny
    import torch

    from kinopoisk_ft.data.preprocessing import Preprocessing
    from kinopoisk_ft.data.tokens import encode_ids
    from kinopoisk_ft.models.encoder import Encoder
    from kinopoisk_ft.models.mamba_recipe import Mamba
    from kinopoisk_ft.models.tokenizers import load_tokenizer

    torch.set_num_threads(1)
    originals = {"bert": tiny.bert(), "mamba": tiny.mamba()}
    common: dict[str, Any] = {"revision": None, "lr": 1e-3, "head_lr": None, "targets": {}}
    tokenizer_files = ("tokenizer.json", "tokenizer_config.json")

    def check(data: st.DataObject, folder: Path) -> None:
        kind = data.draw(st.sampled_from(sorted(originals)))
        shutil.copytree(originals[kind], folder, dirs_exist_ok=True)
        if data.draw(st.booleans()):
            m.change_file(data, folder / data.draw(st.sampled_from(tokenizer_files)))
        else:
            m.change_folder(data, folder)
        before, name = digest(folder), str(folder)
        with suppress(UserError):
            tokenizer = load_tokenizer(name)
            texts = ["хороший фильм", "[SEP] 8/10 \u200b é"]
            encode_ids(texts, tokenizer, Preprocessing(max_length=16, truncation="head_tail"))
            if kind == "bert":
                recipe: Any = Encoder(name=name, tokenizer=name, pooling="auto", dropout=None,
                                      **common)  # fmt: skip
            else:
                recipe = Mamba(name=name, tokenizer=name, pooling="mean", scan_backend="auto",
                               **common)  # fmt: skip
            recipe.build(("Bad", "Good"), tokenizer)
        assert digest(folder) == before

    return check


def checkpoints(home: Path) -> Check:
    """Resume from damaged checkpoints, with or without digests that match the damage."""
    import copy

    import checkpointed
    import torch

    from kinopoisk_ft.files import compute_sha256
    from kinopoisk_ft.training import loop
    from kinopoisk_ft.training.checkpoint import manager
    from kinopoisk_ft.training.checkpoint.folder import MANIFEST, CheckpointFolder

    torch.set_num_threads(1)
    captured: list[Any] = []

    class Captured(manager.CheckpointManager):
        def resume(self) -> None:
            captured.append(self)
            super().resume()

    original = home / "run"
    original.mkdir()
    loop.CheckpointManager = Captured  # type: ignore[misc]
    checkpointed.fit(original)
    first = captured[0]
    names = [folder.name for folder in CheckpointFolder(original).folders()]

    def forge(folder: Path) -> None:
        """Write digests that match the damaged files."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            manifest = json.loads((folder / MANIFEST).read_text())
            for name in manifest["files"]:
                manifest["files"][name] = compute_sha256(folder / name)
            (folder / MANIFEST).write_text(json.dumps(manifest))

    def check(data: st.DataObject, folder: Path) -> None:
        shutil.copytree(original, folder, dirs_exist_ok=True)
        damaged = data.draw(st.sampled_from(names))
        m.change_folder(data, folder / damaged)
        if data.draw(st.booleans()):
            forge(folder / damaged)
        others = [name for name in names if name != damaged]
        before = {name: digest(folder / name) for name in others}
        one = copy.copy(first)
        state = copy.deepcopy(first.state)
        one.state, one.checkpoints = state, CheckpointFolder(folder)
        one.best = copy.copy(first.best)
        one.best.folder = folder
        one.parts = {"clock": copy.deepcopy(first.clock), "best_weights": one.best, "state": state}
        with suppress(UserError):
            one.resume()
        with suppress(UserError):
            one.best.restore(state.model)
        with suppress(UserError):
            manager.read_precision(folder)
        assert before == {name: digest(folder / name) for name in others}, "a valid one is lost"

    return check


CHOICES = (
    ("model=bert_scratch", "adapter=lora", "data=demo"),
    ("model=mamba2_scratch", "adapter=freeze", "data=file"),
    ("model=tfidf", "adapter=none", "data=hub"),
)
VALUES = (
    "-1", "0", "1", "2", "10000000000000000000000", "0.5", "-0.0", "1e400", ".nan", "nan", "inf",
    "null", "true", "''", "' '", "[]", "[1,-1]", "{}", "{a: 1}", "{_target_: os.getcwd}", "фильм",
    "../..", "'\\0'", "${seed}", "${nowhere}", "${trainer}", "${oc.env:NO_SUCH_NAME}", "steps:0",
    "seconds:nan", "tokens:-1", "epochs:1e9", "~", "a=b", "'a\nb'", "???", "lora", "bert", "1,2",
)  # fmt: skip


def configs(home: Path) -> Check:
    """Compose configs from overrides and from files in --config-dir, and build the parts."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from parsed_configs import parse_once

    from kinopoisk_ft import cli, run

    wrong: list[BaseException] = []
    find_cause = cli._find_cause

    def watch(raised: Exception) -> BaseException:
        cause = find_cause(raised)
        if not isinstance(cause, UserError):
            wrong.append(raised)
        return cause

    def build(prepared: Any, _: Path) -> None:
        for group in ("model", "adapter", "data", "trainer", "tracking"):
            instantiate(prepared.cfg[group])

    parse_once()
    cli._find_cause, run.run_together = watch, build
    # This imports everything before the first input, and checks that the choices are valid.
    for choice in CHOICES:
        assert cli.main(["train", *choice, f"hydra.run.dir={home}/run"]) == 0
    keys = sorted(_list_keys())
    key = st.sampled_from(keys) | st.sampled_from(keys).map(lambda k: k.rpartition(".")[0] or k)
    value = m.mostly(st.sampled_from(VALUES), m.unicode_text)
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
    from composing import compose_config, plain

    from kinopoisk_ft.config.prepared import flatten

    for choice in CHOICES:
        yield from flatten(plain(compose_config(choice)))


def digest(folder: Path) -> dict[str, bytes | None]:
    """Return the contents of all files below a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes() if file.is_file() else None
        for file in sorted(folder.rglob("*"))
        if not file.is_symlink()
    }


TARGETS: dict[str, Target] = {
    "tables": Target(tables, ("data/tables.py", "data/formats.py", "data/local.py",
                              "data/cleaning.py", "data/prediction_files.py")),
    "configs": Target(configs, ("config/validate.py", "config/command.py", "config/prepared.py",
                                "config/trust.py", "config/help.py")),
    "model_folders": Target(model_folders, ("models/card.py", "models/saving.py",
                                            "models/untrusted.py", "models/tfidf.py",
                                            "serving/predictor.py")),
    "checkpoints": Target(checkpoints, ("training/checkpoint/folder.py",
                                        "training/checkpoint/contents.py",
                                        "training/checkpoint/best.py",
                                        "training/checkpoint/manager.py")),
    "event_logs": Target(event_logs, ("tracking/event_log.py", "tracking/replay.py",
                                      "tracking/sync_runs.py")),
    "predictions": Target(predictions, ("commands/compare.py", "statistics/predictions.py",
                                        "statistics/comparison.py")),
    "base_models": Target(base_models, ("models/tokenizers.py", "models/checkpoints.py",
                                        "models/untrusted.py", "models/encoder.py",
                                        "models/mamba_recipe.py")),
    "texts": Target(texts, ("text.py", "data/cleaning.py", "data/preprocessing.py",
                            "data/windows.py", "data/written_grades.py", "data/tokens.py")),
}  # fmt: skip

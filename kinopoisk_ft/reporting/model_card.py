"""Write the model card (README.md) of a saved model from the files of its run.

Mitchell, M. et al. (2019). Model Cards for Model Reporting. The metadata follow
https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kinopoisk_ft.config.prepared import TAGS, flatten
from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.statistics.bootstrap import estimate_mean, resample_approaches
from kinopoisk_ft.statistics.metrics import COUNTED, headline_first, shown_in
from kinopoisk_ft.statistics.predictions import Predictions
from kinopoisk_ft.text import shorten_paths, to_one_line

README = "README.md"
TEMPLATE = Path(__file__).with_name("templates") / "model_card.md.j2"
SYNTHETIC = "kinopoisk_ft.data.demo.Demo"
# Data sets in Russian. The language of other data is unknown.
RUSSIAN = ("kinopoisk_ft.data.kinopoisk.Kinopoisk", SYNTHETIC)
DATA_OPTIONS = (
    "classes", "split", "folds", "fold", "limit", "train_limit", "near_duplicates", "strip_scores",
    "max_length", "truncation", "window_stride", "max_windows", "max_characters", "text_prefix",
)  # fmt: skip
# TF-IDF reads words instead of tokens.
TOKEN_OPTIONS = ("max_length", "truncation")
TRAINER_OPTIONS = (
    "budget", "epochs", "max_steps", "min_steps", "batch_size", "accumulate", "lr", "head_lr",
    "layer_decay", "head_first", "weight_decay", "warmup_steps", "warmup_share", "optimizer",
    "schedule", "loss", "class_weights", "sampling", "eval_every", "patience", "best_metric",
    "precision",
)  # fmt: skip


def write_model_card(
    out_dir: Path,
    card: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
    warning: str = "",
) -> None:
    """Write README.md into the model folder of a finished run.

    Absolute paths are shortened to their last part, so that the folder can be published.

    Args:
        out_dir: output folder of the run.
        card: the contents of kinopoisk_ft.json.
        metrics: the final metrics of the run. Without them, the card lacks the score of the
            majority class and the number of test reviews in the pretraining texts.
        warning: the reason why the scores must not be compared; "" if there is none.
    """
    # Runs of earlier versions have no file with tags.
    tags = _read_json(out_dir / TAGS) if (out_dir / TAGS).is_file() else {}
    config = yaml.safe_load((out_dir / "config.yaml").read_text("utf-8"))
    found = Predictions.read(out_dir / "predictions.parquet")
    metrics = metrics or {}
    # Only the expected calibration error is shown in reliability diagrams.
    (error,) = shown_in("reliability")
    scores = _score(found, metrics)
    # With a single group, the bootstrap draws reviews.
    groups = 0 if found.groups is None else len(np.unique(found.groups))
    result, data = _read_json(out_dir / "result.json"), _read_json(out_dir / "data.json")
    data_name = _name_data(config["data"])
    approach = tags.get("approach", "")
    base = shorten_paths(card["base"]) if card["base"] else None
    written = ModelCard.from_template(
        _make_metadata(card, config, approach or "model", data_name, scores),
        template_path=str(TEMPLATE),
        code=_code,
        approach=approach,
        card=card,
        base=base,
        base_is_local=base != card["base"],
        # The overlap with the pretraining texts is a metric of the run, and not in data.json.
        data={**data, "name": data_name, "leakage": {**data["leakage"], **metrics}},
        result=result,
        scores=scores,
        groups=groups if groups > 1 else None,
        per_class=_read_json(out_dir / "class_report.json"),
        settings=_list_settings(config, is_network=card["kind"] != "tfidf"),
        seen=metrics.get("characters_seen_share"),
        calibration_error=metrics.get(f"test_{error.name}"),
        environment=_read_json(out_dir / "environment.json"),
        command=_shorten_command(tags.get("command", "")),
        split=config["data"].get("split", "random"),
        seed=config["seed"],
        warning=to_one_line(warning),
    )
    write_atomically(out_dir / "model" / README, f"{str(written).strip()}\n")


def _read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def _score(found: Predictions, metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the name, the mean with 95% interval, and the majority-class score of each metric."""
    (scored,) = resample_approaches([[found]])
    rows = []
    for metric in headline_first(COUNTED):
        interval = estimate_mean(scored[metric.name], metric.lowest)
        majority = metrics.get(f"majority_{metric.name}")
        rows.append({"name": metric.name, "interval": interval, "majority": majority})
    return rows


def _name_data(data: Mapping[str, Any]) -> str:
    """Return the hub name or file name of the data set, or else the name of its Python class."""
    if data.get("path"):
        return shorten_paths(str(data["path"]))
    if data["_target_"] == SYNTHETIC:
        return "demo (synthetic reviews)"
    return str(data.get("name") or data["_target_"].rpartition(".")[2])


def _make_metadata(
    card: Mapping[str, Any],
    config: Mapping[str, Any],
    name: str,
    data: str,
    scores: list[dict[str, Any]],
) -> ModelCardData:
    # The hub finds data sets and base models only by their names, and not by local paths.
    on_hub = bool(config["data"].get("name")) and not config["data"].get("path")
    base = card["base"]
    library = "kinopoisk_ft"
    if card["kind"] == "hf":
        library = "peft" if card["is_peft"] else "transformers"
    return ModelCardData(
        base_model=base if base and shorten_paths(base) == base else None,
        datasets=[data] if on_hub else None,
        language="ru" if config["data"]["_target_"] in RUSSIAN else None,
        library_name=library,
        pipeline_tag="text-classification",
        tags=["kinopoisk_ft"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type=data,
                dataset_name=data,
                dataset_split="test",
                metric_type=row["name"],
                metric_value=round(row["interval"].mean, 4),
            )
            for row in scores
        ],
    )


def _list_settings(config: Mapping[str, Any], is_network: bool) -> list[tuple[str, str]]:
    """Return an (option, value) pair for each option that affected the training."""
    windows = config["data"].get("truncation") == "windows"
    listed = {
        f"data.{name}": config["data"].get(name)
        for name in DATA_OPTIONS
        if (windows or "window" not in name) and (is_network or name not in TOKEN_OPTIONS)
    }
    if is_network:
        listed |= {f"adapter.{key}": value for key, value in flatten(config["adapter"]).items()}
        listed |= {f"trainer.{name}": config["trainer"].get(name) for name in TRAINER_OPTIONS}
    else:
        listed |= {f"model.{key}": value for key, value in flatten(config["model"]).items()}
    listed["seed"] = config["seed"]
    # `_target_` names the class of an option. The other keys of Hydra do not describe the option.
    return [
        (key.removesuffix("._target_"), shorten_paths(str(value)))
        for key, value in flatten(listed).items()
        if value not in (None, [], "") and not key.endswith(("._partial_", "._convert_"))
    ]


def _shorten_command(command: str) -> str:
    # `shorten_paths` reads a space as a part of a path, so it gets one argument at a time.
    return shlex.join(shorten_paths(part) for part in shlex.split(command))


def _code(value: object) -> str:
    """Format a value as Markdown code that is safe in a table."""
    # Markdown has no escape for a backtick in a code span, but needs one for a pipe in a table.
    return "`" + to_one_line(str(value)).replace("`", "'").replace("|", "\\|") + "`"

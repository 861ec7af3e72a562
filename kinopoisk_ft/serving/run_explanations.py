"""Explain the predictions of finished runs for reviews of their test splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kinopoisk_ft.config.trust import check_targets, rename_moved_targets
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.serving.attributions import Explanation, explain
from kinopoisk_ft.serving.locate import find_model_folder
from kinopoisk_ft.serving.predictor import Predictor


def explain_runs(
    client: MlflowClient, uri: str, runs: Mapping[tuple[str, int], str]
) -> dict[tuple[str, int], Explanation]:
    """Explain predictions of runs for reviews of their test splits.

    Args:
        runs: {(name of an approach, row number of a review in the source data): id of a run of
            this approach whose test split contains the review}.

    Returns:
        {(name of an approach, row number): explanation}.

    Raises:
        UserError: a model or the data of a run are not available, or a review is missing.
    """
    answers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for answer, run_id in runs.items():
        answers[run_id].append(answer)
    # {(whether grades are removed from the texts, row number): text}.
    texts: dict[tuple[bool, int], str] = {}
    found = {}
    for run_id, asked in answers.items():
        predictor = Predictor(find_model_folder(run_id, uri))
        stripped = predictor.card.strip_scores
        for name, row in asked:
            if (stripped, row) not in texts:
                read = _read_texts(client, run_id)
                texts |= {(stripped, number): text for number, text in read.items()}
            if (stripped, row) not in texts:
                raise UserError(
                    f"row {row} was in the test split of this run, but it is not in the test "
                    "split of the current data",
                    where=f"run {run_id}",
                    fix="restore the data, or make the report without --explain",
                )
            found[name, row] = explain(predictor, texts[stripped, row])
    return found


def _read_texts(client: MlflowClient, run_id: str) -> dict[int, str]:
    """Return {row number: text} for the test reviews of a run.

    The data is read again, because the recorded predictions contain only the start of each text.
    """
    try:
        cfg: Any = OmegaConf.load(Path(client.download_artifacts(run_id, "config.yaml")))
        plain: Any = rename_moved_targets(OmegaConf.to_container(cfg.data))
    except (MlflowException, OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"the config of the run cannot be read: {first_line(error)}",
            where=f"run {run_id}",
            fix="make the report without --explain",
        ) from error
    # The store may contain runs of other people, and `instantiate` calls what a config names.
    if refused := check_targets(plain, "data"):
        raise UserError("\n".join(refused), where=f"config.yaml of run {run_id}")
    data: DataSplit = instantiate(DictConfig(plain)).load()
    return dict(zip(data.test["row"].tolist(), data.test["text"].tolist(), strict=True))

"""The model registry: the champion is the model in use, the challenger may replace it."""

from collections.abc import Mapping
from functools import partial

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mnist_sweep.common.errors import UserError
from mnist_sweep.tracking.queries import Run, connect
from mnist_sweep.tracking.retry import retried

CHAMPION, CHALLENGER = "champion", "challenger"
DECIDED_BY = "test_set.sha256"  # tag of a version: the dataset whose test images decided about it


def check_name(key: str, name: str) -> None:
    """Raise UserError if MLflow accepts no registered model of this name."""
    if not name.strip() or name in (".", "..") or any(sign in name for sign in "/:"):
        raise UserError(f"{key}={name}: expected the name of a registered model, without / and :")


def register(uri: str, name: str, run: Run, sweep: str) -> ModelVersion | None:
    """Register the run's model as the challenger, unless it is registered already.

    Returns:
        The version; None if the run logged no model or its model was deleted.

    Raises:
        UserError: the registry refuses, for example because of the name.
    """
    try:
        return _register(MlflowClient(uri), name, run, sweep)
    except MlflowException as error:
        raise UserError(f"tracking.register={name}: {error.message.splitlines()[0]}") from error


def _register(client: MlflowClient, name: str, run: Run, sweep: str) -> ModelVersion | None:
    if not run.outputs or not run.outputs.model_outputs:
        return None
    model_id = run.outputs.model_outputs[0].model_id
    known = client.search_model_versions(f"name = '{name}' AND run_id = '{run.info.run_id}'")
    kept = {k: v for k, v in run.data.metrics.items() if k.startswith(("best/", "test/"))}
    tags = {
        "sweep": sweep,
        "data": run.data.tags["data"],
        "data.sha256": run.data.tags["data.sha256"],
        **{name: f"{value:.6g}" for name, value in kept.items()},
    }
    version = known[0] if known else _create(client, name, run.info.run_id, model_id, tags)
    if version is not None:
        retried(partial(client.set_registered_model_alias, name, CHALLENGER, version.version))
    return version


def _create(
    client: MlflowClient, name: str, run_id: str, model_id: str, tags: Mapping[str, str]
) -> ModelVersion | None:
    try:
        location = client.get_logged_model(model_id).artifact_location
    except MlflowException:
        return None  # deleted by sweep.top_k
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    create = partial(client.create_model_version, name, location, run_id, dict(tags))
    return retried(partial(create, model_id=model_id))


def by_alias(uri: str, name: str, alias: str) -> ModelVersion | None:
    """Return the version of a registered model that has this alias, if there is one."""
    client = connect(uri)
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def promote(uri: str, version: ModelVersion) -> None:
    """Make this version the champion."""
    client = MlflowClient(uri)
    client.set_registered_model_alias(version.name, CHAMPION, version.version)


def record_test_decision(uri: str, version: ModelVersion, data_digest: str) -> int:
    """Record that a dataset's test images decide about a version.

    Returns:
        For how many other versions they have decided before.
    """
    client = MlflowClient(uri)
    decided = client.search_model_versions(f"tags.`{DECIDED_BY}` = '{data_digest}'")
    client.set_model_version_tag(version.name, version.version, DECIDED_BY, data_digest)
    same = (version.name, version.version)
    return sum((each.name, each.version) != same for each in decided)

"""Writes the report at the end of a sweep, as a Hydra callback. Light: it imports plotly at the end."""

import logging
from typing import TYPE_CHECKING

from mnist_sweep.sweep import Sweep, SweepCallback

if TYPE_CHECKING:
    from mnist_sweep.sweep.callback import Study

log = logging.getLogger(__name__)


class WriteReport(SweepCallback):
    """Writes report/ in the sweep's directory, unless `sweep.report` is false."""

    def on_sweep_end(self, sweep: Sweep, study: "Study", error: BaseException | None) -> None:
        tracking = sweep.config.tracking
        if error is not None or not sweep.config.sweep.report:
            return
        from mnist_sweep.report import page
        from mnist_sweep.tracking.queries import answers
        from mnist_sweep.tracking.run import store_uri

        uri = store_uri(tracking.uri, sweep.config.store) if tracking.enabled else None
        if uri is not None and not answers(uri):
            log.warning("WARNING: MLflow is away: the report lacks what the runs recorded")
            uri = None
        folder = sweep.directory / "report"
        try:
            path = page.write(folder, study, uri=uri, experiment=tracking.experiment)
        except Exception:  # a report that fails must not cost the sweep
            log.exception("no report; the tool `report sweep=%s` tries again", sweep.name)
        else:
            sweep.links["report"] = path.as_uri()


class WriteStudyReport(SweepCallback):
    """Writes report/ in the sweep's directory from the study alone, for any application."""

    def on_sweep_end(self, sweep: Sweep, study: "Study", error: BaseException | None) -> None:
        if error is not None or not sweep.settings.report:
            return
        from mnist_sweep.report import page

        try:
            path = page.write(sweep.directory / "report", study, uri=None)
        except Exception:  # a report that fails must not cost the sweep
            log.exception("the report of %s was not written", sweep.name)
        else:
            sweep.links["report"] = path.as_uri()

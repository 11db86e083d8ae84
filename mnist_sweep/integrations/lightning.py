"""A Lightning callback that reports each validated epoch to the sweep and stops a pruned trial."""

from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_sweep.sweep import current_trial


class ReportToSweep(Callback):  # type: ignore[misc]  # Lightning need not be installed
    """Reports `trainer.callback_metrics` after each epoch that ran a validation; epochs count from 1.

    With several processes, the first one reports, and its answer stops all of them. Outside of a sweep
    the callback does nothing.
    """

    validated = False  # in this epoch; the sanity check comes before the first epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.validated:
            return
        epoch, pruned = trainer.current_epoch + 1, False
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            pruned = current_trial().report(epoch, metrics, final=epoch == trainer.max_epochs)
        if trainer.strategy.broadcast(pruned):
            trainer.should_stop = True
            trainer.fit_loop.min_epochs = 0  # a pruned trial need not reach them

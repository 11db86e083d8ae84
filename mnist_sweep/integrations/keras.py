"""A callback for Keras and for training loops that call `on_epoch_end(epoch, logs)` as Keras does."""

from collections.abc import Mapping
from typing import Any

from mnist_sweep.sweep import current_trial


class ReportToSweep:
    """Reports the logs of each epoch to the sweep and stops a pruned trial.

    For Keras, derive a class from this one and from `keras.callbacks.Callback`, in this order. Another
    loop stops when `on_epoch_end` returns True. Outside of a sweep the callback does nothing.
    """

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> bool:
        """Report `logs`, and say whether to stop. Epochs count from 0, as in Keras."""
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        params = getattr(self, "params", None) or {}  # Keras sets it, and `model`
        final = epoch + 1 == params.get("epochs")
        pruned = current_trial().report(epoch + 1, metrics, final=final)
        model = getattr(self, "model", None)
        if pruned and model is not None:
            model.stop_training = True
        return pruned

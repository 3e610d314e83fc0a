"""Signals that ask a run to stop: noted when they arrive, obeyed at the end of the step."""

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer


class Interrupted(BaseException):
    """Training stopped because of a signal, with a checkpoint of its last step.

    Args:
        signal_number: which one.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"{signal.Signals(signal_number).name} received")
        self.signal_number = signal_number


class StopSignals:
    """Ctrl-C, SIGTERM, and the signal that SLURM sends before the time of a job is over.

    A second Ctrl-C does not wait for the end of the step. Lightning's handlers are replaced while
    training runs: they save wherever the program happens to be, which may be in the middle of an
    optimizer step; its requeueing is called when the step is over.

    Args:
        requeue_signal: SLURM's, where it requeues jobs.
    """

    def __init__(self, requeue_signal: signal.Signals | None = None) -> None:
        self.requeue_signal = requeue_signal
        self._received: int | None = None
        self._replaced: dict[int, Callable[..., Any] | int | None] = {}

    def listen(self) -> None:
        """Take over the signals.

        Python allows it in the main thread only; elsewhere they go on as they were.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = {signal.SIGINT, signal.SIGTERM}
        if self.requeue_signal is not None:
            numbers.add(self.requeue_signal)
        for number in numbers:
            self._replaced[number] = signal.getsignal(number)
            signal.signal(number, self._receive)

    def ignore(self) -> None:
        """Give the signals back."""
        for number, handler in self._replaced.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._replaced.clear()

    def agreed(self, trainer: Trainer) -> int | None:
        """The signal that some process received, the same on all processes; None: no signal."""
        number = self._received or 0
        if trainer.world_size > 1:
            tensor = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(tensor, reduce_op="max"))
        return number or None

    def before_stopping(self, number: int, checkpoints: Path, trainer: Trainer) -> None:
        """Have Lightning requeue the job, if that is what the signal was for."""
        requeue = self._replaced.get(number)
        if number != self.requeue_signal or not callable(requeue):
            return
        requeue(number, None)
        if trainer.is_global_zero:  # it saves the state of `last.ckpt` once more, as hpc_ckpt
            for copy in checkpoints.glob("hpc_ckpt_*.ckpt"):
                copy.unlink(missing_ok=True)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._received == signal.SIGINT:
                raise KeyboardInterrupt
            said = "\nStopping at the end of this step; Ctrl-C again to stop at once"
            print(said, file=sys.stderr, flush=True)
        self._received = number

"""Where the time of a step goes: all of it, masking, and waiting for cells.

Measured without making a GPU wait.
"""

import math
import time
from collections import deque
from itertools import chain
from statistics import median
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from .batches import batches_of
from .module import PretrainingModule

WARMUP = 5  # steps at the beginning of each session that are not measured
KEPT = 1000  # steps, the last ones


class StepTimes(Callback):
    """Times each optimizer step, from the end of the one before to its own.

    On a GPU, times are read from events on its stream, all at once at the end; on the CPU from the
    clock. Steps that a validation or a checkpoint fell into are left out. Masking is the forward
    pass of the strategy, and its backward pass: from where the gradient of the context arrives to
    the last gradient of its parameters, between which autograd does nothing else. What
    ``masking.gradient: reward`` adds is not in it (``benchmarks.maskings_cost`` measures that):
    its gradients are interleaved with those of the decoder.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # of training, over all sessions
        self._times: dict[str, list[float]] = {"step_ms": [], "masking_ms": [], "loader_ms": []}
        self._pending: deque[tuple[Any, Any, list[tuple[Any, Any]], float]] = deque(maxlen=KEPT)
        self._masking: list[tuple[Any, Any]] = []
        self._backward: list[Any] = []  # begin and end of the strategy's backward pass, so far
        self._hooks: list[Any] = []
        self._arrivals: dict[torch.nn.Parameter, Any] = {}  # hooks, of the strategy's parameters
        self._latest: torch.nn.Parameter | None = None  # whose gradient came last
        self._last: Any = None
        self._skip = WARMUP
        self._started: float | None = None
        self._on_gpu = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_gpu = pl_module.device.type == "cuda"
        module = cast(PretrainingModule, pl_module)
        self._skip = min(WARMUP, (module.settings.steps - trainer.global_step) // 2)
        strategy = module.pretraining.strategy
        self._hooks = [
            strategy.register_forward_pre_hook(self._enter),
            strategy.register_forward_hook(self._leave),
        ]
        self._arrivals = {
            parameter: parameter.register_post_accumulate_grad_hook(self._gradient_arrived)
            for parameter in strategy.parameters()
        }
        self._started = time.perf_counter()
        self._last = self._now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self._backward) == 2:
            self._masking.append(tuple(self._backward))
            self._watch_the_last()
        self._backward = []
        if (batch_idx + 1) % cast(PretrainingModule, pl_module).settings.accumulate:
            return
        now, waited = self._now(), batches_of(trainer).take_waited()
        if self._skip > 0:
            self._skip -= 1
        elif self._last is not None:
            self._pending.append((self._last, now, self._masking, waited))
        self._last, self._masking = now, []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last, self._masking = self._now(), []

    def on_save_checkpoint(self, *_: Any) -> None:
        self._last = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "seconds": self._seconds_now(),
            "times": {name: list(times) for name, times in self._times.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        seconds = float(state["seconds"])
        times = {name: [float(x) for x in state["times"][name]] for name in self._times}
        if not all(map(math.isfinite, (seconds, *chain(*times.values())))):
            raise ValueError("times: expected finite numbers of a run's checkpoint")
        self.seconds, self._times = seconds, times

    def summary(self) -> dict[str, float | None]:
        """Seconds of training, medians over steps in milliseconds, and shares of a step; None where
        no step was measured.

        Few steps wait for cells, which are read thousands at a time, but these wait long. So
        the share of waiting is that of the sums.
        """
        self._read()
        medians = {name: median(times) if times else None for name, times in self._times.items()}
        step, masking = medians["step_ms"], medians["masking_ms"]
        share = masking / step if step and masking is not None else None
        waiting = sum(self._times["loader_ms"]) / sum(self._times["step_ms"]) if step else None
        return {
            "seconds": self._seconds_now(),
            **medians,
            "masking_share": share,
            "waiting_share": waiting,
        }

    def _seconds_now(self) -> float:
        begun = self._started
        return self.seconds + (0.0 if begun is None else time.perf_counter() - begun)

    def _stop(self) -> None:
        self.seconds, self._started = self._seconds_now(), None
        for hook in (*self._hooks, *self._arrivals.values()):
            hook.remove()
        self._hooks, self._arrivals = [], {}

    def _enter(self, module: torch.nn.Module, arguments: Any) -> None:
        if module.training:
            self._masking.append((self._now(), None))

    def _leave(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        if module.training:
            self._masking[-1] = (self._masking[-1][0], self._now())
            # Both come of one node of autograd, before which the hooks of both would be called.
            for result in (output.context, output.penalty):
                if result is not None and result.requires_grad:
                    result.register_hook(self._backward_begins)
                    break

    def _backward_begins(self, gradient: torch.Tensor) -> None:
        self._backward = [self._now()]

    def _gradient_arrived(self, parameter: torch.nn.Parameter) -> None:
        if self._backward:
            self._backward[1:] = [self._now()]
            self._latest = parameter

    def _watch_the_last(self) -> None:
        """Leave the hook of the gradient that came last, as it does at each step. The others would
        be a twentieth of what is measured.
        """
        if len(self._arrivals) > 1:
            last = self._latest
            for parameter in [one for one in self._arrivals if one is not last]:
                self._arrivals.pop(parameter).remove()

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _milliseconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) if self._on_gpu else 1e3 * (end - start)

    def _read(self) -> None:
        """Turn the recorded marks into times.

        This waits for a GPU, so it happens at checkpoints and at the end.
        """
        if not self._pending:
            return
        if self._on_gpu:
            torch.cuda.synchronize()
        for start, end, masking, waited in self._pending:
            self._times["step_ms"].append(self._milliseconds(start, end))
            self._times["masking_ms"].append(sum(self._milliseconds(*marks) for marks in masking))
            self._times["loader_ms"].append(1e3 * waited)
        self._pending.clear()
        self._times = {name: times[-KEPT:] for name, times in self._times.items()}

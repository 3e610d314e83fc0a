"""Batches of cells in an order that depends on the seed and the epoch alone, not on the number of
workers or on the place of the counts.
"""

import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import numpy as np
import torch.utils.data
from scipy.sparse import csr_matrix

from ..errors import CellsError
from ..sequences import CellBatch
from .cells import Cells

# Cells that are read from a file at once, in its order; those of a block are spread over as many.
READ_AHEAD = 4096
READ_VALUES = 2**23  # stored values that are read at once at most: 64 MiB with their indices


@dataclass(eq=False, repr=False)
class CellLoader:
    """Batches of cells on the CPU.

    Every pass over it is an epoch, and the next pass the next epoch. Its place within an epoch can
    be saved and restored: the batches that follow are the same. Cells in a file are read thousands
    at a time, and the next ones while these are used: by a thread, or by workers.

    Args:
        cells: from `open_cells`.
        batch_size: cells a batch, on each process.
        seed: of the order.
        shuffle: a fresh random order each epoch, of blocks of `cells.block` cells; else the order
            of the cells.
        drop_last: leave out the last batch where it is smaller than the others.
        sparse: counts as sparse CSR, which the engine takes as they are; else dense.
        rank, world_size: this process and how many there are. Together they go through each step's
            ``batch_size * world_size`` cells once; all make the same number of steps, for which the
            last one may repeat up to ``world_size - 1`` cells from the beginning.
        workers: processes that read ahead; 0 reads in this one.
        multiprocessing_context: how workers are started, "fork", "spawn" or "forkserver"; None: as
            torch's DataLoader does.
        pin_memory: put batches into page-locked memory.

    Raises:
        CellsError: no cells, or too few for a single batch where `drop_last` is asked for.
    """

    cells: Cells
    batch_size: int
    _: KW_ONLY
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    sparse: bool = False
    rank: int = 0
    world_size: int = 1
    workers: int = 0
    multiprocessing_context: str | None = None
    pin_memory: bool = False

    def __post_init__(self) -> None:
        cells, batch_size, world_size = self.cells, self.batch_size, self.world_size
        if not 0 <= self.rank < world_size:
            raise ValueError(
                f"rank: expected 0 <= rank < world_size = {world_size}; got {self.rank}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1; got {batch_size}")
        if not len(cells):
            raise CellsError(f"{cells.source}: no cells to read; filter less")
        if self.drop_last and len(cells) < batch_size * world_size:
            raise CellsError(
                f"training.batch_size: {batch_size} cells on each of {world_size} processes are"
                f" more than the {len(cells)} there are; set at most"
                f" {max(1, len(cells) // world_size)}"
            )
        self.epoch, self.position, self._start = 0, 0, 0
        self._requests: list[np.ndarray] = []  # of the workers, in this epoch
        self._workers: torch.utils.data.DataLoader | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        step = self.batch_size * self.world_size
        return len(self.cells) // step if self.drop_last else -(-len(self.cells) // step)

    def __iter__(self) -> Iterator[CellBatch]:
        batches = self.order()
        start, self._start = self._start, 0
        epoch = self.epoch
        self.position = start
        for batch in self._read(batches, start):
            start += 1
            # Set before the batch is handed out: a caller that counts batches asks for no more.
            self.epoch, self.position = (epoch + 1, 0) if start == len(batches) else (epoch, start)
            yield batch.pin_memory() if self.pin_memory else batch

    def order(self, epoch: int | None = None) -> list[np.ndarray]:
        """The batches of an epoch (the current one) on this process: positions among the cells,
        (batch_size,) int64 each.
        """
        epoch = self.epoch if epoch is None else epoch
        count = len(self.cells)
        order = self._shuffled(epoch) if self.shuffle else np.arange(count)
        step = self.batch_size * self.world_size
        unit = step if self.drop_last else self.world_size
        used = (count if self.drop_last else count + unit - 1) // unit * unit
        order = np.resize(order, used)  # cut, or filled up from its beginning
        return [self._share(order[first : first + step]) for first in range(0, len(order), step)]

    def _share(self, step: np.ndarray) -> np.ndarray:
        """The cells of a step that this process reads: neighbours where blocks are drawn, because a
        block is read whole for any of its cells.
        """
        if self.cells.block == 1 or self.world_size == 1:
            return step[self.rank :: self.world_size]
        return np.split(np.sort(step), self.world_size)[self.rank]

    def _shuffled(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, epoch])
        count, block = len(self.cells), self.cells.block
        if block == 1:
            return random.permutation(count)
        order = (random.permutation(-(-count // block))[:, None] * block + np.arange(block)).ravel()
        order = order[order < count]
        # Neighbours are spread over the cells that are read at once.
        for first in range(0, count, READ_AHEAD):
            random.shuffle(order[first : first + READ_AHEAD])
        return order

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, unless it is the current one."""
        if epoch != self.epoch:
            self.epoch, self.position, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The place: epoch, batches of it that were handed out, and what the order depends on."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place that `state_dict` gave.

        Raises:
            CellsError: it comes from a loader with another order.
        """
        differs = [
            f"{name} {state.get(name)!r}, now {value!r}"
            for name, value in self._identity().items()
            if state.get(name) != value
        ]
        if differs:
            raise CellsError(
                f"checkpoint: its cells were read in another order ({'; '.join(differs)}); start a"
                " new run for these settings"
            )
        self.epoch, self.position = state["epoch"], state["position"]
        self._start = self.position

    def close(self) -> None:
        """Stop the workers and close the file; both start again on use."""
        self._workers = None
        self.cells.counts.close()

    def _identity(self) -> dict[str, Any]:
        names = ("seed", "shuffle", "drop_last", "batch_size", "world_size")
        return {
            "cells": len(self.cells),
            "block": self.cells.block,
            **{name: getattr(self, name) for name in names},
        }

    def _read(self, batches: list[np.ndarray], start: int) -> Iterator[CellBatch]:
        """The batches from `start` on. Which are read together does not depend on it."""
        together = self._batches_together()
        ends = [*range(start - start % together + together, len(batches), together), len(batches)]
        spans = zip([start, *ends], ends, strict=False)
        groups = [batches[first:end] for first, end in spans if first < end]
        read = self._rows([np.concatenate(group) for group in groups])
        for group, rows in zip(groups, read, strict=True):
            first = 0
            for indices in group:
                part = rows[first : first + len(indices)] if len(group) > 1 else rows
                yield self.cells.batch_of(part, indices, sparse=self.sparse)
                first += len(indices)

    def _batches_together(self) -> int:
        if self.cells.counts.in_memory:
            return 1
        return max(1, min(READ_AHEAD, self.cells.counts.cells_of(READ_VALUES)) // self.batch_size)

    def _rows(self, requests: list[np.ndarray]) -> Iterator[csr_matrix]:
        """The counts of each request, read ahead where that takes time."""
        if self.workers:
            return self._from_workers(requests)
        if self.cells.counts.in_memory:
            return map(self.cells.counts.take, requests)
        return self._from_thread(requests)

    def _from_thread(self, requests: list[np.ndarray]) -> Iterator[csr_matrix]:
        with ThreadPoolExecutor(1, "cells") as thread:
            ahead: deque[Future[csr_matrix]] = deque()
            for request in requests:
                ahead.append(thread.submit(self.cells.counts.take, request))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _from_workers(self, requests: list[np.ndarray]) -> Iterator[csr_matrix]:
        self._requests[:] = requests
        if self._workers is None:
            self.cells.counts.close()  # an open HDF5 file must not be shared with a child
            self._workers = torch.utils.data.DataLoader(
                cast(torch.utils.data.Dataset, self.cells.counts),
                batch_size=None,
                sampler=self._requests,
                num_workers=self.workers,
                persistent_workers=True,
                worker_init_fn=_ignore_interrupts,
                multiprocessing_context=self.multiprocessing_context,
                # Of the workers' seeds; the default would advance torch's own generator.
                generator=torch.Generator(),
            )
        yield from self._workers


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and the trainer finishes its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

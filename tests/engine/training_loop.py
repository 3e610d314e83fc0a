"""A plain pretraining loop in torch's own parts that keeps every mask: what the tests of processes
and restarts run.

    python tests/engine/training_loop.py RANK RENDEZVOUS

is one of two processes; it leaves what its runs gave in a file beside RENDEZVOUS.
"""

import datetime
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

import mam_kernels as mam
from mam_kernels.testing import inputs

WORLD = 2
CELLS, GENES, WIDTH = 24, 40, 6
CELLS_A_STEP = 6  # of all processes together
EPOCHS = 2
STEPS = EPOCHS * CELLS // CELLS_A_STEP
MIDDLE = 5  # a step of the second epoch
SEED = 11


class Cells(Dataset):
    """Expression values, each with the stable id of its cell."""

    def __init__(self) -> None:
        self.values = inputs.expression(CELLS, GENES, 0.4, torch.Generator().manual_seed(2))

    def __len__(self) -> int:
        return CELLS

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return 1000 + index, self.values[index]


class Model(nn.Module):
    """A masking module and as much of an encoder-decoder as a loss needs; ``use`` names where the
    context goes.
    """

    def __init__(
        self, kind: str = "values", use: tuple[str, ...] = ("encoder", "decoder", "penalty")
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.use = kind, use
        self.masking = mam.MultinomialAttentionMasking(
            WIDTH if kind == "embeddings" else None, latent_dim=8, num_latents=4, num_heads=2
        )
        self.injection = mam.ContextInjection(8, WIDTH, "separate")
        self.embed, self.head = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, values: Tensor, step: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of the cells, and their masks."""
        tokens = values if self.kind == "values" else self.embed(values[..., None])
        out = self.masking(tokens, seed=SEED, step=step, sample_ids=ids)
        hidden = self.embed(values.masked_fill(out.mask, -1.0)[..., None])
        for name, shift in zip(("encoder", "decoder"), self.injection(out.context), strict=True):
            if name in self.use:
                hidden = hidden + shift
        penalty = 1e-3 * out.penalty if "penalty" in self.use else 0.0
        return ((self.head(hidden)[..., 0] - values)[out.mask] ** 2).mean() + penalty, out.mask


@dataclass
class Trained:
    """What a run leaves behind, of this process."""

    masks: dict[tuple[int, int], list[bool]] = field(default_factory=dict)  # by step and cell
    losses: list[float] = field(default_factory=list)
    # whole, also where they were sharded.
    parameters: dict[str, Tensor] = field(default_factory=dict)
    without_gradient: list[str] = field(default_factory=list)


def unchanged(model: nn.Module) -> nn.Module:
    return model


def train(
    model: nn.Module,
    wrap: Callable[[nn.Module], nn.Module] = unchanged,
    *,
    rank: int = 0,
    world: int = 1,
    cells_a_call: int = CELLS_A_STEP,
    stop: int = STEPS,
    checkpoint: Path | None = None,
) -> Trained:
    """Train up to step ``stop``, from ``checkpoint`` if there is one, and write it there before
    leaving early.
    """
    wrapped, trained, cells = wrap(model), Trained(), Cells()
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.01)
    start = 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"], strict=True)
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    sampler = DistributedSampler(cells, world, rank, seed=3)
    loader = DataLoader(cells, batch_size=CELLS_A_STEP // world, sampler=sampler)
    for step in range(start, stop):
        epoch, batch = divmod(step, len(loader))
        if batch == 0 or step == start:
            sampler.set_epoch(epoch)
            batches = iter(loader)
            for _ in range(batch):
                next(batches)
        ids, values = next(batches)
        loss = torch.zeros(())
        for few, their_values in zip(
            ids.split(cells_a_call), values.split(cells_a_call), strict=True
        ):
            part, mask = wrapped(their_values, torch.tensor(step), few)
            part = part * (len(few) / len(ids))
            part.backward()
            loss += part.detach()
            trained.masks |= {
                (step, int(cell)): row.tolist() for cell, row in zip(few, mask, strict=True)
            }
        optimizer.step()
        trained.without_gradient = [
            name for name, parameter in wrapped.named_parameters() if parameter.grad is None
        ]
        optimizer.zero_grad()
        trained.losses.append(float(loss))
    if checkpoint is not None and stop < STEPS and rank == 0:
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": stop},
            checkpoint,
        )
    trained.parameters = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return trained


def sharded(model: Model, **options: object) -> nn.Module:
    fully_shard(model.masking, **options)
    return fully_shard(model, **options)


def compiled(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(torch.compile(model, fullgraph=True, backend="aot_eager"))


def main(rank: int, rendezvous: Path) -> None:
    store = dist.FileStore(str(rendezvous), WORLD)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=datetime.timedelta(seconds=60)
    )
    torch.set_num_threads(1)
    here = {"rank": rank, "world": WORLD}
    checkpoint = rendezvous.with_name("checkpoint.pt")
    results = {}
    for kind in ("values", "embeddings"):
        results[f"DDP {kind}"] = train(Model(kind), DistributedDataParallel, **here)
        results[f"FSDP {kind}"] = train(Model(kind), sharded, **here)
    results["compiled"] = train(Model(), compiled, **here)
    results["stopped"] = train(
        Model(), DistributedDataParallel, **here, stop=MIDDLE, checkpoint=checkpoint
    )
    dist.barrier()
    results["restarted"] = train(Model(), DistributedDataParallel, **here, checkpoint=checkpoint)
    results["one adapter"] = train(Model(use=("decoder",)), sharded, **here)
    results["mask alone"] = train(Model(use=()), sharded, **here)
    narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    results["narrow"] = train(Model(), lambda model: sharded(model, mp_policy=narrow), **here)
    torch.save(
        {name: vars(result) for name, result in results.items()},
        rendezvous.with_name(f"rank{rank}.pt"),
    )
    # Both are done before either leaves: gloo's own threads abort a process whose peer closes the
    # connection too early.
    store.set(f"finished {rank}", "")
    store.wait([f"finished {other}" for other in range(WORLD)])
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

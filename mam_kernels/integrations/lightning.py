"""Lightning: Multinomial Attention Masking added to a LightningModule that exists, with a learning
rate of its own.

    class WithMam(MaskedPretrainingMixin, TheirModule):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_masking(ScGptMasking(...), encoder="model.transformer_encoder", lr=1e-4)

        def mask_batch(self, batch):
            masked = self.masking(batch["gene_ids"], batch["values"], batch["src_key_padding_mask"])
            return {**batch, "masked_values": masked.inputs, "mask": masked.mask}, masked

Works with ``lightning`` and with ``pytorch_lightning``, and imports neither.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from . import core
from .formats import warn_of_untried
from .places import ContextHook, Place, place_of
from .reading import NotReadError, reached_modules

OURS_OR_LIGHTNING_S = (__name__, "lightning.", "pytorch_lightning.")
SCALED = (
    "lr",
    "initial_lr",
    "max_lr",
    "min_lr",
)  # keys of an optimizer's group that a scheduler reads
SCALED_LISTS = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")  # of a scheduler, one number a group
COPIED_LISTS = ("lr_lambdas",)


if TYPE_CHECKING:

    class _Module(nn.Module):
        """Attributes of the LightningModule that the mixin uses."""

        automatic_optimization: bool
        validation_step: Callable[..., Any]

        def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any: ...

        def configure_optimizers(self) -> Any: ...

        def log_dict(self, dictionary: dict[str, Tensor]) -> None: ...

else:
    _Module = object


class MaskedPretrainingMixin(_Module):
    """A base class before LightningModule: batches are masked before its steps, and the penalty is
    added to its loss.

    ``MaskingStep.statistics`` are logged with each training step, as ``masking/entropy`` (1 =
    uniform masks). Validation batches are masked too, by the masks of step 0. Checkpoints hold the
    masking and how many batches it masked.

    The first run of each of the two steps checks that the model reads the masked inputs. A module
    that does its own masking is an error, which names the method to override.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherited = getattr(
            cls, "validation_step", None
        )  # Lightning's own does nothing, and overriding it would ask for validation
        if (
            inherited is not None
            and "validation_step" not in vars(cls)
            and not inherited.__module__.startswith(OURS_OR_LIGHTNING_S)
        ):
            cls.validation_step = _masked_validation(inherited)

    def add_masking(
        self,
        masking: core.MaskingStep,
        *,
        encoder: str | Place | None = None,
        decoder: str | Place | None = None,
        lr: float = 1e-4,
        weight_decay: float | None = None,
        penalty: float = core.PENALTY,
    ) -> None:
        """Attach a masking, at the end of ``__init__``.

        Args:
            masking: any of ``mam_kernels.integrations``; becomes ``self.masking``.
            encoder, decoder: names of the submodules whose first argument the context is added to,
                as "model.transformer_encoder"; or a ``Place`` of one, for another argument.
            lr: learning rate of the masking; it follows the module's schedule.
            weight_decay: of the masking; None: that of the module.
            penalty: weight of the latents' squared output norm in the loss.

        Raises:
            TypeError, ValueError: an argument is not as above, or the module has a ``masking``
                already.
        """
        if not isinstance(masking, core.MaskingStep):
            raise TypeError(
                "masking: expected a MaskingStep of mam_kernels.integrations; "
                f"got {type(masking).__name__}"
            )
        if hasattr(self, "masking"):
            raise ValueError(
                "masking: expected a module without an attribute of this name; "
                f"{type(self).__name__} has one"
            )
        if not self.automatic_optimization:
            raise ValueError(
                "automatic_optimization: expected True, since the penalty is added to the loss "
                "that training_step returns; got False"
            )
        places = {
            name: None if place is None else place_of(name, place, named=True)
            for name, place in (("encoder", encoder), ("decoder", decoder))
        }
        for place in filter(None, places.values()):
            self.get_submodule(str(place.module))
        warn_of_untried("lightning")
        self.masking = masking
        self._places = places
        self._steps_seen: set[str] = set()
        self._masking_lr, self._masking_weight_decay, self._penalty = lr, weight_decay, penalty

    def mask_batch(self, batch: Any) -> tuple[Any, core.MaskedBatch]:
        """Yours to write: the batch as the module's steps expect it, masked by ``self.masking``,
        and what that returned.
        """
        raise NotImplementedError(
            f"mask_batch: {type(self).__name__} does not say how its batches are masked"
        )

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        batch, masked = self.mask_batch(batch)
        with self._masked_by(masked, "training_step"):
            output = super().training_step(batch, *args, **kwargs)
        self.log_dict({f"masking/{name}": x for name, x in self.masking.statistics(masked).items()})
        if output is None:  # Lightning skips the step
            return None
        penalty = self._penalty * masked.penalty
        return (
            output + penalty
            if isinstance(output, Tensor)
            else {**output, "loss": output["loss"] + penalty}
        )

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        _separate(
            configured,
            list(self.masking.parameters()),
            self._masking_lr,
            self._masking_weight_decay,
        )
        return configured

    @contextmanager
    def _masked_by(self, masked: core.MaskedBatch, step: str) -> Iterator[None]:
        """While a step of the module runs: inject the context, and the first time check that the
        masked inputs are read.
        """
        places = {
            name: None
            if place is None
            else place._replace(module=self.get_submodule(str(place.module)))
            for name, place in self._places.items()
        }
        there = [place for place in places.values() if place is not None]
        first = step not in self._steps_seen
        try:
            if first and not there:
                sources = (masked.inputs, *masked.derived)
                with (
                    reached_modules(self, sources, without=self.masking),
                    masked.injected(),
                ):
                    yield
            else:
                for place in there if first else ():
                    ContextHook.of(place).verified = False
                with masked.injected(**places):
                    yield
        except NotReadError as error:
            owner = next(
                kind.__name__
                for kind in type(self).__mro__
                if step in vars(kind)
                and not vars(kind)[step].__module__.startswith(OURS_OR_LIGHTNING_S)
            )
            raise NotReadError(
                f"{step}: the model did not read the masked inputs, so {owner}.{step} masks by "
                f"itself or reads another part of the batch; override {step} so that it uses what "
                f"mask_batch returns"
            ) from error
        self._steps_seen.add(step)


def _masked_validation(inherited: Any) -> Any:
    def validation_step(self: MaskedPretrainingMixin, batch: Any, *args: Any, **kwargs: Any) -> Any:
        batch, masked = self.mask_batch(batch)
        with self._masked_by(masked, "validation_step"):
            return inherited(self, batch, *args, **kwargs)

    return validation_step


def _separate(
    configured: Any, masking: list[nn.Parameter], lr: float, weight_decay: float | None
) -> None:
    """Give the masking a group of its own, with the options of the group it came from, in what
    ``configure_optimizers`` returned.
    """
    found = list(_leaves(configured))
    optimizers = [x for x in found if isinstance(x, Optimizer)]
    if not optimizers:
        raise ValueError(
            f"configure_optimizers: expected an optimizer in what it returns; got {configured!r}"
        )
    ours = {id(parameter) for parameter in masking}
    optimizer = next(
        (
            x
            for x in optimizers
            if any(id(p) in ours for group in x.param_groups for p in group["params"])
        ),
        optimizers[0],
    )
    own = [
        group
        for group in optimizer.param_groups
        if any(id(parameter) in ours for parameter in group["params"])
    ]
    if own and all(id(parameter) in ours for group in own for parameter in group["params"]):
        return  # the module has grouped them itself
    for group in own:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ours]
    like = (own or optimizer.param_groups)[0]
    index = next(i for i, group in enumerate(optimizer.param_groups) if group is like)
    ratio = lr / float(
        like.get("max_lr", like.get("initial_lr", like["lr"]))
    )  # to the rate that a schedule rises to, or starts from
    group = {**like, "params": masking} | {key: like[key] * ratio for key in SCALED if key in like}
    optimizer.add_param_group(
        group if weight_decay is None else {**group, "weight_decay": weight_decay}
    )
    for scheduler in found:
        if scheduler is not optimizer and getattr(scheduler, "optimizer", None) is optimizer:
            _extend(scheduler, index, ratio)


def _extend(scheduler: Any, index: int, ratio: float) -> None:
    """Let a scheduler that was made before the last group of its optimizer schedule that one as the
    one at ``index``.
    """
    for inner in getattr(scheduler, "_schedulers", ()):
        _extend(inner, index, ratio)
    for name in (*SCALED_LISTS, *COPIED_LISTS):
        numbers = getattr(scheduler, name, None)
        if isinstance(numbers, list):
            setattr(
                scheduler,
                name,
                [*numbers, numbers[index] * ratio if name in SCALED_LISTS else numbers[index]],
            )


def _leaves(configured: Any) -> Iterator[Any]:
    """Optimizers and schedulers, wherever Lightning lets them stand."""
    if isinstance(configured, dict):
        configured = configured.values()
    elif not isinstance(configured, (list, tuple)):
        yield configured
        return
    for value in configured:
        yield from _leaves(value)

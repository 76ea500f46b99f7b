"""detectron2's trainers, with a sampled stitch per iteration and accumulated gradients."""

import contextlib
import hashlib
import logging
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import (
    StitchedViT,
    find_stitched_vit,
    operating_at,
    train_on_given_masks,
)
from snnet_vitdet.stitching import CostTable, SamplerBySize, Stitch

from .checkpoint import check_resumed_optimizer
from .ddp import wrap_for_processes
from .precision import training_precision
from .samplers import build_sampler, costs_by_size
from .settings import Config

__all__ = ["StitchedAMPTrainer", "StitchedTrainer", "build_trainer"]

logger = logging.getLogger(__name__)

# detectron2 logs a traceback of the error that ends a training; an InputError needs none.
logging.getLogger("detectron2.engine.train_loop").addFilter(
    lambda record: not (record.exc_info and isinstance(record.exc_info[1], InputError))
)


def build_trainer(
    config: Config,
    model: nn.Module,
    data_loader: Any,
    optimizer: torch.optim.Optimizer,
    costs: CostTable | None,
) -> "StitchedTrainer":
    """Builds the trainer for the precision of a config, with its sampler.

    Args:
        config: The whole config.
        model: The detector; wrapped here if there are several processes. Its mask head will learn
            from the objects that have a mask.
        data_loader: Loader of this process; a TrainLoader if the image size varies.
        optimizer: Optimizer of the model's parameters.
        costs: Costs of its stitches; None for a baseline, which has none.
    """
    kwargs = {
        "scope": config.train.stitch_scope,
        "accumulation_steps": config.train.accumulation.steps,
        "accumulation_stitch": config.train.accumulation.stitch,
        "clip_grad_norm": config.train.clip_grad_norm,
        "seed": config.train.seed,
        "backbone": find_stitched_vit(model),
    }
    if costs is not None:
        kwargs["sampler"] = build_sampler(config, costs)
    if config.train.image_sizes:
        kwargs["image_size_at"] = data_loader.image_size_at
        if costs is not None:
            tables = costs_by_size(config)
            samplers = {size: build_sampler(config, table) for size, table in tables.items()}
            kwargs["sampler"] = SamplerBySize(samplers, data_loader.image_size_at)
    precision = training_precision(config)
    train_on_given_masks(model)
    model = wrap_for_processes(config, model, precision)
    if precision == torch.float32:
        return StitchedTrainer(model, data_loader, optimizer, **kwargs)
    scaler = torch.amp.GradScaler(enabled=precision == torch.float16)
    return StitchedAMPTrainer(
        model, data_loader, optimizer, precision=precision, grad_scaler=scaler, **kwargs
    )


class StitchedTrainer(SimpleTrainer):
    """Trains a sampled stitch per iteration in full precision.

    An iteration is one step of the optimizer. The batch of a process is split into micro-batches
    whose gradients are accumulated: the same arithmetic in less memory. With a stitch for each
    micro-batch, one process trains as many stitches per iteration as several processes.

    Attributes:
        trained_iter: Index of the iteration whose step the weights and the optimizer have; None
            before the first step of this process, and during a step.
    """

    trained_iter: int | None = None

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Sequence],
        optimizer: torch.optim.Optimizer,
        *,
        backbone: StitchedViT | None = None,
        sampler: Callable[[int, int], int] | None = None,
        scope: str = "shared",
        accumulation_steps: int = 1,
        accumulation_stitch: str = "own",
        clip_grad_norm: float | None = None,
        image_size_at: Callable[[int], int | None] | None = None,
        seed: int = 0,
        **kwargs: object,
    ) -> None:
        """
        Args:
            model: Returns a dict of losses for a micro-batch; wrapped for several processes or
                not.
            data_loader: Yields the batch of this process for each iteration.
            optimizer: Optimizer of the model's parameters.
            backbone: The stitched backbone inside the model, not wrapped; None for a model without
                stitches (a baseline).
            sampler: Returns the stitch id of (iteration, slot).
            scope: ``shared``: all processes train the same stitch in an iteration, so none waits
                for another. ``process``: each process draws its own.
            accumulation_steps: Number of equal micro-batches of a process's batch.
            accumulation_stitch: ``own``: each micro-batch draws its own stitch. ``same``: one
                stitch for the whole iteration.
            clip_grad_norm: Largest norm of the gradient of all parameters together, above 0; None
                clips nothing.
            image_size_at: Returns the image size of an iteration, to which the loader resizes its
                images; None if it does not vary.
            seed: Seed of the model's own randomness.
            **kwargs: Arguments of detectron2's trainer. Gradients are always cleared before the
                forward, and metrics written before the next iteration.
        """
        super().__init__(model, data_loader, optimizer, **kwargs)
        self.clip_grad_norm = clip_grad_norm
        self.backbone = backbone
        self.sampler = sampler
        self.accumulation_steps = accumulation_steps
        slots = range(accumulation_steps) if accumulation_stitch == "own" else [0]
        # Disjoint between processes that draw their own.
        first = comm.get_rank() * len(slots) if scope == "process" else 0
        self.slots = [first + slots[step % len(slots)] for step in range(accumulation_steps)]
        self.image_size_at = image_size_at
        self.seed = seed

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Loads the state of a training, before hooks are registered.

        The states of hooks are left out: detectron2 would warn that it has no such hooks. The only
        hook with a state is that of the learning rate, which follows from the iteration.

        Raises:
            InputError: If its optimizer has other settings than that of this trainer.
        """
        optimizer = state_dict["optimizer"]
        check_resumed_optimizer(self.optimizer, optimizer)
        # Kernels depend on the device of this run, which may be another than the checkpoint's.
        groups = [
            {**saved, **{name: own[name] for name in ("foreach", "fused") if name in own}}
            for own, saved in zip(
                self.optimizer.param_groups, optimizer["param_groups"], strict=False
            )
        ]
        optimizer = {**optimizer, "param_groups": groups}
        super().load_state_dict({**state_dict, "optimizer": optimizer, "hooks": {}})

    def run_step(self) -> None:
        """One iteration: a forward and backward for each micro-batch, then a step.

        Raises:
            FloatingPointError: If a loss or a proposal is not finite; names stitches and images.
                The weights are those before the iteration.
            InputError: If the batch cannot be split into equal micro-batches.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        stitches: list[Stitch] = []
        losses: dict[str, torch.Tensor] = {}
        image_size = None if self.image_size_at is None else self.image_size_at(self.iter)
        with operating_at(self.model, image_size, None):
            for step, micro_batch in enumerate(self._split(batch)):
                self._seed_model(step)
                if self.backbone is not None:
                    stitch_id = self.sampler(self.iter, self.slots[step])
                    stitches.append(self.backbone.set_stitch(stitch_id))
                # The forward is inside: DDP decides there whether the backward will reduce.
                with self._reduced_in_the_last_of(step):
                    try:
                        loss_dict = self._forward(micro_batch)
                    except FloatingPointError as error:
                        # detectron2 checks its proposals, which are not finite before the losses.
                        where = self._what_was_trained(stitches, losses, batch)
                        raise FloatingPointError(f"{error}\n{where}") from error
                    for name, loss in loss_dict.items():
                        share = loss.detach() / self.accumulation_steps
                        losses[name] = losses[name] + share if name in losses else share
                    if step + 1 == self.accumulation_steps:
                        on_host = _start_copy(losses)
                    self._backward(sum(loss_dict.values()) / self.accumulation_steps)
        if image_size is not None:
            self.storage.put_scalar("image_size", image_size, smoothing_hint=False)
        self.after_backward()
        self._write(on_host(), data_time, stitches, batch)
        self.trained_iter = None
        self._update()
        self.trained_iter = self.iter

    def _split(self, batch: Sequence) -> list[Sequence]:
        """The micro-batches: equal parts of the batch, in its order."""
        size, rest = divmod(len(batch), self.accumulation_steps)
        if rest or not size:
            raise InputError(
                f"the batch of {len(batch)} images of a process cannot be split into "
                f"{self.accumulation_steps} equal micro-batches: change train.accumulation.steps"
            )
        return [batch[i * size : (i + 1) * size] for i in range(self.accumulation_steps)]

    def _seed_model(self, step: int) -> None:
        # Stochastic depth and the sampling of RPN anchors and proposals draw from torch's global
        # generator. Its seed depends on the iteration, so a resume is exact, and on the place of
        # the micro-batch in the batch of all processes, which have different images.
        place = comm.get_rank() * self.accumulation_steps + step
        torch.manual_seed(_step_seed(self.seed, self.iter, place))

    def _reduced_in_the_last_of(self, step: int) -> contextlib.AbstractContextManager:
        """No exchange of gradients between processes except in the last step."""
        if step + 1 < self.accumulation_steps and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _forward(self, batch: Sequence) -> dict[str, torch.Tensor]:
        return self.model(batch)

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self._clip_gradients()
        self.optimizer.step()

    def _clip_gradients(self) -> None:
        if self.clip_grad_norm is None:
            return
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm)
        self.storage.put_scalar("grad_norm", norm.item())

    def _write(
        self,
        losses: dict[str, torch.Tensor],
        data_time: float,
        stitches: list[Stitch],
        batch: Sequence,
    ) -> None:
        """Writes the metrics; raises FloatingPointError if a loss, on the host, is not finite."""
        if stitches:
            self.storage.put_scalars(
                stitch_id=stitches[-1].id,
                stitch_kind=self.backbone.space.kinds.index(stitches[-1].kind),
                smoothing_hint=False,
            )
        # The metrics are means over the processes; this log names the process.
        finite = all(map(torch.isfinite, losses.values()))
        if not finite:
            where = self._what_was_trained(stitches, losses, batch)
            logger.error("A loss is not finite in %s", where)
        try:
            self._write_metrics(losses, data_time)
        except FloatingPointError as error:
            if finite:
                where = self._what_was_trained(stitches)
                where += ", its own losses are finite; another process's log names the images"
            raise FloatingPointError(f"{error}\n{where}") from error

    def _what_was_trained(
        self,
        stitches: list[Stitch],
        losses: Mapping[str, torch.Tensor] | None = None,
        batch: Sequence = (),
    ) -> str:
        names = [f"stitch {s.id} ({s.name}, kind {s.kind})" for s in dict.fromkeys(stitches)]
        where = f"iteration {self.iter}, process {comm.get_rank()}: "
        where += ", ".join(names) or "a baseline"
        if losses is None:
            return where
        parts = "".join(f", {name} {loss.item():g}" for name, loss in losses.items())
        samples = (sample for sample in batch if isinstance(sample, Mapping))
        files = [str(sample["file_name"]) for sample in samples if "file_name" in sample]
        return f"{where}{parts}; images: {', '.join(files) or 'without file names'}"


def _start_copy(losses: Mapping[str, torch.Tensor]) -> Callable[[], dict[str, torch.Tensor]]:
    """Starts one copy of the losses to the host; returns a function that waits for its end.

    Started before the backward pass is queued, it ends when the device has computed the losses. The
    device then works on the backward pass while the host checks them and queues the step.
    """
    stacked = torch.stack(list(losses.values()))
    copied = stacked.to("cpu", non_blocking=True)
    event = None
    if stacked.is_cuda:
        event = torch.cuda.current_stream(stacked.device).record_event()

    def wait() -> dict[str, torch.Tensor]:
        if event is not None:
            event.synchronize()
        return dict(zip(losses, copied, strict=True))

    return wait


def _step_seed(seed: int, iteration: int, place: int) -> int:
    packed = struct.pack("<3Q", seed, iteration, place)
    # torch takes a seed of 63 bits on every device.
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


class StitchedAMPTrainer(StitchedTrainer, AMPTrainer):
    """Automatic mixed precision; takes ``precision`` and ``grad_scaler`` as AMPTrainer does.

    Checkpoints hold the state of the scaler as detectron2's do. The metric ``skipped_steps`` counts
    the steps since the start or the last resume that were skipped because a gradient overflowed.
    """

    _skipped = 0

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Loads the state of a training, also of one in another precision."""
        if not state_dict.get("grad_scaler"):
            # bfloat16 needs no scaling.
            state_dict = {**state_dict, "grad_scaler": self.grad_scaler.state_dict()}
        super().load_state_dict(state_dict)

    def _forward(self, batch: Sequence) -> dict[str, torch.Tensor]:
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, dtype=self.precision):
            return super()._forward(batch)

    def _backward(self, loss: torch.Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        if self.clip_grad_norm is not None:
            self.grad_scaler.unscale_(self.optimizer)
        self._clip_gradients()
        self.grad_scaler.step(self.optimizer)
        before = self.grad_scaler.get_scale()
        self.grad_scaler.update()
        if self.grad_scaler.is_enabled():
            # The scale falls if, and only if, a gradient has overflowed.
            self._skipped += self.grad_scaler.get_scale() < before
            self.storage.put_scalar("skipped_steps", self._skipped, smoothing_hint=False)

"""The training loop.

Every random number of step k follows from (seed, k): the batch, the time steps, the noise, which latents are dropped.
A run that is interrupted and resumed is therefore the run that was not; and since all processes draw the whole
batch's numbers and keep their share, so are several processes one process with the larger batch (dropout apart, whose
numbers are drawn inside the network, and batch normalisation, whose statistics are of each process's share).

What the processes must agree on travels in one exchange of every step, between the gradients and the optimizer: is the
loss finite, has anybody been told to stop, has a checkpoint failed. So all do the same, and none waits for another.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from causaldiffae import dist_util
from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.checkpoints.remote import RemoteRun
from causaldiffae.checkpoints.writer import CheckpointWriter
from causaldiffae.config import Config
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.label_subsets import digest
from causaldiffae.errors import InputError
from causaldiffae.files.storage import is_remote
from causaldiffae.image_datasets import Batch, BatchSource
from causaldiffae.logger import Logger, progress_bar
from causaldiffae.model import TrainingDraws
from causaldiffae.nn import update_ema
from causaldiffae.resample import create_named_schedule_sampler
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint, load_model, model_entry
from causaldiffae.training.acceleration import accelerate, activation_dtype
from causaldiffae.training.previews import draw_counterfactuals
from causaldiffae.training.resuming import batch_order, check_same_run, checkpoint_to_resume
from causaldiffae.training.skipped_steps import DUMP, SkippedSteps
from causaldiffae.training.step_draws import draw_step, step_seed
from causaldiffae.training.stopping import StopRequest

LOGS = ("progress.csv", "config.yaml")
LABEL_TERMS = ("label_kl", "label_mse")
SHOWN = ("loss", "label_kl", "images_per_second")


class TrainLoop:
    """Trains a model until `config.train.total_steps`.

    Args:
        config: everything that decides the result.
        data: the training split; `data.labelled` says which labels may be used.
        logger: where figures and pictures go; its `run_dir` takes the checkpoints.
        test: images for the pictures made while training.
        stop: what may ask for an early end; by default the time limit `max_hours`.

    Resumes from `resume_checkpoint`, or else from the newest checkpoint in the run directory.

    Attributes:
        step: steps done.
        skipped: how many of them changed nothing, because their loss or gradient was not finite.
        stopped: the loop was asked to end before its last step.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        logger: Logger,
        test: ImageData | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.config, self.spec, self.logger, self.test = config, data.spec, logger, test
        self.device = dist_util.dev()
        world, train = dist_util.world_size(), config.train
        self.stop = StopRequest(train.max_hours) if stop is None else stop
        self.stopped = False
        self.skipped = SkippedSteps(train.max_skipped_steps)
        self.writer = CheckpointWriter(
            logger.run_dir,
            background=train.background_save,
            keep_last=train.keep_last,
            keep_every=train.keep_every or None,
            afterwards=self._upload if is_remote(train.run_dir) else None,
        )
        self.image_names = data.ids
        self.source = BatchSource(
            data, train.batch_size * world, seed=train.seed, device=self.device, rank=dist_util.rank(), world=world
        )
        torch.manual_seed(step_seed(train.seed, 0, "init"))
        self.model, self.diffusion = create_model_and_diffusion(config, self.spec)
        if train.init_weights:
            self._start_from(train.init_weights)
        self.model.to(self.device)
        accelerate(self.model, self.device, compiled=train.compile, channels_innermost=train.channels_last)
        self.autocast = activation_dtype(train.use_bf16, self.device)
        self.sampler = create_named_schedule_sampler(train.schedule_sampler, self.diffusion.num_timesteps)
        step_type = model_entry(config.model.model_type).training_step
        self.training_step: torch.nn.Module = step_type(self.model, self.diffusion, config.loss)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True
        )
        self.emas = {rate: _copy_state(self.model) for rate in config.ema_rates()}
        self.step = 0
        self._resume(train.run_dir if is_remote(train.run_dir) else logger.run_dir)
        dist_util.sync_params(self.model.state_dict().values())
        if world > 1:
            self.training_step = DistributedDataParallel(self.training_step)

    # ------------------------------------------------------------------ state

    def _start_from(self, path: str) -> None:
        loaded = load_model(path)
        if loaded.spec.to_dict() != self.spec.to_dict() or loaded.config.model != self.config.model:
            raise InputError(f"init_weights: {path} holds weights of another data set or another network")
        self.model.load_state_dict(loaded.model.state_dict())

    def _resume(self, run_dir: str | Path) -> None:
        explicit = self.config.train.resume_checkpoint
        path = dist_util.from_main(lambda: checkpoint_to_resume(explicit, run_dir))
        if path is None:
            return
        checkpoint = load_checkpoint(path, with_training=True)
        check_same_run(checkpoint, self.config, self.source)
        state = checkpoint.training_state
        self.model.load_state_dict(checkpoint.model_state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        self.skipped.load_state_dict(state.get("skipped", self.skipped.state_dict()))
        self.step = state["step"]
        for rate in self.emas:
            self.emas[rate] = {
                key: value.to(self.device)
                for key, value in load_checkpoint(checkpoint.path, ema=rate).model_state.items()
            }

    def save(self) -> None:
        """Starts writing a checkpoint of the current step (one process does); an error shows at the next step.

        Raises:
            InputError: if weights are not finite; such weights are never written.
        """
        if dist_util.any_of(not self._weights_are_finite()):
            raise InputError(
                f"the weights are no longer finite after step {self.step} and are not saved; the checkpoints before "
                "are untouched; a smaller lr or grad_clip may help"
            )
        if not dist_util.is_main():
            return
        states = {
            "model_state": self.model.state_dict(),
            "ema_states": self.emas,
            "training_state": {
                "step": self.step,
                "optimizer": self.optimizer.state_dict(),
                "sampler": self.sampler.state_dict(),
                "skipped": self.skipped.state_dict(),
                "labelled": self.source.labelled,
                "order": batch_order(self.source),
            },
            "config": describe_checkpoint(self.config, self.spec)
            | {"labelled_images": int(self.source.is_labelled.sum()), "labelled": digest(self.source.is_labelled)},
        }
        self.writer.write(self.step, states)

    @torch.no_grad()
    def _weights_are_finite(self) -> bool:
        states = [self.model.state_dict(), *self.emas.values()]
        floating = [v for state in states for v in state.values() if v.is_floating_point() and v.numel()]
        # Of numbers that are not finite, one is the least or the greatest, or NaN, which then is both.
        return bool(torch.stack([end for value in floating for end in torch.aminmax(value)]).isfinite().all())

    def _upload(self, folder: Path) -> None:
        train = self.config.train
        remote = RemoteRun(train.run_dir, train.keep_last, train.keep_every or None)
        remote.upload(folder)
        remote.upload_logs(LOGS)

    def _raise_failed_save(self) -> None:
        self.writer.check()
        raise InputError("process 0 could not write a checkpoint")

    # ------------------------------------------------------------------ training

    def run(self) -> None:
        """Trains from the current step to the last, with checkpoints, figures and pictures on the way.

        Returns early, with a checkpoint and `stopped` set, when any process is asked to stop. All checkpoints are on
        disk when it returns.

        Raises:
            InputError: if too many steps in a row, or the weights, are not finite, or a checkpoint cannot be written.
        """
        train = self.config.train
        with (
            self.writer,
            progress_bar(total=train.total_steps, initial=self.step, desc=f"training {self.spec.name}") as bar,
        ):
            started, images = time.perf_counter(), 0
            while self.step < train.total_steps and not self.stopped:
                means = self.run_step()
                bar.update()
                images += self.source.batch_size
                for key, value in means.items():
                    self.logger.logkv_mean(key, value)
                last = self.step == train.total_steps
                logged = last or self.step % train.log_interval == 0
                if logged:
                    self.logger.logkv("images_per_second", images / (time.perf_counter() - started))
                    self.logger.logkv("skipped_steps", self.skipped.total)
                if not last and not self.stopped and self.step % train.sample_interval == 0:
                    started += self.draw_pictures()
                if logged and not last:
                    bar.set_postfix(self._dump())
                    started, images = time.perf_counter(), 0
                if last or self.stopped or self.step % train.save_interval == 0:
                    self.save()
                if last:  # what was learned is safe before it is looked at
                    self.draw_pictures()
                    bar.set_postfix(self._dump())
            self.writer.finish()
            if dist_util.any_of(self.writer.failed):
                self._raise_failed_save()

    def _dump(self) -> dict[str, str]:
        """Writes a row; returns what the progress bar shows of it."""
        values = self.logger.dumpkvs(self.step)
        return {key: f"{values[key]:.3g}" for key in SHOWN if key in values}

    def run_step(self) -> dict[str, float]:
        """One optimizer step; returns the parts of the loss, averaged over this process's images.

        A step whose loss or gradient is not finite in any process leaves the weights as they are, and returns nothing.
        """
        train, loss_config = self.config.train, self.config.loss
        batch = self.source.batch(self.step)
        if not self.config.model.class_cond:
            batch = batch._replace(classes=None)
        draws = self._draw(batch)
        kl_weight = loss_config.kl_weight * min(1.0, (self.step + 1) / max(loss_config.kl_anneal_steps, 1))
        torch.manual_seed(step_seed(train.seed, self.step, f"dropout/{dist_util.rank()}"))
        size = train.microbatch or len(batch.images)
        pieces = [slice(i, i + size) for i in range(0, len(batch.images), size)]
        self.training_step.train()
        self.optimizer.zero_grad(set_to_none=True)
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # the forward pass changes running statistics
        sums: dict[str, Tensor] = {}
        losses = []
        for piece in pieces:
            share = len(batch.images[piece]) / len(batch.images)
            # Gradients travel once, after the last piece.
            with self._no_sync(piece is not pieces[-1]), dist_util.waiting_for_others("to average gradients"):
                with self._autocast():
                    loss, terms = self.training_step(*_arguments(batch, draws, piece, kl_weight))
                (loss * share).backward()
            losses.append(terms["loss"].detach())
            for key, value in (*terms.items(), ("total", loss)):
                # Label terms are means over the images that have labels.
                of_all = batch.labelled_share if key.startswith(LABEL_TERMS) else 1.0
                mean = value.detach().mean().double() * share / (of_all or 1.0)
                sums[key] = sums[key] + mean if key in sums else mean
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.writer.wait_for_disk()  # else this step would be one more than an interval that a crash can take
        means = self._exchange(sums, norm)
        self.step += 1
        if not math.isfinite(means.pop("everywhere")):
            self._skip(draws.t, buffers)
            return {}
        if train.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), train.grad_clip, norm)
        else:
            del means["grad_norm"]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step - 1)
        self.optimizer.step()
        self.sampler.update(draws.t, torch.cat(losses))
        self.skipped.note_good()
        self._update_emas()
        return means

    def _exchange(self, sums: dict[str, Tensor], norm: Tensor) -> dict[str, float]:
        """All that the host must know of a step, in one transfer: what only the processes together know, and `sums`."""
        ours = [float(bool(self.stop.reason())), float(self.writer.failed)]
        together = torch.cat(
            [torch.stack([sums["total"], norm.double()]), torch.tensor(ours, dtype=torch.float64, device=self.device)]
        )
        dist_util.all_reduce_mean(together)
        values = torch.cat([together, torch.stack([*sums.values()])]).tolist()
        total, grad_norm, stop, failed = values[:4]
        if failed:
            self._raise_failed_save()
        self.stopped = stop > 0
        return dict(zip(sums, values[4:], strict=True)) | {"grad_norm": grad_norm, "everywhere": total + grad_norm}

    @torch.no_grad()
    def _skip(self, t: Tensor, buffers: list[Tensor]) -> None:
        """Leaves a step without a trace in the model, but one in the books; `step` counts it already."""
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        everyone = torch.cat(dist_util.all_gather(t)).tolist()
        indices = self.source.indices(self.step - 1).tolist()
        names = [self.image_names[i] for i in indices]
        self.skipped.note({"step": self.step - 1, "t": everyone, "indices": indices, "images": names})
        if dist_util.is_main():
            self.logger.info(f"step {self.step - 1}: loss or gradient not finite, skipped; {DUMP} names its images")
            with suppress(OSError):  # a full disk is told of when a checkpoint meets it, in all processes
                self.skipped.dump(self.logger.run_dir)
        self.skipped.check()

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then constant, then linearly down to 0 over the last `lr_anneal_steps`."""
        train = self.config.train
        rate = train.lr * min(1.0, (step + 1) / max(train.warmup_steps, 1))
        if train.lr_anneal_steps:
            rate *= min(1.0, (train.total_steps - step) / train.lr_anneal_steps)
        return rate

    def _no_sync(self, wanted: bool) -> AbstractContextManager[None]:
        step = self.training_step
        return step.no_sync() if wanted and isinstance(step, DistributedDataParallel) else nullcontext()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def _draw(self, batch: Batch) -> TrainingDraws:
        """This process's share of the random numbers of the current step."""
        shape, seed = self.model.latent_shape, self.config.train.seed
        return draw_step(seed, self.step, batch.images, shape, self.sampler, self.config.loss)

    @torch.no_grad()
    def _update_emas(self) -> None:
        state = self.model.state_dict()
        for rate, ema in self.emas.items():
            value = float(rate)
            if self.config.train.ema_warmup:
                value = min(value, (1 + self.step) / (10 + self.step))
            floating = [key for key in ema if ema[key].is_floating_point()]
            update_ema([ema[key] for key in floating], [state[key] for key in floating], value)
            for key in ema.keys() - set(floating):
                ema[key].copy_(state[key])

    # ------------------------------------------------------------------ pictures

    def draw_pictures(self) -> float:
        """Test images, their reconstructions, and interventions, drawn with the first moving average; the seconds."""
        if self.test is None or not dist_util.is_main():
            return 0.0
        began = time.perf_counter()
        state = _copy_state(self.model)
        self.model.load_state_dict(self.emas[self.config.ema_rates()[0]])
        shown = draw_counterfactuals(self.model, self.config.diffusion, self.test, self.device)
        self.logger.log_image("counterfactuals", shown.picture, self.step)
        self.logger.logkvs({f"effectiveness_{name}": error for name, error in shown.effectiveness.items()})
        self.model.load_state_dict(state)
        return time.perf_counter() - began


def _arguments(batch: Batch, draws: TrainingDraws, piece: slice, kl_weight: float) -> tuple[Any, ...]:
    part = TrainingDraws(**{name: value[piece] for name, value in vars(draws).items()})
    classes = None if batch.classes is None else batch.classes[piece]
    images, labels, labelled = batch.images[piece], batch.labels[piece], batch.labelled[piece]
    return images, labels, classes, labelled, part, kl_weight, batch.labelled_share


def _copy_state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}

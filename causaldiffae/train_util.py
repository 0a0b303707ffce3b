"""The training loop.

The random numbers of a step depend only on the seed and the step, so a resumed run reproduces an uninterrupted one.
Every process draws the numbers of the whole batch and uses its share, so several processes reproduce one process with a
larger batch, except for dropout and batch-normalisation statistics.

One all-reduce per step, between backward pass and optimizer, tells all processes whether the loss is finite, whether to
stop, and whether a checkpoint has failed. They therefore leave the loop together.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from causaldiffae import dist_util
from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.checkpoints.folder_layout import BEST, BEST_FILES
from causaldiffae.config import Config
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.label_subsets import digest, labelled_mask
from causaldiffae.errors import InputError
from causaldiffae.files.storage import is_remote
from causaldiffae.image_datasets import Batch, BatchSource
from causaldiffae.logger import PROGRESS, Logger, progress_bar
from causaldiffae.model import TrainingDraws
from causaldiffae.nn import float_for_tables, update_ema
from causaldiffae.published.autoencoder import network_spec
from causaldiffae.resample import create_named_schedule_sampler
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint
from causaldiffae.training.acceleration import accelerate, activation_dtype, uncompiled
from causaldiffae.training.automatic import choose, with_recorded
from causaldiffae.training.codes import Codes
from causaldiffae.training.distillation import create_training_step
from causaldiffae.training.random_draws import draw_for_step, step_arguments, stream_seed
from causaldiffae.training.response_tracker import ResponseTracker
from causaldiffae.training.resuming import (
    batch_order,
    changed_options,
    check_same_run,
    checkpoint_to_resume,
    listed,
    load_initial_weights,
    restore_optimizer,
    with_layout_of,
)
from causaldiffae.training.saving import RETRY_SECONDS, all_finite, create_writer, tolerated, upload_logs
from causaldiffae.training.skipped_steps import REPORT, SkippedSteps
from causaldiffae.training.stopping import StopRequest

LABEL_TERMS = ("label_kl", "label_mse")
SHOWN = {"mse": "mse", "label_mse": "label_mse", "images_per_second": "images/s"}
"""Columns of the log in the progress bar, and their names there; docs/practical_guide.md explains them."""


class StepResult(NamedTuple):
    """Loss terms averaged over the images of this process, and the gradient norm.

    `finite` is whether the loss and the gradient are finite in every process.
    """

    means: dict[str, float]
    grad_norm: float
    finite: bool


class TrainLoop:
    """Trains a model for `config.train.total_steps` steps.

    Resumes from `resume_checkpoint`, or else from the newest checkpoint in the run directory.

    Args:
        config: complete configuration.
        data: training split; `data.observed` marks the labels that are used.
        logger: logger of the run; checkpoints are written to its `run_dir`.
        test: images for previews that are not trained on; None disables previews.
        stop: request to stop early; default: the time limit `max_hours`.
        codes: codes of the images of `data`, to train in the latent space of their autoencoder.

    Attributes:
        step: number of completed steps.
        skipped: counter of steps skipped for a non-finite loss or gradient.
        stopped: whether the loop stopped early on request.
        responses: the responses of the pictures to interventions, measured with each preview.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        logger: Logger,
        test: ImageData | None = None,
        stop: StopRequest | None = None,
        codes: Codes | None = None,
    ) -> None:
        self.config, self.spec, self.logger, self.test = config, data.spec, logger, test
        self.codec = None if codes is None else codes.codec
        sizes = network_spec(self.spec, self.codec)
        self.device = dist_util.dev()
        self.float_dtype = float_for_tables(self.device)
        world, train = dist_util.world_size(), config.train
        self.stop, self.stopped = stop or StopRequest(train.max_hours), False
        self.skipped, self.writer = SkippedSteps(train.max_skipped_steps), create_writer(train, logger.run_dir)
        self.responses = ResponseTracker(train.label_predictor, logger.info, train.train_until, self.codec)
        self.image_names = data.ids
        options: dict[str, Any] = {"seed": train.seed, "device": self.device, "data_on_device": train.data_on_device}
        options["codes"] = None if codes is None else codes.array
        self.source = BatchSource(data, train.batch_size * world, rank=dist_util.rank(), world=world, **options)
        torch.manual_seed(stream_seed(train.seed, 0, "init"))
        self.model, self.diffusion = create_model_and_diffusion(config, sizes)
        if train.init_weights:
            load_initial_weights(self.model, train.init_weights, config, self.spec, self.codec)
        self.model.to(self.device)
        accelerate(self.model, self.device, channels_last=train.channels_last)  # before the optimizer's moments
        self.sampler = create_named_schedule_sampler(train.schedule_sampler, self.diffusion.num_timesteps)
        self.training_step: torch.nn.Module = create_training_step(config, self.model, self.diffusion)
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay, fused=True)
        self.step, self.emas = 0, {rate: _copy_state(self.model) for rate in config.ema_rates()}
        self._resume(train.run_dir if is_remote(train.run_dir) else logger.run_dir)
        for model in (self.model, getattr(self.training_step, "teacher", None)):
            if model is not None:
                accelerate(model, self.device, compiled=self.config.train.compile is True)
        dist_util.sync_params(self.model.state_dict().values())
        self.config, choices = choose(self.config, self.training_step, sizes, self.device, self.step)
        self.autocast = activation_dtype(self.config.train.use_bf16, self.device)
        if choices:
            self.logger.info(f"acceleration: {choices}")
        if world > 1:
            self.training_step = DistributedDataParallel(self.training_step, gradient_as_bucket_view=True)

    def _resume(self, run_dir: str | Path) -> None:
        path = checkpoint_to_resume(self.config.train.resume_checkpoint, run_dir)
        if path is None:
            return
        checkpoint = load_checkpoint(path, with_training=True)
        check_same_run(checkpoint, self.config, self.source, self.model, self.codec)
        state = checkpoint.training_state
        self.config = with_recorded(self.config, Config.from_dict(checkpoint.config.get("config")))
        self.model.load_state_dict(checkpoint.model_state)
        changes = changed_options(checkpoint, self.config) | restore_optimizer(self.optimizer, state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        self.skipped.load_state_dict(state.get("skipped", self.skipped.state_dict()))
        self.responses.load_state_dict(state.get("responses", []))
        self.step, self.stopped = state["step"], bool(self.responses.stop_reason())
        for rate, ema in self.emas.items():
            average = load_checkpoint(checkpoint.path, ema=rate).model_state
            self.emas[rate] = {key: with_layout_of(ema[key], value.to(self.device)) for key, value in average.items()}
        self.logger.info(f"resuming from step {self.step} of {self.config.train.total_steps}")
        if changes:
            self.logger.info(f"options changed since step {self.step}: {listed(changes)}")

    def save(self) -> None:
        """Starts writing a checkpoint of the current step on rank 0.

        A failure of storage is a warning, and an error of the next step after `storage_patience` minutes of failures.

        Raises:
            InputError: If the weights are not finite; they are not written.
        """
        if dist_util.any_of(not all_finite([self.model.state_dict(), *self.emas.values()])):
            raise InputError(
                f"weights: expected finite values after step {self.step}, got NaN or infinity; no checkpoint was "
                "written, earlier ones are intact; try a smaller lr or grad_clip"
            )
        if not dist_util.is_main():
            return
        observed, labelled = self.source.observed, labelled_mask(self.source.observed)
        states = {
            "model_state": self.model.state_dict(),
            "ema_states": self.emas,
            "training_state": {
                "step": self.step,
                "optimizer": self.optimizer.state_dict(),
                "sampler": self.sampler.state_dict(),
                "skipped": self.skipped.state_dict(),
                "responses": self.responses.state_dict(),
                "labelled": torch.from_numpy(labelled),
                "order": batch_order(self.source),
            },
            "config": describe_checkpoint(self.config, self.spec, self.codec)
            | {"labelled_images": int(observed.any(axis=1).sum()), "labelled": digest(observed)}
            | {"images_seen": self.images_seen},
        }
        self.writer.write(self.step, states)

    def _complete_save(self) -> None:
        """Waits for the last checkpoint, and repeats it while storage fails."""
        self.writer.finish()
        while dist_util.any_of(self.writer.behind and not self.writer.failed):
            time.sleep(RETRY_SECONDS)
            self.save()
            self.writer.finish()
        if dist_util.any_of(self.writer.failed):
            self._raise_failed_save()

    def _raise_failed_save(self) -> None:
        self.writer.check()
        raise InputError("run_dir: rank 0 failed to write a checkpoint; see its error message")

    @property
    def images_seen(self) -> int:
        """Number of images of all steps and processes."""
        return self.step * self.source.batch_size

    def run(self) -> None:
        """Trains from the current step to the last one, with checkpoints, logs and previews.

        If any process receives a stop request, saves a checkpoint, sets `stopped` and returns. All checkpoints are on
        disk on return.

        Raises:
            InputError: If too many consecutive steps or the weights are not finite, or a checkpoint cannot be written.
        """
        train = self.config.train
        with (
            self.writer,
            progress_bar(total=train.total_steps, initial=self.step, desc=f"training {self.spec.name}") as bar,
        ):
            if train.train_until and self.step and self.step % train.sample_interval == 0:
                self.log_preview(only_new=True)  # not measured by a run that was interrupted after this step
            start, images = time.perf_counter(), 0
            while self.step < train.total_steps and not self.stopped:
                for key, value in self.run_step().items():
                    self.logger.logkv_mean(key, value)
                bar.update()
                images += self.source.batch_size
                last = self.step == train.total_steps
                log = last or self.step % train.log_interval == 0
                if log:
                    self.logger.logkv("images_per_second", images / (time.perf_counter() - start))
                    self.logger.logkv("skipped_steps", self.skipped.total)
                    self.logger.logkv("kl_weight", self.kl_weight(self.step - 1))
                if not last and not self.stopped and self.step % train.sample_interval == 0:
                    start += self.log_preview()
                if log and not last:
                    bar.set_postfix(self._write_row())
                    start, images = time.perf_counter(), 0
                if last or self.stopped or self.step % train.save_interval == 0:
                    self.save()
                if last:  # after the checkpoint, so that a failed preview loses no work
                    self.log_preview()
                    bar.set_postfix(self._write_row())
            self._complete_save()

    def _write_row(self) -> dict[str, str]:
        """Writes a log row; returns the values for the progress bar."""
        values: dict[str, float] = {}
        with tolerated(PROGRESS, self.config.train.storage_patience):
            values = self.logger.dumpkvs(self.step)
        return {name: f"{values[key]:.3g}" for key, name in SHOWN.items() if key in values}

    def run_step(self) -> dict[str, float]:
        """Takes an optimizer step; returns the loss terms averaged over the images of this process.

        If the loss or gradient of any process is not finite, leaves the weights unchanged and returns an empty dict.
        """
        train = self.config.train
        batch = self.source.batch(self.step)
        if not self.config.model.class_cond:
            batch = batch._replace(classes=None)
        draws = self.draw(batch)
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # the forward pass updates running statistics
        losses, sums = self._accumulate_gradients(batch, draws)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        self.writer.wait_for_disk()  # a crash during the next step must not lose more than one save interval
        result = self._exchange(sums, norm)
        self.step += 1
        if not result.finite:
            self._skip(draws.t, buffers)
            return {}
        if train.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), train.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step - 1)
        self.optimizer.step()
        self.sampler.update(draws.t, losses)
        self.skipped.reset_consecutive()
        self._update_emas()
        return result.means | ({"grad_norm": result.grad_norm} if train.grad_clip else {})

    def draw(self, batch: Batch) -> TrainingDraws:
        """Draws the random numbers of the current step and returns the share of this process."""
        shape, seed = self.model.latent_shape, self.config.train.seed
        return draw_for_step(seed, self.step, batch.images, shape, self.sampler, self.config.loss)

    def _accumulate_gradients(self, batch: Batch, draws: TrainingDraws) -> tuple[Tensor, dict[str, Tensor]]:
        """Runs the forward and backward passes; returns the loss per image and the mean of each term."""
        train, count, kl_weight = self.config.train, len(batch.images), self.kl_weight(self.step)
        torch.manual_seed(stream_seed(train.seed, self.step, f"dropout/{dist_util.rank()}"))
        size = train.microbatch or count
        pieces = [slice(i, i + size) for i in range(0, count, size)]
        self.training_step.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        sums: dict[str, Tensor] = {}
        for piece in pieces:
            share = len(batch.images[piece]) / count
            # DDP averages the gradients over processes only after the last piece.
            with self._no_sync(piece is not pieces[-1]), dist_util.peer_errors("averaging gradients"):
                with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                    loss, terms = self.training_step(*step_arguments(batch, draws, piece, kl_weight))
                (loss * share).backward()
            losses.append(terms["loss"].detach())
            for key, value in (*terms.items(), ("total", loss)):
                # Label terms are means over the images with labels, see `Observed.weights`.
                of_all = batch.labelled_fraction if key.startswith(LABEL_TERMS) else 1.0
                mean = value.detach().mean().to(self.float_dtype) * share / (of_all or 1.0)
                sums[key] = sums[key] + mean if key in sums else mean
        return torch.cat(losses), sums

    def _no_sync(self, enabled: bool) -> AbstractContextManager[None]:
        step = self.training_step
        return step.no_sync() if enabled and isinstance(step, DistributedDataParallel) else nullcontext()

    def _exchange(self, sums: dict[str, Tensor], norm: Tensor) -> StepResult:
        """All-reduces the state of the processes, and copies all values to the host in one transfer."""
        dtype, ours = self.float_dtype, [float(bool(self.stop.reason())), float(self.writer.failed)]
        together = torch.cat(
            [torch.stack([sums["total"], norm.to(dtype)]), torch.tensor(ours, dtype=dtype, device=self.device)]
        )
        dist_util.all_reduce_mean(together)
        total, grad_norm, stop, failed, *means = torch.cat([together, torch.stack([*sums.values()])]).tolist()
        if failed:
            self._raise_failed_save()
        self.stopped = stop > 0
        return StepResult(dict(zip(sums, means, strict=True)), grad_norm, math.isfinite(total + grad_norm))

    @torch.no_grad()
    def _skip(self, t: Tensor, buffers: list[Tensor]) -> None:
        """Restores the buffers and reports the skipped step."""
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        step, timesteps = self.step - 1, torch.cat(dist_util.all_gather(t)).tolist()
        indices = self.source.indices(step).tolist()
        names = [self.image_names[i] for i in indices]
        self.skipped.add({"step": step, "t": timesteps, "indices": indices, "images": names})
        if dist_util.is_main():
            self.logger.info(f"step {step}: loss or gradient not finite, skipped; images are listed in {REPORT}")
            with suppress(OSError):  # a full disk is reported by the next checkpoint, in all processes
                self.skipped.write_report(self.logger.run_dir)
        self.skipped.check()

    def kl_weight(self, step: int) -> float:
        """Weight of the KL terms: rises linearly over the first `kl_anneal_steps`."""
        loss = self.config.loss
        return loss.kl_weight * min(1.0, (step + 1) / max(loss.kl_anneal_steps, 1))

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then constant, then linear decay to 0 over the last `lr_anneal_steps`."""
        train = self.config.train
        rate = train.lr * min(1.0, (step + 1) / max(train.warmup_steps, 1))
        if train.lr_anneal_steps:
            rate *= min(1.0, (train.total_steps - step) / train.lr_anneal_steps)
        return rate

    @torch.no_grad()
    def _update_emas(self) -> None:
        state = self.model.state_dict()
        floating = [key for key, value in state.items() if value.is_floating_point()]
        for rate, ema in self.emas.items():
            value = float(rate)
            if self.config.train.ema_warmup:
                value = min(value, (1 + self.step) / (10 + self.step))
            update_ema([ema[key] for key in floating], [state[key] for key in floating], value)
            for key in ema.keys() - set(floating):
                ema[key].copy_(state[key])

    def log_preview(self, only_new: bool = False) -> float:
        """Logs counterfactuals of the first moving average, and their responses; returns the elapsed seconds.

        Requests to stop as `train_until` says. With `only_new`, does nothing for a step that is measured.
        """
        if self.test is None or not dist_util.is_main() or (only_new and self.responses.has_measured(self.step)):
            return 0.0
        start, state, patience = time.perf_counter(), _copy_state(self.model), self.config.train.storage_patience
        self.model.load_state_dict(self.emas[self.config.ema_rates()[0]])
        with uncompiled(self.model):
            image = self.responses.preview(self.model, self.config, self.test, self.device)
            found = self.responses.measure(self.model, self.config, self.test, self.step, self.autocast)
        with tolerated("counterfactuals", patience):
            self.logger.log_image("counterfactuals", image, self.step)
        with tolerated(BEST, patience):
            if self.responses.keep_best(self.logger.run_dir, self.model, self.config, self.spec, self.images_seen):
                upload_logs(self.config.train, BEST_FILES)
        self.logger.logkvs(found)
        self.stop.request(self.responses.stop_reason())
        self.model.load_state_dict(state)
        return time.perf_counter() - start


def _copy_state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}

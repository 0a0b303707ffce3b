"""The training loop.

Every random number of step k follows from (seed, k): the batch, the time steps, the noise, which latents are dropped.
A run that is interrupted and resumed is therefore the run that was not; and since all processes draw the whole
batch's numbers and keep their share, so are several processes one process with the larger batch.
"""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from causaldiffae import dist_util
from causaldiffae.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from causaldiffae.config import Config
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.errors import InputError
from causaldiffae.image_datasets import Batch, BatchSource, ImageData, model_inputs, to_uint8
from causaldiffae.logger import Logger, progress_bar
from causaldiffae.model import TrainingDraws
from causaldiffae.nn import update_ema
from causaldiffae.pictures import tile
from causaldiffae.resample import create_named_schedule_sampler
from causaldiffae.script_util import (
    create_gaussian_diffusion,
    create_model_and_diffusion,
    describe_checkpoint,
    load_model,
    model_entry,
)
from causaldiffae.supervision import digest

LABEL_TERMS = ("label_kl", "label_mse")
PICTURE_STEPS = 25
PICTURE_IMAGES = 6


def step_seed(seed: int, step: int, stream: str) -> int:
    """A 63-bit seed for one stream of random numbers in one step."""
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def checkpoint_to_resume(explicit: str, run_dir: str | Path) -> Path | None:
    """The step folder that a run goes on from: the explicit one, or else the newest whole one in its directory."""
    return Path(explicit) if explicit else latest_checkpoint(run_dir)


class TrainLoop:
    """Trains a model until `config.train.total_steps`.

    Args:
        config: everything that decides the result.
        data: the training split; `data.labelled` says which labels may be used.
        logger: where figures and pictures go; its `run_dir` takes the checkpoints.
        test: images for the pictures made while training.

    Resumes from `resume_checkpoint`, or else from the newest checkpoint in the run directory.
    """

    def __init__(self, config: Config, data: ImageData, logger: Logger, test: ImageData | None = None) -> None:
        self.config, self.spec, self.logger, self.test = config, data.spec, logger, test
        self.device = dist_util.dev()
        world, train = dist_util.world_size(), config.train
        self.source = BatchSource(
            data, train.batch_size * world, seed=train.seed, device=self.device, rank=dist_util.rank(), world=world
        )
        torch.manual_seed(step_seed(train.seed, 0, "init"))
        self.model, self.diffusion = create_model_and_diffusion(config, self.spec)
        if train.init_weights:
            self._start_from(train.init_weights)
        self.model.to(self.device)
        self.sampler = create_named_schedule_sampler(train.schedule_sampler, self.diffusion.num_timesteps)
        step_type = model_entry(config.model.model_type).training_step
        self.training_step: torch.nn.Module = step_type(self.model, self.diffusion, config.loss)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True
        )
        self.emas = {rate: _copy_state(self.model) for rate in config.ema_rates()}
        self.step = 0
        self._resume(logger.run_dir)
        dist_util.sync_params(self.model.state_dict().values())
        if world > 1:
            self.training_step = DistributedDataParallel(self.training_step)

    # ------------------------------------------------------------------ state

    def _start_from(self, path: str) -> None:
        loaded = load_model(path)
        if loaded.spec.to_dict() != self.spec.to_dict() or loaded.config.model != self.config.model:
            raise InputError(f"init_weights: {path} holds weights of another data set or another network")
        self.model.load_state_dict(loaded.model.state_dict())

    def _resume(self, run_dir: Path) -> None:
        path = checkpoint_to_resume(self.config.train.resume_checkpoint, run_dir)
        if path is None:
            return
        checkpoint = load_checkpoint(path, with_training=True)
        theirs, ours = Config.from_dict(checkpoint.config.get("config")), self.config
        if (theirs.model, theirs.diffusion) != (ours.model, ours.diffusion):
            raise InputError(f"{path}: a checkpoint of another configuration; give another run_dir, or the same flags")
        if checkpoint.config.get("dataset") != self.spec.to_dict():
            raise InputError(f"{path}: a checkpoint of another data set or graph; give another run_dir")
        labelled = checkpoint.training_state.get("labelled")
        if labelled is not None and not torch.equal(labelled, self.source.labelled.cpu()):
            raise InputError(f"{path}: other training images had labels; give another run_dir, or the same label_seed")
        self.model.load_state_dict(checkpoint.model_state)
        self.optimizer.load_state_dict(checkpoint.training_state["optimizer"])
        self.sampler.load_state_dict(checkpoint.training_state["sampler"])
        self.step = checkpoint.training_state["step"]
        for rate in self.emas:
            self.emas[rate] = {
                key: value.to(self.device)
                for key, value in load_checkpoint(checkpoint.path, ema=rate).model_state.items()
            }

    def save(self) -> None:
        """Writes a checkpoint of the current step (one process does)."""
        if dist_util.is_main():
            save_checkpoint(
                self.logger.run_dir,
                self.step,
                model_state=self.model.state_dict(),
                ema_states=self.emas,
                training_state={
                    "step": self.step,
                    "optimizer": self.optimizer.state_dict(),
                    "sampler": self.sampler.state_dict(),
                    "labelled": self.source.labelled.cpu(),
                },
                config=describe_checkpoint(self.config, self.spec)
                | {"labelled_images": int(self.source.is_labelled.sum()), "labelled": digest(self.source.is_labelled)},
                keep_last=self.config.train.keep_last,
            )
        dist_util.barrier()

    # ------------------------------------------------------------------ training

    def run(self) -> None:
        """Trains from the current step to the last, with checkpoints, figures and pictures on the way."""
        train = self.config.train
        with progress_bar(total=train.total_steps, initial=self.step, desc=f"training {self.spec.name}") as bar:
            started, images = time.perf_counter(), 0
            while self.step < train.total_steps:
                means = self.run_step()
                bar.update()
                images += self.source.batch_size
                for key, value in means.items():
                    self.logger.logkv_mean(key, value)
                if self.step % train.log_interval == 0:
                    elapsed = time.perf_counter() - started
                    self.logger.logkv("images_per_second", images / elapsed)
                    values = self.logger.dumpkvs(self.step)
                    bar.set_postfix({key: f"{values[key]:.3g}" for key in ("loss", "label_kl", "images_per_second")})
                    started, images = time.perf_counter(), 0
                last = self.step == train.total_steps
                if last or self.step % train.save_interval == 0:
                    self.save()
                if last or self.step % train.sample_interval == 0:
                    self.draw_pictures()

    def run_step(self) -> dict[str, float]:
        """One optimizer step; returns the parts of the loss, averaged over this process's images."""
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
        sums: dict[str, float] = {}
        for piece in pieces:
            share = len(batch.images[piece]) / len(batch.images)
            with self._no_sync(piece is not pieces[-1]):  # gradients travel once, after the last piece
                with self._autocast():
                    loss, terms = self.training_step(*_arguments(batch, draws, piece, kl_weight))
                (loss * share).backward()
            self.sampler.update(draws.t[piece], terms["loss"].detach())
            for key, value in (*terms.items(), ("total", loss)):
                of_all = batch.labelled_share if key in LABEL_TERMS else 1.0  # a mean over images that have labels
                sums[key] = sums.get(key, 0.0) + float(value.detach().mean()) * share / (of_all or 1.0)
        everywhere = dist_util.all_reduce_mean(torch.tensor(sums["total"], dtype=torch.float64, device=self.device))
        if not math.isfinite(float(everywhere)):  # the same on all processes, so that none waits for the others
            raise InputError(f"the loss is no longer finite at step {self.step}; a smaller lr or grad_clip may help")
        if train.grad_clip:
            sums["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.grad_clip))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.step()
        self.step += 1
        self._update_emas()
        return sums

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
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.train.use_bf16)

    def _draw(self, batch: Batch) -> TrainingDraws:
        """This process's share of the random numbers of the whole batch."""
        world, local = dist_util.world_size(), len(batch.images)
        whole, seed = local * world, self.config.train.seed
        mine = slice(dist_util.rank() * local, (dist_util.rank() + 1) * local)

        def normal(stream: str, *shape: int) -> Tensor:
            generator = torch.Generator(self.device).manual_seed(step_seed(seed, self.step, stream))
            return torch.randn(whole, *shape, generator=generator, device=self.device)[mine]

        generator = torch.Generator().manual_seed(step_seed(seed, self.step, "steps"))
        drawn = self.sampler.sample(whole, generator)
        keep = torch.rand(whole, generator=generator) >= self.config.loss.drop_prob
        forced = torch.rand(whole, generator=generator) < self.config.loss.label_forcing
        return TrainingDraws(
            t=drawn.t[mine].to(self.device),
            weights=drawn.weights[mine].to(self.device),
            noise=normal("image", *batch.images.shape[1:]),
            latent_noise=normal("latent", *self.model.latent_shape),
            keep=keep[mine].to(self.device),
            forced=forced[mine].to(self.device),
        )

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

    def draw_pictures(self) -> None:
        """Test images, their reconstructions, and each variable set to both ends of its range, as one picture."""
        if self.test is None or not dist_util.is_main():
            return
        state = _copy_state(self.model)
        self.model.load_state_dict(self.emas[self.config.ema_rates()[0]])
        self.model.eval()
        diffusion = create_gaussian_diffusion(
            self.config.diffusion, str(min(PICTURE_STEPS, self.config.diffusion.diffusion_steps))
        )
        engine = CounterfactualEngine(self.model, diffusion, self.spec)
        few = self.test.subset(list(range(min(PICTURE_IMAGES, len(self.test)))))
        x_start, classes, labels = model_inputs(few, self.device)
        interventions: list[dict[str, Any]] = [{}]
        for i, name in enumerate(self.spec.graph.names):
            interventions += [{name: self.spec.low[i]}, {name: self.spec.high[i]}]
        results = engine.predict(engine.abduct(x_start, classes, labels=labels), interventions)
        rows = np.stack([few.images, *[to_uint8(result.images.cpu().numpy()) for result in results]], axis=1)
        self.logger.log_image("counterfactuals", tile(rows), self.step)
        self.model.load_state_dict(state)


def _arguments(batch: Batch, draws: TrainingDraws, piece: slice, kl_weight: float) -> tuple[Any, ...]:
    part = TrainingDraws(**{name: value[piece] for name, value in vars(draws).items()})
    classes = None if batch.classes is None else batch.classes[piece]
    images, labels, labelled = batch.images[piece], batch.labels[piece], batch.labelled[piece]
    return images, labels, classes, labelled, part, kl_weight, batch.labelled_share


def _copy_state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}

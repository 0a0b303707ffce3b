"""Gaussian diffusion: the forward process q, the reverse process p, DDPM and DDIM.

With alpha-bar_t = prod_{s<=t} (1 - beta_s), the forward process is q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)
(Ho et al., 2020, eq. 4). A network predicts the noise eps, or x_0, or v, or the posterior's mean; everything here
follows from that prediction. DDIM (Song et al., 2021) makes the reverse process deterministic, so it can be run both
ways: it encodes an image into x_T and decodes x_T into an image. Tables are float64 and cast to the images' dtype at
use. Nothing here knows labels, latents or graphs: they reach the network through `model_kwargs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.losses import discretized_gaussian_log_likelihood, normal_kl
from causaldiffae.nn import ModelFn, mean_flat

BETA_SCHEDULES = ("linear", "cosine")
MAX_BETA = 0.999


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> np.ndarray:
    """The (T,) float64 betas of a named schedule.

    "linear" is Ho et al.'s 1e-4 .. 0.02 for T = 1000, scaled by 1000 / T; "cosine" is Nichol and Dhariwal's (2021,
    eq. 17).

    Raises:
        InputError: for another name, or fewer than one step, or so few linear steps that a beta would reach 1.
    """
    if num_diffusion_timesteps < 1:
        raise InputError(f"diffusion_steps: {num_diffusion_timesteps} given, at least 1 is needed")
    if schedule_name == "linear":
        scale = 1000 / num_diffusion_timesteps
        if scale * 0.02 >= 1:
            raise InputError(
                f"diffusion_steps: {num_diffusion_timesteps} given, the linear schedule needs more than 20"
            )
        return np.linspace(scale * 1e-4, scale * 0.02, num_diffusion_timesteps, dtype=np.float64)
    if schedule_name == "cosine":
        return betas_for_alpha_bar(num_diffusion_timesteps, lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2)
    raise InputError(f"noise_schedule: {schedule_name!r} given, allowed are {', '.join(BETA_SCHEDULES)}")


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = MAX_BETA
) -> np.ndarray:
    """Betas that discretise a given alpha-bar(t), t in [0, 1], each at most `max_beta`."""
    grid = [alpha_bar(i / num_diffusion_timesteps) for i in range(num_diffusion_timesteps + 1)]
    return np.array([min(1 - after / before, max_beta) for before, after in pairwise(grid)])


def enforce_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas (T,) whose alpha-bar ends at 0: sqrt(alpha-bar) is shifted and stretched, its first entry kept.

    Training then sees pure noise, from which sampling starts (Lin et al., 2024, arXiv 2305.08891, algorithm 1). The
    last beta is 1.
    """
    if len(betas) < 2:
        raise InputError("zero_terminal_snr: at least 2 diffusion_steps are needed")
    signal = np.sqrt(np.cumprod(1.0 - np.asarray(betas, dtype=np.float64)))
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    alphas_cumprod = signal**2
    return 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])


def with_signal_left(alphas_cumprod: np.ndarray) -> np.ndarray:
    """alpha-bar (T,) with a last entry above 0: log-SNR is finite, falls at every step, and can be interpolated.

    Where the last entry is 0, the one before it falls once more by the last factor: the signal that is left is below
    a thousandth of the noise.
    """
    if len(alphas_cumprod) < 3 or alphas_cumprod[-1] > 0:
        return alphas_cumprod
    return np.append(alphas_cumprod[:-1], alphas_cumprod[-2] ** 2 / alphas_cumprod[-3])


class ModelMeanType(Enum):
    """What the network predicts."""

    PREVIOUS_X = "previous_x"
    START_X = "start_x"
    EPSILON = "epsilon"
    VELOCITY = "velocity"


class ModelVarType(Enum):
    """Where the reverse process takes its variance from."""

    LEARNED = "learned"
    FIXED_SMALL = "fixed_small"
    FIXED_LARGE = "fixed_large"
    LEARNED_RANGE = "learned_range"

    @property
    def is_learned(self) -> bool:
        return self in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)


class LossType(Enum):
    """What training minimises.

    The rescaled forms multiply by the number of steps (or divide the learned variance's).
    """

    MSE = "mse"
    RESCALED_MSE = "rescaled_mse"
    KL = "kl"
    RESCALED_KL = "rescaled_kl"

    @property
    def is_vb(self) -> bool:
        return self in (LossType.KL, LossType.RESCALED_KL)


class GaussianMoments(NamedTuple):
    """Mean, variance and log-variance of a Gaussian over images, each (B, C, H, W)."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor


class ReverseStep(NamedTuple):
    """p(x_{t-1} | x_t) with the predictions it rests on, each (B, C, H, W)."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    pred_xstart: Tensor
    eps: Tensor


class GaussianDiffusion:
    """The diffusion process of a beta schedule, and what a network's prediction means in it.

    Args:
        betas: (T,) in (0, 1].
        model_mean_type, model_var_type, loss_type: see the enums.
        rescale_timesteps: the network sees t * 1000 / T.
        min_snr_gamma: the squared error of every step counts as that of x_0 does, times min(SNR, gamma) (Hang et al.,
            2023, arXiv 2303.09556); 0 for the plain error of what is predicted.

    Raises:
        InputError: for betas outside (0, 1], a last beta of 1 where the prediction says nothing of an image without
            signal, or a gamma that the loss does not know.
    """

    def __init__(
        self,
        *,
        betas: np.ndarray,
        model_mean_type: ModelMeanType = ModelMeanType.EPSILON,
        model_var_type: ModelVarType = ModelVarType.FIXED_LARGE,
        loss_type: LossType = LossType.MSE,
        rescale_timesteps: bool = False,
        min_snr_gamma: float = 0.0,
    ) -> None:
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all():
            raise InputError("betas: a non-empty list of numbers in (0, 1] is needed")
        says_nothing = model_mean_type in (ModelMeanType.EPSILON, ModelMeanType.PREVIOUS_X)
        if betas[-1] == 1 and len(betas) > 1 and says_nothing:
            raise InputError(
                "zero_terminal_snr: where no signal is left, the noise says nothing of the image; add --predict_v True"
            )
        if min_snr_gamma < 0 or (min_snr_gamma and (loss_type.is_vb or model_mean_type is ModelMeanType.PREVIOUS_X)):
            raise InputError(
                f"min_snr_gamma: {min_snr_gamma} given; 0 or more is needed, and 0 where the bound is minimised"
            )
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.loss_type = loss_type
        self.rescale_timesteps = rescale_timesteps
        self.num_timesteps = len(betas)
        self.original_num_steps = self.num_timesteps
        self.timestep_map = np.arange(self.num_timesteps)

        alphas = 1.0 - betas
        self.betas = betas
        self.alphas_cumprod = np.cumprod(alphas)
        self.base_alphas_cumprod = with_signal_left(self.alphas_cumprod)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.alphas_cumprod_next = np.append(self.alphas_cumprod[1:], 0.0)

        # q(x_t | x_0) and its inversion
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1.0 - self.alphas_cumprod)
        self.one_minus_alphas_cumprod = 1.0 - self.alphas_cumprod
        self.log_one_minus_alphas_cumprod = np.log(self.one_minus_alphas_cumprod)
        with np.errstate(divide="ignore"):  # infinite where no signal is left; eps is not predicted there
            self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
            self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1.0)

        # q(x_{t-1} | x_t, x_0); its variance is 0 at t = 0, so its logarithm there is taken from t = 1
        self.posterior_variance = betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)
        clipped = np.append(self.posterior_variance[min(1, len(betas) - 1)], self.posterior_variance[1:])
        self.posterior_log_variance_clipped = np.log(np.maximum(clipped, 1e-20))
        self.posterior_mean_coef1 = betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1.0 - self.alphas_cumprod_prev) * np.sqrt(alphas) / (1.0 - self.alphas_cumprod)
        self.posterior_mean_ratio = self.posterior_mean_coef2 / self.posterior_mean_coef1
        self.recip_posterior_mean_coef1 = 1.0 / self.posterior_mean_coef1
        self.log_betas = np.log(betas)
        # beta_t, except at t = 0 where it would give a worse decoder likelihood (Ho et al., 2020)
        first = max(self.posterior_variance[min(1, len(betas) - 1)], 1e-20)
        self.large_log_variance = np.log(np.append(first, betas[1:]))

        self.loss_weights = self._min_snr_weights(min_snr_gamma)
        self._tables: dict[tuple[str, torch.device], Tensor] = {}

    def _min_snr_weights(self, gamma: float) -> np.ndarray:
        """Weights (T,) of the squared error, of mean 1 so that the loss's other terms keep theirs."""
        if not gamma:
            return np.ones(self.num_timesteps)
        snr = self.alphas_cumprod / (1.0 - self.alphas_cumprod)
        of_xstart = np.minimum(snr, gamma)
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = {
                ModelMeanType.START_X: of_xstart,
                ModelMeanType.EPSILON: of_xstart / snr,
                ModelMeanType.VELOCITY: of_xstart / (snr + 1.0),
            }[self.model_mean_type]
        return weights / weights.mean()

    def _at(self, table: str, t: Tensor, like: Tensor) -> Tensor:
        """Entries of a table, named by its attribute, at steps t (B,), as `extract`; each device gets one copy."""
        return extract(self._table(table, t.device), t, like)

    def _table(self, name: str, device: torch.device) -> Tensor:
        key = (name, device)
        if key not in self._tables:
            self._tables[key] = torch.as_tensor(getattr(self, name), device=device)
        return self._tables[key]

    # ------------------------------------------------------------------ the forward process

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> GaussianMoments:
        """Moments of q(x_t | x_0) for (B, C, H, W) images and (B,) steps."""
        return GaussianMoments(
            self._at("sqrt_alphas_cumprod", t, x_start) * x_start,
            self._at("one_minus_alphas_cumprod", t, x_start).expand_as(x_start),
            self._at("log_one_minus_alphas_cumprod", t, x_start).expand_as(x_start),
        )

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise."""
        noise = torch.randn_like(x_start) if noise is None else noise
        signal = self._at("sqrt_alphas_cumprod", t, x_start)
        return signal * x_start + self._at("sqrt_one_minus_alphas_cumprod", t, x_start) * noise

    def q_posterior_mean_variance(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> GaussianMoments:
        """Moments of q(x_{t-1} | x_t, x_0) (Ho et al., 2020, eq. 7)."""
        mean = self._at("posterior_mean_coef1", t, x_t) * x_start + self._at("posterior_mean_coef2", t, x_t) * x_t
        return GaussianMoments(
            mean,
            self._at("posterior_variance", t, x_t).expand_as(x_t),
            self._at("posterior_log_variance_clipped", t, x_t).expand_as(x_t),
        )

    # ------------------------------------------------------------------ predictions

    def model_timesteps(self, t: Tensor) -> Tensor:
        """The steps as the network sees them: original index, rescaled to 1000 where asked for."""
        original = self._table("timestep_map", t.device)[t]
        return original.float() * (1000.0 / self.original_num_steps) if self.rescale_timesteps else original

    def predict_xstart_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_0 = x_t / sqrt(abar_t) - sqrt(1 / abar_t - 1) eps."""
        noise = self._at("sqrt_recipm1_alphas_cumprod", t, x_t) * eps
        return self._at("sqrt_recip_alphas_cumprod", t, x_t) * x_t - noise

    def predict_eps_from_xstart(self, x_t: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        """The noise that leads from x_0 to x_t."""
        signal = self._at("sqrt_alphas_cumprod", t, x_t)
        return (x_t - signal * x_start) / self._at("sqrt_one_minus_alphas_cumprod", t, x_t)

    def predict_xstart_from_xprev(self, x_t: Tensor, t: Tensor, x_prev: Tensor) -> Tensor:
        """The x_0 whose posterior mean is `x_prev`."""
        from_x_t = self._at("posterior_mean_ratio", t, x_t) * x_t
        return self._at("recip_posterior_mean_coef1", t, x_t) * x_prev - from_x_t

    def velocity(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (Salimans and Ho, 2022, section 4)."""
        signal = self._at("sqrt_alphas_cumprod", t, x_start)
        return signal * noise - self._at("sqrt_one_minus_alphas_cumprod", t, x_start) * x_start

    def _xstart_from_output(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        if self.model_mean_type is ModelMeanType.EPSILON:
            return self.predict_xstart_from_eps(x, t, output)
        if self.model_mean_type is ModelMeanType.VELOCITY:
            noise_scale = self._at("sqrt_one_minus_alphas_cumprod", t, x)
            return self._at("sqrt_alphas_cumprod", t, x) * x - noise_scale * output
        if self.model_mean_type is ModelMeanType.PREVIOUS_X:
            return self.predict_xstart_from_xprev(x, t, output)
        return output

    def _eps_from_output(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        if self.model_mean_type is ModelMeanType.EPSILON:
            return output
        return self.predict_eps_from_xstart(x, t, self._xstart_from_output(output, x, t))

    def p_mean_variance(
        self,
        model: ModelFn,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> ReverseStep:
        """Moments of p(x_{t-1} | x_t) and the predicted x_0 and eps.

        Args:
            model: called as model(x, steps, **model_kwargs); returns (B, C, H, W), or (B, 2C, H, W) with a learned
                variance.
            x: (B, C, H, W), x_t.
            t: (B,) indices into this process.
            clip_denoised: clip the predicted x_0 to [-1, 1] (eps is then the noise that agrees with it).
        """
        output = model(x, self.model_timesteps(t), **(model_kwargs or {}))
        if self.model_var_type.is_learned:
            if output.shape[1] != 2 * x.shape[1]:
                raise InputError(f"the network returns {output.shape[1]} channels, {2 * x.shape[1]} are needed")
            output, variance_output = output.chunk(2, dim=1)
        else:
            variance_output = None
        log_variance = self._log_variance(variance_output, t, x)

        pred_xstart = self._xstart_from_output(output, x, t)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)
        if self.model_mean_type is ModelMeanType.PREVIOUS_X:
            mean = output
        else:
            mean = self.q_posterior_mean_variance(pred_xstart, x, t).mean
        eps = self.predict_eps_from_xstart(x, t, pred_xstart)
        return ReverseStep(mean, log_variance.exp(), log_variance, pred_xstart, eps)

    def _log_variance(self, variance_output: Tensor | None, t: Tensor, x: Tensor) -> Tensor:
        if self.model_var_type is ModelVarType.LEARNED:
            assert variance_output is not None
            return variance_output
        if self.model_var_type is ModelVarType.LEARNED_RANGE:
            assert variance_output is not None
            low = self._at("posterior_log_variance_clipped", t, x)
            high = self._at("log_betas", t, x)
            fraction = (variance_output + 1) / 2
            return fraction * high + (1 - fraction) * low
        if self.model_var_type is ModelVarType.FIXED_LARGE:
            return self._at("large_log_variance", t, x).expand_as(x)
        return self._at("posterior_log_variance_clipped", t, x).expand_as(x)

    # ------------------------------------------------------------------ sampling

    def p_sample(
        self,
        model: ModelFn,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        model_kwargs: Mapping[str, Any] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """One ancestral step x_t -> x_{t-1}."""
        step = self.p_mean_variance(model, x, t, clip_denoised, model_kwargs)
        noise = torch.randn_like(x) if noise is None else noise
        return step.mean + _where_not_first(t, x) * torch.exp(0.5 * step.log_variance) * noise

    def ddim_sample(
        self,
        model: ModelFn,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        eta: float = 0.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """One DDIM step x_t -> x_{t-1} (Song et al., 2021, eq. 12); deterministic with eta = 0."""
        step = self.p_mean_variance(model, x, t, clip_denoised, model_kwargs)
        alpha_bar = self._at("alphas_cumprod", t, x)
        alpha_bar_prev = self._at("alphas_cumprod_prev", t, x)
        sigma = eta * torch.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) * torch.sqrt(1 - alpha_bar / alpha_bar_prev)
        mean = step.pred_xstart * alpha_bar_prev.sqrt() + torch.sqrt(1 - alpha_bar_prev - sigma**2) * step.eps
        if eta == 0.0:
            return mean
        noise = torch.randn_like(x) if noise is None else noise
        return mean + _where_not_first(t, x) * sigma * noise

    def ddim_reverse_sample(
        self,
        model: ModelFn,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """One DDIM encoding step x_t -> x_{t+1}, with the network evaluated at x_t (guided-diffusion's convention)."""
        step = self.p_mean_variance(model, x, t, clip_denoised, model_kwargs)
        alpha_bar_next = self._at("alphas_cumprod_next", t, x)
        return step.pred_xstart * alpha_bar_next.sqrt() + torch.sqrt(1 - alpha_bar_next) * step.eps

    def _loop(self, step: Callable[[Tensor, Tensor], Tensor], x: Tensor, indices: Iterator[int]) -> Tensor:
        steps = torch.arange(self.num_timesteps, device=x.device)
        for i in indices:
            x = step(x, steps[i].expand(x.shape[0]))
        return x

    @torch.no_grad()
    def p_sample_loop(
        self,
        model: ModelFn,
        x: Tensor,
        clip_denoised: bool = True,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Ancestral sampling from noise x (B, C, H, W) down to an image."""
        return self._loop(
            lambda x, t: self.p_sample(model, x, t, clip_denoised, model_kwargs), x, reversed(range(self.num_timesteps))
        )

    @torch.no_grad()
    def ddim_sample_loop(
        self,
        model: ModelFn,
        x: Tensor,
        clip_denoised: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        eta: float = 0.0,
        start: int | None = None,
    ) -> Tensor:
        """DDIM decoding of x_T (B, C, H, W) to an image; `start` is the number of steps below x, by default all."""
        count = self.num_timesteps if start is None else start
        return self._loop(
            lambda x, t: self.ddim_sample(model, x, t, clip_denoised, model_kwargs, eta), x, reversed(range(count))
        )

    @torch.no_grad()
    def ddim_reverse_sample_loop(
        self,
        model: ModelFn,
        x: Tensor,
        clip_denoised: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """DDIM encoding of images x through every step of this process, guided-diffusion's convention (the image
        counts as
        x at step 0, and the last step goes to alpha-bar = 0)."""
        return self._loop(
            lambda x, t: self.ddim_reverse_sample(model, x, t, clip_denoised, model_kwargs),
            x,
            iter(range(self.num_timesteps)),
        )

    @torch.no_grad()
    def ddim_encode(
        self, model: ModelFn, x_start: Tensor, model_kwargs: Mapping[str, Any] | None = None, stop: int | None = None
    ) -> Tensor:
        """DDIM encoding that undoes `ddim_sample_loop` step by step: clean image -> x_0 -> ... -> x_{T-1}.

        The step from x_{t-1} to x_t inverts the decoding step from x_t, with the one approximation that eps is taken at
        (x_{t-1}, t - 1) where decoding takes it at (x_t, t). The first step starts at the clean image, alpha-bar = 1,
        and the last one ends where decoding begins. A constant eps is therefore inverted exactly.

        Args:
            x_start: (B, C, H, W) in [-1, 1]; it is never clipped, since clipping cannot be inverted.
            stop: how many steps to take; by default all.
        """
        kwargs = model_kwargs or {}

        def step(x: Tensor, t: Tensor) -> Tensor:
            # x has the noise of step t - 1 (none, for t = 0, where the network's first step is near enough).
            source = (t - 1).clamp(min=0)
            output = model(x, self.model_timesteps(source), **kwargs)[:, : x.shape[1]]
            eps = self._eps_from_output(output, x, source)
            before, after = self._at("alphas_cumprod_prev", t, x), self._at("alphas_cumprod", t, x)
            pred_xstart = (x - torch.sqrt(1 - before) * eps) / before.sqrt()
            return after.sqrt() * pred_xstart + torch.sqrt(1 - after) * eps

        return self._loop(step, x_start, iter(range(self.num_timesteps if stop is None else stop)))

    # ------------------------------------------------------------------ losses

    def vb_terms_bpd(
        self,
        model: ModelFn,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """One term of the variational bound, in bits per dimension.

        (B,). At t = 0 the decoder's likelihood of 8-bit pixels.
        """
        true = self.q_posterior_mean_variance(x_start, x_t, t)
        step = self.p_mean_variance(model, x_t, t, clip_denoised, model_kwargs)
        kl = mean_flat(normal_kl(true.mean, true.log_variance, step.mean, step.log_variance)) / math.log(2.0)
        nll = -discretized_gaussian_log_likelihood(x_start, means=step.mean, log_scales=0.5 * step.log_variance)
        return torch.where(t == 0, mean_flat(nll) / math.log(2.0), kl)

    def training_losses(
        self,
        model: ModelFn,
        x_start: Tensor,
        t: Tensor,
        model_kwargs: Mapping[str, Any] | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The diffusion loss per image.

        Args:
            x_start: (B, C, H, W) in [-1, 1]; t: (B,); noise: (B, C, H, W), drawn if not given.

        Returns:
            `loss` (B,), and its parts `mse`, which min-SNR weights, and, with a learned variance, `vb`.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise)
        if self.loss_type.is_vb:
            vb = self.vb_terms_bpd(model, x_start, x_t, t, clip_denoised=False, model_kwargs=model_kwargs)
            return {"loss": vb * self.num_timesteps if self.loss_type is LossType.RESCALED_KL else vb}

        output = model(x_t, self.model_timesteps(t), **(model_kwargs or {}))
        terms: dict[str, Tensor] = {}
        if self.model_var_type.is_learned:
            output, variance_output = output.chunk(2, dim=1)
            # The bound trains the variance alone: the mean is detached (Nichol and Dhariwal, 2021, section 3.1).
            frozen = torch.cat([output.detach(), variance_output], dim=1)
            vb = self.vb_terms_bpd(lambda *_, **__: frozen, x_start, x_t, t, clip_denoised=False)
            terms["vb"] = vb * (self.num_timesteps / 1000.0) if self.loss_type is LossType.RESCALED_MSE else vb
        if self.model_mean_type is ModelMeanType.EPSILON:
            target = noise
        elif self.model_mean_type is ModelMeanType.START_X:
            target = x_start
        elif self.model_mean_type is ModelMeanType.VELOCITY:
            target = self.velocity(x_start, t, noise)
        else:
            target = self.q_posterior_mean_variance(x_start, x_t, t).mean
        terms["mse"] = mean_flat((target - output.to(target.dtype)) ** 2)
        weighted = terms["mse"] * self._at("loss_weights", t, terms["mse"])
        terms["loss"] = weighted + terms["vb"] if "vb" in terms else weighted
        return terms


def extract(table: np.ndarray | Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries of a float64 table at steps t (B,), in `like`'s dtype and device, shaped (B, 1, ..., 1)."""
    values = torch.as_tensor(table, device=t.device)[t].to(device=like.device, dtype=like.dtype)
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _where_not_first(t: Tensor, like: Tensor) -> Tensor:
    """1 where t > 0, else 0: no noise is added in the last step."""
    return (t != 0).to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))

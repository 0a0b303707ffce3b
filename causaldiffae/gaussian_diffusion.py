"""Gaussian diffusion: the forward process q, the reverse process p, DDPM and DDIM.

With alpha-bar_t = prod_{s<=t} (1 - beta_s), the forward process is q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)
(Ho et al., 2020, arXiv 2006.11239, eq. 4). A network predicts eps, x_0 or v. DDIM (Song et al., 2021, arXiv 2010.02502)
makes the reverse process deterministic, so that it can be run in both directions: to encode an image into x_T and to
decode x_T into an image. Tables are float64 and are cast to the dtype of the images at use.

A `model` is called as model(x_t, steps) and returns (B, C, H, W), or (B, 2C, H, W) with a learned variance. Conditions
such as labels or latents are bound to it by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import Enum
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.losses import discretized_gaussian_log_likelihood, normal_kl
from causaldiffae.nn import ModelFn, mean_flat, table_on
from causaldiffae.noise_schedule import (  # noqa: F401  schedules are guided-diffusion's names in this module
    ModelMeanType,
    NoiseSchedule,
    betas_for_alpha_bar,
    enforce_zero_terminal_snr,
    get_named_beta_schedule,
    min_snr_weights,
    with_positive_end,
)


class ModelVarType(Enum):
    """The variance of the reverse process."""

    FIXED_SMALL = "fixed_small"
    FIXED_LARGE = "fixed_large"
    LEARNED_RANGE = "learned_range"


class LossType(Enum):
    """The training objective: mean squared error, or the variational bound times the number of steps.

    With a learned variance, the bound that trains it is added to the mean squared error; RESCALED_MSE multiplies that
    bound by T / 1000.
    """

    MSE = "mse"
    RESCALED_MSE = "rescaled_mse"
    RESCALED_KL = "rescaled_kl"


class GaussianMoments(NamedTuple):
    """Mean, variance and log-variance of a Gaussian over images, each (B, C, H, W)."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor


class ReverseStep(NamedTuple):
    """Moments of p(x_{t-1} | x_t) and the predictions they follow from, each (B, C, H, W)."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    pred_xstart: Tensor
    eps: Tensor


class GaussianDiffusion:
    """The diffusion process of a beta schedule.

    Args:
        betas: (T,) in (0, 1].
        model_mean_type, model_var_type, loss_type: see the enums.
        rescale_timesteps: pass t * 1000 / T to the network.
        min_snr_gamma: gamma of min-SNR loss weights, see `min_snr_weights`; 0 disables them.

    Raises:
        InputError: for betas outside (0, 1]; for a last beta of 1 with eps-prediction, which does not determine x_0 at
            zero SNR; for a negative gamma, or one together with the variational bound.
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
            raise InputError("betas: expected a non-empty list of numbers in (0, 1]")
        if betas[-1] == 1 and len(betas) > 1 and model_mean_type is ModelMeanType.EPSILON:
            raise InputError("zero_terminal_snr: expected v- or x0-prediction, got eps; add --predict_v True")
        if min_snr_gamma < 0 or (min_snr_gamma and loss_type is LossType.RESCALED_KL):
            raise InputError(f"min_snr_gamma: expected 0 or more, and 0 with use_kl, got {min_snr_gamma}")
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
        self.base_alphas_cumprod = with_positive_end(self.alphas_cumprod)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.alphas_cumprod_next = np.append(self.alphas_cumprod[1:], 0.0)

        # q(x_t | x_0) and its inversion
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1.0 - self.alphas_cumprod)
        with np.errstate(divide="ignore"):  # infinite at zero terminal SNR, where eps is not predicted
            self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
            self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1.0)

        # q(x_{t-1} | x_t, x_0); its variance is 0 at t = 0, so the log-variance there is that of t = 1
        self.posterior_variance = betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)
        clipped = np.append(self.posterior_variance[min(1, len(betas) - 1)], self.posterior_variance[1:])
        self.posterior_log_variance_clipped = np.log(np.maximum(clipped, 1e-20))
        self.posterior_mean_coef1 = betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1.0 - self.alphas_cumprod_prev) * np.sqrt(alphas) / (1.0 - self.alphas_cumprod)
        self.log_betas = np.log(betas)
        # beta_t, except at t = 0, where it would give a worse decoder likelihood (Ho et al., 2020)
        first = max(self.posterior_variance[min(1, len(betas) - 1)], 1e-20)
        self.large_log_variance = np.log(np.append(first, betas[1:]))

        self.loss_weights = min_snr_weights(self.alphas_cumprod, model_mean_type, min_snr_gamma)
        self._tables: dict[tuple[str, torch.device], Tensor] = {}

    @property
    def max_timestep(self) -> float:
        """T in the time units of the network."""
        return 1000.0 if self.rescale_timesteps else float(self.original_num_steps)

    @cached_property
    def noise_schedule(self) -> NoiseSchedule:
        """alpha-bar at fractional steps of the training process, not of a respaced one."""
        return NoiseSchedule(self.base_alphas_cumprod, self.model_mean_type, self.max_timestep)

    def _at(self, table: str, t: Tensor, like: Tensor) -> Tensor:
        """Entries at steps t (B,) of the table with this attribute name, see `extract`; cached per device."""
        return extract(self._table(table, t.device), t, like)

    def _table(self, name: str, device: torch.device) -> Tensor:
        key = (name, device)
        if key not in self._tables:
            self._tables[key] = table_on(device, getattr(self, name))
        return self._tables[key]

    # ------------------------------------------------------------------ the forward process

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Returns x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise for images (B, C, H, W) and steps (B,)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        signal = self._at("sqrt_alphas_cumprod", t, x_start)
        return signal * x_start + self._at("sqrt_one_minus_alphas_cumprod", t, x_start) * noise

    def q_posterior_mean_variance(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> GaussianMoments:
        """Returns the moments of q(x_{t-1} | x_t, x_0) (Ho et al., 2020, eq. 7)."""
        mean = self._at("posterior_mean_coef1", t, x_t) * x_start + self._at("posterior_mean_coef2", t, x_t) * x_t
        return GaussianMoments(
            mean,
            self._at("posterior_variance", t, x_t).expand_as(x_t),
            self._at("posterior_log_variance_clipped", t, x_t).expand_as(x_t),
        )

    # ------------------------------------------------------------------ predictions

    def model_timesteps(self, t: Tensor) -> Tensor:
        """Time steps passed to the network: indices of the original process, rescaled if `rescale_timesteps`."""
        original = self._table("timestep_map", t.device)[t]
        return original.float() * (1000.0 / self.original_num_steps) if self.rescale_timesteps else original

    def predict_xstart_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Returns x_0 = x_t / sqrt(abar_t) - sqrt(1 / abar_t - 1) eps."""
        noise = self._at("sqrt_recipm1_alphas_cumprod", t, x_t) * eps
        return self._at("sqrt_recip_alphas_cumprod", t, x_t) * x_t - noise

    def predict_eps_from_xstart(self, x_t: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        """Returns eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)."""
        signal = self._at("sqrt_alphas_cumprod", t, x_t)
        return (x_t - signal * x_start) / self._at("sqrt_one_minus_alphas_cumprod", t, x_t)

    def velocity(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Returns v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (Salimans and Ho, 2022, arXiv 2202.00512, section 4)."""
        signal = self._at("sqrt_alphas_cumprod", t, x_start)
        return signal * noise - self._at("sqrt_one_minus_alphas_cumprod", t, x_start) * x_start

    def _xstart_from_output(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        if self.model_mean_type is ModelMeanType.EPSILON:
            return self.predict_xstart_from_eps(x, t, output)
        if self.model_mean_type is ModelMeanType.VELOCITY:
            noise_scale = self._at("sqrt_one_minus_alphas_cumprod", t, x)
            return self._at("sqrt_alphas_cumprod", t, x) * x - noise_scale * output
        return output

    def p_mean_variance(self, model: ModelFn, x: Tensor, t: Tensor, clip_denoised: bool = True) -> ReverseStep:
        """Returns the moments of p(x_{t-1} | x_t) and the predicted x_0 and eps.

        Args:
            model: see the module docstring.
            x: (B, C, H, W), x_t.
            t: (B,) indices into this process.
            clip_denoised: clip the predicted x_0 to [-1, 1]; eps then follows from the clipped x_0.
        """
        output, variance_output = self._split(model(x, self.model_timesteps(t)), x.shape[1])
        pred_xstart = self._xstart_from_output(output, x, t)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)
        mean = self.q_posterior_mean_variance(pred_xstart, x, t).mean
        log_variance = self._log_variance(variance_output, t, x)
        eps = self.predict_eps_from_xstart(x, t, pred_xstart)
        return ReverseStep(mean, log_variance.exp(), log_variance, pred_xstart, eps)

    def _split(self, output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """Splits the output into the prediction and the output for a learned variance, or None."""
        if self.model_var_type is not ModelVarType.LEARNED_RANGE:
            return output, None
        if output.shape[1] != 2 * channels:
            raise InputError(
                f"model output: expected {2 * channels} channels with a learned variance, got {output.shape[1]}"
            )
        prediction, variance_output = output.chunk(2, dim=1)
        return prediction, variance_output

    def _log_variance(self, variance_output: Tensor | None, t: Tensor, x: Tensor) -> Tensor:
        if variance_output is not None:  # between the two fixed variances (Nichol and Dhariwal, 2021, eq. 15)
            low = self._at("posterior_log_variance_clipped", t, x)
            high = self._at("log_betas", t, x)
            fraction = (variance_output + 1) / 2
            return fraction * high + (1 - fraction) * low
        large = self.model_var_type is ModelVarType.FIXED_LARGE
        return self._at("large_log_variance" if large else "posterior_log_variance_clipped", t, x).expand_as(x)

    # ------------------------------------------------------------------ sampling

    def p_sample(
        self, model: ModelFn, x: Tensor, t: Tensor, clip_denoised: bool = True, noise: Tensor | None = None
    ) -> Tensor:
        """Takes one ancestral step x_t -> x_{t-1}."""
        step = self.p_mean_variance(model, x, t, clip_denoised)
        noise = torch.randn_like(x) if noise is None else noise
        return step.mean + _where_not_first(t, x) * torch.exp(0.5 * step.log_variance) * noise

    def ddim_sample(
        self,
        model: ModelFn,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = False,
        eta: float = 0.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Takes one DDIM step x_t -> x_{t-1} (Song et al., 2021, eq. 12); deterministic with eta = 0."""
        step = self.p_mean_variance(model, x, t, clip_denoised)
        alpha_bar, alpha_bar_prev = self._at("alphas_cumprod", t, x), self._at("alphas_cumprod_prev", t, x)
        sigma = eta * torch.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) * torch.sqrt(1 - alpha_bar / alpha_bar_prev)
        mean = step.pred_xstart * alpha_bar_prev.sqrt() + torch.sqrt(1 - alpha_bar_prev - sigma**2) * step.eps
        if eta == 0.0:
            return mean
        noise = torch.randn_like(x) if noise is None else noise
        return mean + _where_not_first(t, x) * sigma * noise

    @torch.no_grad()
    def _loop(self, step: Callable[[Tensor, Tensor], Tensor], x: Tensor, indices: Iterable[int]) -> Tensor:
        steps = torch.arange(self.num_timesteps, device=x.device)
        for i in indices:
            x = step(x, steps[i].expand(x.shape[0]))
        return x

    def p_sample_loop(self, model: ModelFn, x: Tensor, clip_denoised: bool = True) -> Tensor:
        """Ancestral sampling from noise x (B, C, H, W) to images."""
        return self._loop(
            lambda x, t: self.p_sample(model, x, t, clip_denoised), x, reversed(range(self.num_timesteps))
        )

    def ddim_sample_loop(
        self, model: ModelFn, x: Tensor, clip_denoised: bool = False, eta: float = 0.0, start: int | None = None
    ) -> Tensor:
        """DDIM decoding of x_T (B, C, H, W) to images; `start` is the number of steps to take, by default all."""
        count = self.num_timesteps if start is None else start
        return self._loop(lambda x, t: self.ddim_sample(model, x, t, clip_denoised, eta), x, reversed(range(count)))

    def ddim_reverse_sample(self, model: ModelFn, x: Tensor, t: Tensor) -> Tensor:
        """Takes one DDIM encoding step x_t -> x_{t+1} with the network evaluated at x_t, as in guided-diffusion."""
        step = self.p_mean_variance(model, x, t, clip_denoised=False)
        alpha_bar_next = self._at("alphas_cumprod_next", t, x)
        return step.pred_xstart * alpha_bar_next.sqrt() + torch.sqrt(1 - alpha_bar_next) * step.eps

    def ddim_reverse_sample_loop(self, model: ModelFn, x: Tensor) -> Tensor:
        """DDIM encoding from x at step 0 to alpha-bar = 0, as in guided-diffusion; `ddim_encode` inverts decoding."""
        return self._loop(lambda x, t: self.ddim_reverse_sample(model, x, t), x, range(self.num_timesteps))

    def ddim_encode(self, model: ModelFn, x_start: Tensor, stop: int | None = None) -> Tensor:
        """DDIM encoding that inverts `ddim_sample_loop` step by step: clean image -> x_0 -> ... -> x_{T-1}.

        The step from x_{t-1} to x_t inverts the decoding step from x_t, with eps evaluated at (x_{t-1}, t - 1) instead
        of (x_t, t). The first step starts at the clean image (alpha-bar = 1), and the last one ends where decoding
        starts. A constant eps is therefore inverted exactly.

        Args:
            x_start: (B, C, H, W) in [-1, 1]; predictions are not clipped, since clipping cannot be inverted.
            stop: number of steps to take, by default all.
        """

        def step(x: Tensor, t: Tensor) -> Tensor:
            source = (t - 1).clamp(min=0)  # x has the noise of step t - 1, and the clean image that of step 0
            output = model(x, self.model_timesteps(source))[:, : x.shape[1]]
            eps = output
            if self.model_mean_type is not ModelMeanType.EPSILON:
                eps = self.predict_eps_from_xstart(x, source, self._xstart_from_output(output, x, source))
            before, after = self._at("alphas_cumprod_prev", t, x), self._at("alphas_cumprod", t, x)
            pred_xstart = (x - torch.sqrt(1 - before) * eps) / before.sqrt()
            return after.sqrt() * pred_xstart + torch.sqrt(1 - after) * eps

        return self._loop(step, x_start, range(self.num_timesteps if stop is None else stop))

    # ------------------------------------------------------------------ losses

    def vb_terms_bpd(
        self, model: ModelFn, x_start: Tensor, x_t: Tensor, t: Tensor, clip_denoised: bool = True
    ) -> Tensor:
        """Returns the term of the variational bound at steps t, (B,) in bits per dimension.

        At t = 0 it is the decoder's negative log-likelihood of 8-bit pixels, elsewhere the divergence from
        q(x_{t-1} | x_t, x_0).
        """
        true = self.q_posterior_mean_variance(x_start, x_t, t)
        step = self.p_mean_variance(model, x_t, t, clip_denoised)
        kl = mean_flat(normal_kl(true.mean, true.log_variance, step.mean, step.log_variance)) / math.log(2.0)
        nll = -discretized_gaussian_log_likelihood(x_start, means=step.mean, log_scales=0.5 * step.log_variance)
        return torch.where(t == 0, mean_flat(nll) / math.log(2.0), kl)

    def training_losses(
        self, model: ModelFn, x_start: Tensor, t: Tensor, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the diffusion loss per image.

        Args:
            x_start: (B, C, H, W) in [-1, 1].
            t: (B,) indices into this process.
            noise: (B, C, H, W), sampled by default.

        Returns:
            `loss` (B,) and its parts: `mse`, before min-SNR weighting, and, with a learned variance, `vb`.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise)
        if self.loss_type is LossType.RESCALED_KL:
            return {"loss": self.vb_terms_bpd(model, x_start, x_t, t, clip_denoised=False) * self.num_timesteps}

        terms: dict[str, Tensor] = {}
        output, variance_output = self._split(model(x_t, self.model_timesteps(t)), x_t.shape[1])
        if variance_output is not None:
            # The bound trains the variance only: the prediction is detached (Nichol and Dhariwal, 2021, section 3.1).
            frozen = torch.cat([output.detach(), variance_output], dim=1)
            vb = self.vb_terms_bpd(lambda *_: frozen, x_start, x_t, t, clip_denoised=False)
            terms["vb"] = vb * (self.num_timesteps / 1000.0) if self.loss_type is LossType.RESCALED_MSE else vb
        if self.model_mean_type is ModelMeanType.EPSILON:
            target = noise
        elif self.model_mean_type is ModelMeanType.START_X:
            target = x_start
        else:
            target = self.velocity(x_start, t, noise)
        terms["mse"] = mean_flat((target - output.to(target.dtype)) ** 2)
        weighted = terms["mse"] * self._at("loss_weights", t, terms["mse"])
        terms["loss"] = weighted + terms["vb"] if "vb" in terms else weighted
        return terms


def extract(table: np.ndarray | Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries of a float64 table at steps t (B,), in the dtype and on the device of `like`, shaped (B, 1, ..., 1)."""
    values = table_on(t.device, table)[t].to(device=like.device, dtype=like.dtype)
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _where_not_first(t: Tensor, like: Tensor) -> Tensor:
    """1 where t > 0, else 0: no noise is added in the last step."""
    return (t != 0).to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))

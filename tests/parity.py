"""Compares this package with figures that public reference implementations computed.

    python tests/parity.py FILE.npz ...

A file contains `meta`, a JSON string with `kind`, `config` and `state_dict` (key -> shape), inputs, and the outputs of
the reference. Weights are not stored: both sides draw them by the same rule (`rule_weights`).
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from causaldiffae.dit import DiT
from causaldiffae.errors import DataError, InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, LossType, ModelVarType, get_named_beta_schedule
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import Observed, label_kl, prior_kl
from causaldiffae.published.causaldiffae import load_model
from causaldiffae.respace import SpacedDiffusion, space_timesteps
from causaldiffae.unet import EncoderUNetModel, UNetModel

Arrays = dict[str, np.ndarray]


class Line(NamedTuple):
    """One compared array: name, largest and relative difference, and the error to which the tolerance applies."""

    name: str
    max_abs: float
    relative: float
    error: float


def compare(name: str, ours: Tensor | np.ndarray, theirs: np.ndarray) -> Line:
    """Largest absolute difference, and norm of the difference over norm of the reference; NaN never passes."""
    a = np.asarray(ours.detach().cpu() if isinstance(ours, Tensor) else ours, dtype=np.float64)
    b = np.asarray(theirs, dtype=np.float64)
    if a.shape != b.shape:
        return Line(f"{name} (shape {a.shape}, expected {b.shape})", np.inf, np.inf, np.inf)
    difference, norm = a - b, np.linalg.norm(b)
    relative = float(np.linalg.norm(difference) / norm) if norm else float(np.linalg.norm(difference) > 0)
    return Line(name, float(np.abs(difference).max(initial=0.0)), relative, relative)


def rule_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights that both sides draw: normal, seeded by the CRC-32 of the key, scaled by its kind."""
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            continue
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        a = rng.standard_normal(shape)
        if key.endswith("running_var"):
            a = 0.5 + rng.random(shape)
        elif len(shape) >= 2:
            a = a / np.sqrt(np.prod(shape[1:]))
        else:
            a = 1 + 0.1 * a if key.endswith("weight") else 0.1 * a
        state[key] = torch.from_numpy(np.asarray(a, dtype=np.float32))
    return state


def load_rule_weights(network: nn.Module, shapes: dict[str, list[int]]) -> nn.Module:
    """Loads these weights into a network whose keys and shapes must be exactly those of the reference."""
    state = network.state_dict()
    expected = {key: tuple(shape) for key, shape in shapes.items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if expected != found:
        different = sorted(set(expected.items()) ^ set(found.items()))[:5]
        raise DataError(f"state dict: expected the keys and shapes of the reference, got differences in {different}")
    network.load_state_dict({**state, **rule_weights(shapes)})
    return network.eval()


def check_adm_unet(meta: dict[str, Any], arrays: Arrays) -> Iterator[Line]:
    network = load_rule_weights(UNetModel(**meta["config"]), meta["state_dict"])
    y = torch.from_numpy(arrays["y"]) if meta["config"].get("num_classes") else None
    out = network(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["t"]), y)
    yield compare("out", out, arrays["out"])


def check_adm_classifier(meta: dict[str, Any], arrays: Arrays) -> Iterator[Line]:
    network = load_rule_weights(EncoderUNetModel(**meta["config"]), meta["state_dict"])
    yield compare("out", network(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["t"])), arrays["out"])


GUIDED_CHANNELS = 3
"""As published (`forward_with_cfg`): of the four channels of a latent, guidance acts on the first three only."""


def check_dit(meta: dict[str, Any], arrays: Arrays) -> Iterator[Line]:
    config = dict(meta["config"])
    network = load_rule_weights(DiT(image_size=config.pop("input_size"), **config), meta["state_dict"])
    x, t, y = (torch.from_numpy(arrays[key]) for key in ("x", "t", "y"))
    yield compare("out", network(x, t, y), arrays["out"])
    same, at = x[:1].expand(2, -1, -1, -1), torch.full((2,), 9)
    conditional, null = network(same, at, torch.tensor([1, config["num_classes"]]))
    guided = null + 4.0 * (conditional - null)
    halves = [torch.cat([guided[:GUIDED_CHANNELS], half[GUIDED_CHANNELS:]]) for half in (conditional, null)]
    yield compare("cfg", torch.stack(halves), arrays["cfg"])


def check_causaldiffae(meta: dict[str, Any], arrays: Arrays) -> Iterator[Line]:
    names = [f"v{i}" for i in range(meta["config"]["n_vars"])]
    model = load_model(rule_weights(meta["state_dict"]), CausalGraph.from_adjacency(names, meta["A"]))
    inputs = {key: torch.from_numpy(arrays[key]) for key in ("x0", "xt", "t", "y", "c")}
    classes = inputs["y"] if meta["config"].get("num_classes") else None
    posterior = model.encode(inputs["x0"])
    noise = list(posterior.mean.unbind(dim=1))
    summed = [sum((noise[j] for j in model.scm.parent_index[i]), torch.zeros_like(noise[i])) for i in range(len(names))]
    z = model.predict(posterior.mean)
    yield compare("mu", posterior.mean.flatten(1), arrays["mu"])
    yield compare("var", posterior.logvar.exp(), arrays["var"].reshape(posterior.mean.shape))
    yield compare("z_pre", torch.cat(summed, dim=1), arrays["z_pre"].reshape(len(z), -1))
    yield compare("z_post", z.flatten(1), arrays["z_post"].reshape(len(z), -1))
    for name, latents in (("eps", z), ("eps_null", torch.zeros_like(z))):
        yield compare(name, model.model_output(inputs["xt"], inputs["t"], latents, classes), arrays[name])
    prior, label = prior_kl(posterior), label_kl(z, 0.0, inputs["c"], 1.0)
    labelled = torch.arange(len(z)) == 0
    yield compare("kl", prior + label, arrays["kl"].reshape(-1))
    yield compare("kl_masked", Observed.of(labelled).mean(prior + label), arrays["kl_masked"].reshape(()))
    yield compare("kl_no_causal", prior, arrays["kl_no_causal"].reshape(-1))


def closed_form_model(diffusion: GaussianDiffusion) -> Callable[..., Tensor]:
    """The files' network: eps(x, t) = tanh(0.7 x + 0.001 t), and sin(x) as the learned variance's channels."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        eps = torch.tanh(0.7 * x + 0.001 * t.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1)))
        return torch.cat([eps, torch.sin(x)], dim=1) if diffusion.model_var_type is ModelVarType.LEARNED_RANGE else eps

    return model


def check_diffusion(meta: dict[str, Any], arrays: Arrays) -> Iterator[Line]:
    kwargs = {
        "use_timesteps": space_timesteps(meta["steps"], meta["respacing"]),
        "betas": get_named_beta_schedule(meta["schedule"], meta["steps"]),
        "model_var_type": ModelVarType[meta["var"].split(".")[-1]],
        "rescale_timesteps": meta["rescale_timesteps"],
    }
    diffusion, rescaled = SpacedDiffusion(**kwargs), SpacedDiffusion(**kwargs, loss_type=LossType.RESCALED_MSE)
    model = closed_form_model(diffusion)
    x, x0, noise, t = (torch.from_numpy(arrays[key]) for key in ("x", "x0", "noise", "t"))
    x_t = diffusion.q_sample(x0, t, noise)
    step = diffusion.p_mean_variance(model, x, t, clip_denoised=True)
    posterior = diffusion.q_posterior_mean_variance(x0, x, t)
    terms = rescaled.training_losses(model, x0, t, noise=noise)
    found = {
        "timesteps": diffusion.timestep_map,
        "betas": diffusion.betas,
        "alphas_cumprod": diffusion.alphas_cumprod,
        **{name: getattr(step, name) for name in ("mean", "variance", "log_variance", "pred_xstart")},
        "ddim": diffusion.ddim_sample(model, x, t),
        "ddim_reverse": diffusion.ddim_reverse_sample(model, x, t),
        "q_sample": x_t,
        "post_mean": posterior.mean,
        "post_var": posterior.variance,
        "loss": terms["loss"],
        "mse": terms["mse"],
        **({"vb_train": terms["vb"]} if "vb_train" in arrays else {}),
        "vb": diffusion.vb_terms_bpd(model, x0, x_t, t, clip_denoised=True),
        "ddim_loop": diffusion.ddim_sample_loop(model, x),
        "ddim_inverted": diffusion.ddim_reverse_sample_loop(model, x0),
    }
    for name, value in found.items():
        yield compare(name, value, arrays[name])


def check_morphometrics(meta: dict[str, Any], arrays: Arrays) -> Iterator[Line]:
    from causaldiffae.generators.morphology import measure_batch

    ours = measure_batch(arrays["images"])
    for j, column in enumerate(meta["columns"]):
        yield compare(column, ours[:, j], arrays["metrics"][:, j])


def check_set_thickness(meta: dict[str, Any], arrays: Arrays) -> Iterator[Line]:
    from causaldiffae.generators.morphology import redraw, strokes_of

    rows = zip(strokes_of(arrays["images"]), arrays["thickness"], arrays["intensity"], strict=True)
    ours = np.array([redraw(base, float(t), float(i)) for base, t, i in rows])
    grey_levels = float(np.abs(ours.astype(np.float64) - arrays["out"]).mean())
    yield compare("out (mean grey levels)", ours, arrays["out"])._replace(error=grey_levels)


CHECKS: dict[str, tuple[float, Callable[[dict[str, Any], Arrays], Iterator[Line]]]] = {
    "causaldiffae": (1e-4, check_causaldiffae),
    "adm_unet": (1e-4, check_adm_unet),
    "adm_classifier": (1e-4, check_adm_classifier),
    "dit": (1e-4, check_dit),
    "diffusion": (1e-6, check_diffusion),
    "morphometrics": (1e-9, check_morphometrics),
    "set_thickness": (1.0, check_set_thickness),
}
"""Tolerance and comparison of every kind of file."""


def read(path: str) -> tuple[dict[str, Any], Arrays]:
    """Meta and arrays of a golden file; raises a `DataError` for any other file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        kind = meta["kind"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{path}: expected a golden file, got {type(error).__name__}: {error}") from error
    if kind not in CHECKS:
        raise DataError(f"{path}: kind: expected one of {', '.join(CHECKS)}, got {kind!r}")
    return meta, arrays


@torch.no_grad()
def check_file(path: str) -> tuple[float, list[Line]]:
    """The tolerance of one file, and every compared array."""
    meta, arrays = read(path)
    tolerance, check = CHECKS[meta["kind"]]
    return tolerance, list(check(meta, arrays))


def main(paths: list[str]) -> int:
    """Prints one line per array; returns 0 if all agree, 1 if one does not, 2 for a file that cannot be compared."""
    if not paths:
        sys.stderr.write("error: usage: python tests/parity.py FILE.npz ...\n")
        return 2
    failed = False
    for path in paths:
        try:
            tolerance, lines = check_file(path)
        except InputError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        for name, max_abs, relative, error in lines:
            failed |= not error <= tolerance
            verdict = "ok" if error <= tolerance else f"FAIL (tolerance {tolerance:g})"
            sys.stdout.write(f"{path}  {name:24s} max abs {max_abs:.3e}  relative {relative:.3e}  {verdict}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Digests that identify models and settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch


def state_digest(module: torch.nn.Module) -> str:
    """Digest of the weights of a network, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def json_digest(value: Any) -> str:
    """Digest of a value that JSON can express, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

"""Weights of a network in files of other programs: a state dict, or a training checkpoint that contains one.

A file of `torch.save` or safetensors may hold the tensors of a network under any prefix: `module.` (several GPUs),
`_orig_mod.` (compiled), `model.`, `ema.` or `state_dict.ema_model.` (training checkpoints, Lightning). The prefix is
found by tensors that the network must have. Moving averages take precedence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from causaldiffae.errors import DataError
from causaldiffae.files.reading import StateDict, read_tensors
from causaldiffae.files.torch_archives import TorchArchive

_WRAPPERS: Final = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_AVERAGE: Final = re.compile(r"(^|[._])ema([._]|$)|average", re.IGNORECASE)


class Weights:
    """The tensors of a file.

    Attributes:
        path: the file.
        names: name of each tensor in the file, by its name without wrappers of modules.

    Raises:
        DataError: if the file is missing, damaged or of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._loaded: StateDict = {}
        self._archive: TorchArchive | None = None
        if _is_safetensors(self.path):
            self._loaded = read_tensors(self.path)
        else:
            self._archive = TorchArchive(self.path)
        given = list(self._loaded if self._archive is None else self._archive.tensors)
        self.names = {_without_wrappers(name): name for name in given}
        if len(self.names) != len(given):
            self.names = {name: name for name in given}

    def has(self, keys: Sequence[str]) -> bool:
        """Whether the file holds a network with these tensors."""
        return any(found == len(keys) for found in self._prefixes(keys).values())

    def state(self, keys: Sequence[str], network: str) -> StateDict:
        """Reads the state dict of a network, under its own names.

        Args:
            keys: tensors that the network has; some of them may be missing.
            network: what is expected, for messages.

        Raises:
            DataError: if none of the tensors is found; the message lists what the file holds.
        """
        prefixes = self._prefixes(keys)
        if not prefixes:
            raise DataError(f"{self.path}: expected {network}; the file holds {self.describe()}")
        most = max(prefixes.values())
        candidates = [prefix for prefix, found in prefixes.items() if found == most]
        prefix = min(candidates, key=lambda prefix: (_AVERAGE.search(prefix) is None, prefix.count("."), prefix))
        inner = tuple(other for other in candidates if other != prefix and other.startswith(prefix))
        chosen = {
            name.removeprefix(prefix): original
            for name, original in self.names.items()
            if name.startswith(prefix) and not (inner and name.startswith(inner))
        }
        if self._archive is None:
            return {name: self._loaded[original] for name, original in chosen.items()}
        read = self._archive.read(chosen.values())
        return {name: read[original] for name, original in chosen.items()}

    def _prefixes(self, keys: Sequence[str]) -> dict[str, int]:
        """Prefixes under which some of `keys` are found, with their number."""
        found: Counter[str] = Counter()
        wanted = set(keys)
        ends = {key.rpartition(".")[2] for key in keys}
        for name in self.names:
            if name.rpartition(".")[2] in ends:
                parts = name.split(".")
                for i in range(len(parts)):
                    if ".".join(parts[i:]) in wanted:
                        found[".".join(parts[:i]) + "." * (i > 0)] += 1
        return dict(found)

    def describe(self) -> str:
        """The content of the file in a few words."""
        if not self.names:
            return "no tensors"
        groups = Counter(name.partition(".")[0] for name in self.names)
        if len(groups) <= 8 and len(groups) < len(self.names):
            return ", ".join(f"{name[:60]} ({count} tensor{'s' * (count > 1)})" for name, count in groups.items())
        shown = ", ".join(name[:60] for name in list(self.names)[:5])
        more = f" and {len(self.names) - 5} more" if len(self.names) > 5 else ""
        return f"the tensors {shown}{more}" if len(self.names) > 1 else f"the tensor {shown}"


def _without_wrappers(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _is_safetensors(path: Path) -> bool:
    """Whether a file starts like safetensors: the length of a JSON header."""
    if not path.is_file() or path.stat().st_size < 10:
        return False
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size

"""tools/step_parts.py: the parts of a training step."""

import importlib.util

from paths import REPO


def test_every_part_takes_time() -> None:
    spec = importlib.util.spec_from_file_location("step_parts", REPO / "tools" / "step_parts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    times = module.measure("mini", count=2, steps=2, compiled=False)
    assert len(times) == len(module.PARTS) and min(times) > 0
    assert times[0] + times[1] > sum(times[2:]), "the network takes longer than the updates, even with two images"

"""Runs every parser on mutated files and counts the outcomes.

    python tools/fuzz/mutate.py                                  # 100,000 inputs over all parsers
    python tools/fuzz/mutate.py --inputs 5000 --parser "graph dot" --seed 7
    python tools/fuzz/mutate.py --parser idx --only 1234         # reproduces one input with its traceback

An input is determined by the seed, the name of the parser and its number. Each parser runs in a child process with one
gigabyte of additional memory; each input has a second of CPU time and twenty seconds of wall-clock time. An audit hook
detects files opened for writing. The exit code is 1 if there is any fault.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzz_mutations import mutate
from fuzz_parsers import PARSERS, Files, Parser

from causaldiffae.datasets.folder import image_cache, image_folder
from causaldiffae.errors import InputError

SECONDS, WAIT, GIGABYTE = 1.0, 20.0, 1 << 30
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.system", "os.exec",
             "os.posix_spawn", "subprocess.Popen", "socket.connect", "shutil.rmtree", "ctypes.dlopen")  # fmt: skip


class Hang(BaseException):
    """The time limit is exceeded."""


class Watch:
    """Records forbidden actions of a parser. An audit hook cannot be removed, so it is switched on and off."""

    def __init__(self) -> None:
        self.on, self.seen = False, ""
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and str(path) != os.devnull:
                self.seen = self.seen or f"opened {path!r} for writing"
        elif event in FORBIDDEN:
            self.seen = self.seen or f"{event} {str(arguments)[:80]}"


def write(folder: Path, files: Files) -> None:
    """Writes the files of an input to an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def make_input(name: str, number: int, seed: int, seeds: list[Files]) -> Files:
    """Generates an input."""
    rng, parser = random.Random(f"{seed}/{name}/{number}"), PARSERS[name]
    files = mutate(rng.choice(seeds), rng.choice(seeds), rng, parser.mutate_names)
    return parser.repair(files) if parser.repair and rng.random() < 0.7 else files


def peak_bytes() -> int:
    """The peak resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def run_one(parser: Parser, folder: Path, watch: Watch) -> tuple[str, str]:
    """Runs a parser on one input; returns "accepted", "refused" or "fault", and details."""

    def stop(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAIT)
    watch.on, watch.seen = True, ""
    try:
        parser.read(folder)
        outcome = "accepted", ""
    except InputError as error:
        text = str(error)
        wrong = "memory" in text or "\n" in text or len(text) > 5000
        outcome = ("fault", f"message {text[:200]!r}") if wrong else ("refused", type(error).__name__)
    except Hang:
        outcome = "fault", "more than a second"
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome = "fault", f"{type(error).__name__}: {str(error)[:120]} ({Path(frame.filename).name}:{frame.lineno})"
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ("fault", watch.seen) if watch.seen else outcome


def run_parser(name: str, numbers: range, seed: int, send: Any) -> None:
    """Runs a parser on all inputs; sends a record per fault, and a summary at the end."""
    parser, watch = PARSERS[name], Watch()
    root = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(dir=root)) / "x"
    seeds = parser.seeds()
    for files in seeds:
        write(folder, files)
        outcome, what = run_one(parser, folder, watch)
        if outcome != "accepted" and what != "DataError":
            send({"fault": what, "number": -1})
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTE, resource.RLIM_INFINITY))
    counts = {"accepted": 0, "refused": 0, "fault": 0}
    slowest = 0.0
    for number in numbers:
        write(folder, make_input(name, number, seed, seeds))
        start = time.process_time()
        outcome, what = run_one(parser, folder, watch)
        slowest = max(slowest, time.process_time() - start)
        counts[outcome] += 1
        if outcome == "fault":
            send({"fault": what, "number": number})
        if number % 200 == 0:
            send({"alive": number})
    shutil.rmtree(folder.parent, ignore_errors=True)
    send({**counts, "slowest_ms": 1000 * slowest, "peak_mb": max(peak_bytes() - before, 0) / 1e6})


def in_child(name: str, numbers: range, seed: int) -> dict[str, Any]:
    """Runs `run_parser` in a child process, whose death is also a fault."""
    receive, give = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        warnings.simplefilter("ignore")
        with contextlib.suppress(BaseException), os.fdopen(give, "w") as pipe:

            def send(line: dict[str, Any]) -> None:
                pipe.write(json.dumps(line) + "\n")
                pipe.flush()

            try:
                run_parser(name, numbers, seed, send)
            except BaseException as error:
                send({"fault": f"the harness: {type(error).__name__} {error}", "number": -2})
        os._exit(0)
    os.close(give)
    faults: dict[str, list[int]] = {}
    last: dict[str, Any] = {}
    with os.fdopen(receive) as pipe:
        for line in pipe:
            found = json.loads(line)
            if "fault" in found and "number" in found:
                faults.setdefault(found["fault"], []).append(found["number"])
            elif "alive" not in found:
                last = found
    _, status = os.waitpid(child, 0)
    if not last:
        faults.setdefault(f"the process ended with status {status}", []).append(-1)
        last = {"accepted": 0, "refused": 0, "fault": 0, "slowest_ms": 0.0, "peak_mb": 0.0}
    return {**last, "faults": faults}


def show_one(name: str, number: int, seed: int) -> None:
    """Reproduces one input, and prints the beginnings of its files and the result."""
    files = make_input(name, number, seed, PARSERS[name].seeds())
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "x", files)
        for file, content in files.items():
            print(f"{file} ({len(content)} bytes): {content[:300]!r}")
        print(PARSERS[name].read(Path(folder) / "x"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="total, distributed by the weights of the parsers")
    parser.add_argument(
        "--parser", action="append", choices=sorted(PARSERS), help="run only this parser; may be repeated"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of one input to run in this process")
    given = parser.parse_args()
    image_cache.cache_folder = image_folder.cache_folder = lambda folder: None  # it writes beside the data
    image_cache.shared_folder = lambda address, size: None
    names = given.parser or list(PARSERS)
    if given.only is not None:
        show_one(names[0], given.only, given.seed)
        return 0
    total = sum(PARSERS[name].weight for name in names)
    print("| parser | inputs | refused | accepted | faults | slowest ms | peak MB |\n|---|---|---|---|---|---|---|")
    failed, sums = False, [0, 0, 0, 0]
    for name in names:
        count = max(round(given.inputs * PARSERS[name].weight / total), 1)
        found = in_child(name, range(count), given.seed)
        row = [found[key] for key in ("refused", "accepted", "fault")]
        row = [sum(row), *row]
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        cells = " | ".join(f"{value:,}" for value in row)
        print(f"| {name} | {cells} | {found['slowest_ms']:.0f} | {found['peak_mb']:.0f} |", flush=True)
        for fault, numbers in sorted(found["faults"].items(), key=lambda item: -len(item[1]))[:20]:
            failed = True
            print(f"  FAULT {len(numbers)}x, first input {numbers[0]}: {fault}", file=sys.stderr, flush=True)
    print(f"| all | {' | '.join(f'{value:,}' for value in sums)} | | |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Training steps on one GPU: `byol bench step` against plain PyTorch (torch_step.py) in one run.

    PYTHON scripts/compare/gpu.py --byol target/release/byol --data data/cifar10 [--json gpu.json]

PYTHON has torch 2.11.0 and torchvision, nothing else; --data names a folder of parquet shards with 32 px JPEGs. The peer
reads them where there is a pyarrow, else it draws its own of the same size. scripts/gpu-check runs this with the right
libraries. Without a GPU it says so and measures nothing. One table and (--json) one file, which is written anew after
every result; what is left undone after --minutes is said to be. --rehearse runs all of it on a CPU with a network and
batches so small that the figures mean nothing: to see that it works.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SMALL = {"arch": "resnet18", "stem": "cifar", "size": 32, "width": 1, "batch": 512, "steps": 100}
LARGE = {"arch": "resnet50", "stem": "imagenet", "size": 224, "width": 1, "batch": 256, "steps": 20}
TINY = {"size": 32, "width": 0.25, "batch": 8, "steps": 2, "precision": "fp32"}
LOADER_WORKERS = 16
SEEDS = 4
CONFIG = ROOT / "configs/cifar10_resnet18.yaml"
NOT_RUN = "not run: no time left"
COMPILED = ("large", "PyTorch compiled, tensors on the device")
UNFUSED = "byol, no loader, libtorch's BatchNorm"
COMPILING = 150.0  # seconds that are kept for it


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Check:
    """What is compared, on which device, until when."""

    def __init__(self, args: argparse.Namespace, device: str):
        self.args, self.device = args, "cpu" if args.rehearse else "cuda"
        tiny = TINY if args.rehearse else {}
        self.small, self.large = {**SMALL, **tiny}, {**LARGE, **tiny}
        self.end = time.monotonic() + 60 * args.minutes
        self.reserved = 0.0  # seconds, for contenders that are still to come
        self.results: dict = {"device": device}

    def left(self) -> float:
        return self.end - time.monotonic() - self.reserved

    def output(self, command: list) -> str:
        """What a command prints. It fails with the reason in one line, or as TimeoutExpired."""
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=self.left())
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def keys(self, case: dict, extra: dict) -> list[str]:
        """A config's overrides for the case; the heads are the paper's."""
        settings = {
            "data.path": self.args.data,
            "augment.size": case["size"],
            "model.arch": case["arch"],
            "model.stem": case["stem"],
            "model.width": case["width"],
            "optimizer.name": "sgd",
            "optimizer.clip_lr": "false",
            "optimizer.base_lr": 0.05,
            "train.batch_size": case["batch"],
            "train.precision": case.get("precision", "bf16"),
            "train.device": self.device,
            **extra,
        }
        return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def byol(self, case: dict, *flags: str, **extra) -> dict:
        keys = self.keys(case, {f"train.{key}": value for key, value in extra.items()})
        command = [self.args.byol, "bench", "step", "--config", CONFIG, "--steps", case["steps"], *keys, *flags]
        return json.loads(self.output(command))

    def torch(self, case: dict, *extra) -> dict:
        options = [word for key, value in case.items() for word in (f"--{key}", value)]
        command = [sys.executable, HERE / "torch_step.py", "--device", self.device, *options, *extra]
        return json.loads(self.output(command).strip().splitlines()[-1])

    def losses(self, graph: str, fused: str) -> list[float]:
        """Of 20 deterministic steps of the small case."""
        with tempfile.TemporaryDirectory() as out:
            settings = {
                "train.cuda_graph": graph,
                "train.fused_batch_norm": fused,
                "train.deterministic": "true",
                "train.max_steps": 20,
                "monitor.log_every": 1,
                "monitor.knn_every": 0,
                "monitor.quality_every": "null",
                "output.dir": out,
            }
            self.output([self.args.byol, "train", "--config", CONFIG, *self.keys(self.small, settings)])
            lines = (pathlib.Path(out) / "metrics.jsonl").read_text().splitlines()
            return [json.loads(line)["loss"] for line in lines]

    def changes(self) -> dict:
        """Largest relative difference of the losses without the CUDA graph, and without the fused BatchNorm."""
        graph = "auto" if self.args.rehearse else "on"
        both = self.losses(graph, "true")
        others = {"graph": self.losses("off", "true"), "fused_batch_norm": self.losses(graph, "false")}
        return {
            name: max(abs(a - b) / abs(b) for a, b in zip(both, other, strict=True)) for name, other in others.items()
        }

    def learned(self, precision: str) -> dict:
        """The k-NN accuracy that the quick start reaches with several seeds, in percent."""
        found = []
        short = {"train.precision": "fp32", "train.max_steps": 2} if self.args.rehearse else {}
        for seed in range(1 if self.args.rehearse else SEEDS):
            with tempfile.TemporaryDirectory() as out:
                settings = {"train.device": self.device, "train.precision": precision, "train.seed": seed, **short}
                settings |= {"output.dir": out, "monitor.quality_every": "null"}
                keys = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
                self.output([self.args.byol, "train", "--config", "quickstart", *keys])
                found.append(json.loads((pathlib.Path(out) / "summary.json").read_text())["knn_top1"] * 100)
        return {"knn_top1": found}

    def contenders(self) -> dict[tuple[str, str], Callable[[], dict]]:
        """What can be run, by case and name. What matters most comes first; compiling takes longest."""
        peer_data = []
        try:
            import pyarrow  # noqa: F401

            peer_data = ["--data", self.args.data]
        except ImportError:
            say("no pyarrow: PyTorch's JPEGs are drawn")
        workers = min(LOADER_WORKERS, os.cpu_count() or 1)
        fed = ["--feed", "torchvision", "--workers", workers, *peer_data]
        short = {**self.small, "steps": min(30, self.small["steps"])}
        tensors = "PyTorch, tensors on the device"
        return {
            ("small", "byol, no loader"): lambda: self.byol(self.small, "--synthetic"),
            ("small", tensors): lambda: self.torch(self.small),
            ("small", "byol"): lambda: self.byol(self.small),
            ("small", f"PyTorch, {workers} workers with lightly's transforms"): lambda: self.torch(short, *fed),
            ("large", "byol, no loader"): lambda: self.byol(self.large, "--synthetic"),
            ("large", tensors): lambda: self.torch(self.large),
            ("small", "byol, no loader, no CUDA graph"): lambda: self.byol(self.small, "--synthetic", cuda_graph="off"),
            ("large", UNFUSED): lambda: self.byol(self.large, "--synthetic", fused_batch_norm="false"),
            ("small", UNFUSED): lambda: self.byol(self.small, "--synthetic", fused_batch_norm="false"),
            ("losses", "changes"): self.changes,
            ("learned", "fp32"): lambda: self.learned("fp32"),
            ("learned", "bf16"): lambda: self.learned("bf16"),
            ("large", "byol"): lambda: self.byol(self.large),
            COMPILED: lambda: self.torch(self.large, "--compile"),
            ("small", COMPILED[1]): lambda: self.torch(self.small, "--compile"),
        }

    def chosen(self) -> dict[tuple[str, str], Callable[[], dict]]:
        """Those that --only names, or all."""
        contenders = self.contenders()
        only = self.args.only or [": ".join(key) for key in contenders]
        if unknown := set(only) - {": ".join(key) for key in contenders}:
            names = "; ".join(": ".join(key) for key in contenders)
            raise SystemExit(f"error: --only: found {', '.join(sorted(unknown))}, expected one of: {names}")
        return {key: run for key, run in contenders.items() if ": ".join(key) in only}

    def run(self) -> None:
        chosen = self.chosen()
        waiting = list(chosen)
        for (case, name), contender in chosen.items():
            waiting.remove((case, name))
            self.reserved = min(COMPILING, 20 * self.args.minutes) if COMPILED in waiting else 0.0
            started = time.monotonic()
            result = {"failed": NOT_RUN}
            try:
                if self.left() > 5:
                    result = contender()
            except subprocess.TimeoutExpired:
                result = {"failed": f"stopped after {time.monotonic() - started:.0f} s: no time left"}
            except (RuntimeError, ValueError) as error:
                result = {"failed": str(error)}
            self.results.setdefault(case, {})[name] = result
            if self.args.json:
                self.args.json.parent.mkdir(parents=True, exist_ok=True)
                self.args.json.write_text(json.dumps(self.results, indent=2) + "\n")
            rate = result.get("images_per_second")
            said = result.get("failed") or (f"{rate:.0f} images/s" if rate else json.dumps(result))
            say(f"{case}: {name}: {said} ({time.monotonic() - started:.0f} s)")

    def table(self) -> str:
        """Markdown."""
        lines = [self.results["device"], ""]
        for case, shape in (("small", self.small), ("large", self.large)):
            title = f"{shape['arch']}, {shape['size']} px, batch {shape['batch']}, bf16"
            reports = self.results.get(case)
            if not reports:
                continue
            lines += [f"| {title} | images/s | byol / it | memory taken, GB |", "|---|---|---|---|"]
            own, loaded = (reports.get(name, {}).get("images_per_second") for name in ("byol, no loader", "byol"))
            for name, report in reports.items():
                rate, memory = report.get("images_per_second"), report.get("reserved_device_mb")
                ours = loaded if "workers" in name else own
                ratio = f"{ours / rate:.2f}" if rate and ours and not name.startswith("byol") else ""
                shown = f"{rate:.0f}" if rate else NOT_RUN if report["failed"] == NOT_RUN else "failed"
                lines.append(f"| {name} | {shown} | {ratio} | {f'{memory / 1e3:.1f}' if memory else ''} |")
            if own and loaded:
                lines.append(f"\nWith the loader: {loaded / own:.3f} of the rate without.\n")
        changes = self.results.get("losses", {}).get("changes", {"failed": NOT_RUN})
        apart = "not compared" if "failed" in changes else "at most {graph:.1e} and {fused_batch_norm:.1e} apart, relative"
        lines.append(f"Losses of 20 steps without CUDA graph, without fused BatchNorm: {apart.format(**changes)}")
        for name, report in self.results.get("learned", {}).items():
            shown = ", ".join(f"{top1:.1f} %" for top1 in report.get("knn_top1", [])) or "not run"
            lines.append(f"k-NN top-1 of the quick start in {name}, seeds from 0: {shown}")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--byol", type=pathlib.Path, default=ROOT / "target/release/byol", help="the binary")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of parquet shards, 32 px")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything here")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all of it")
    parser.add_argument("--only", action="append", default=[], metavar="'CASE: NAME'", help="this contender; repeatable")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with figures that mean nothing")
    args = parser.parse_args()
    args.byol, args.data = args.byol.resolve(), args.data.resolve()
    try:
        import torch as library
    except ImportError:
        raise SystemExit("error: this Python has no torch; use one with torch 2.11.0 and torchvision") from None
    if args.rehearse:
        device = "A REHEARSAL on a CPU: these figures mean nothing"
    elif library.cuda.is_available():
        versions = f"torch {library.__version__}, its CUDA {library.version.cuda}"
        device = f"{library.cuda.get_device_name()}, {os.cpu_count()} cores, {versions}"
    else:
        print("no CUDA device here: nothing was measured")
        return
    check = Check(args, device)
    check.run()
    print(check.table())


if __name__ == "__main__":
    main()

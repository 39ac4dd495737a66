#!/usr/bin/env python3
"""byol's loader against lightly, albumentations and NVIDIA DALI: images/s on one core, an image being its JPEG decoded
and two BYOL views made of it.

    scripts/byol --version    # builds it
    scripts/compare/loader.py --cifar data/cifar10 --photos data/photos --byol target/release/byol

--cifar names a folder of parquet shards (32 px, no blur), --photos a folder of JPEGs (224 px); one may be left out.
The peers are installed into --venv the first time (5 GB, as lightly needs torch). All contenders run in turn, pinned to
the same core, in the reverse order every other round; the table, on stdout, has the medians of the rounds.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ["lightly", "albumentations", "albumentations_23", "dali"]
CONFIGS = {"cifar": "cifar10_resnet18.yaml", "photos": "imagenet_resnet50_100ep.yaml"}
SIZE = {"cifar": 32, "photos": 224}

NOTE = """\
Two views of each image by the probabilities of the paper's table 6, image bytes in memory (byol opens the photos' files
through the page cache), medians of {rounds} rounds of {seconds:g} s, each pinned to core {core}. byol's loader ends at
8-bit views in a batch and normalises on the training device; "with normalisation" adds what libtorch takes for that on
the same core. A peer's views are normalised float tensors (8-bit: the same without the last steps), of lightly and
albumentations not yet put together in a batch. byol resizes with antialiasing (bicubic), as do lightly (bilinear) and
DALI (bicubic); albumentations does not. DALI has a fixed order of the colour changes. albumentations_23 blurs with the
paper's 23 taps, albumentations with as many as sigma needs. Only ratios within one run mean anything."""


def fail(message: str) -> None:
    raise SystemExit(f"error: {message}")


def prepare(folder: pathlib.Path) -> pathlib.Path:
    """The Python of the peers' virtual environment, which is made or brought up to date first."""
    python, stamp, wanted = folder / "bin/python", folder / "installed.txt", HERE / "requirements.txt"
    if not stamp.is_file() or stamp.read_text() != wanted.read_text():
        print(f"installing the peers into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        if subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", wanted], stdout=sys.stderr).returncode:
            fail(f"pip could not install {wanted}; its message is above")
        stamp.write_text(wanted.read_text())
    return python


def run(command: list, cores: list[int]) -> dict:
    """The JSON line that a command prints, pinned to cores."""
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *map(str, command)]
    done = subprocess.run(pinned, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        fail(f"exit code {done.returncode} of {' '.join(pinned)}; its message is above")
    return json.loads(done.stdout.strip().splitlines()[-1])


def byol_command(args: argparse.Namespace, case: str, data: pathlib.Path, workers: int) -> list:
    settings = [f"data.path={data}", "data.eval_path=null", f"train.seed={args.seed}"]
    command = [args.byol, "bench", "loader", "--config", ROOT / "configs" / CONFIGS[case]]
    for setting in settings:
        command += ["--set", setting]
    # Of its time byol takes 5/8 for the loader as a whole, the rest for the stages and for warming up.
    return command + ["--seconds", args.seconds * 8 / 5, "--workers", workers]


def measure(args: argparse.Namespace, python: pathlib.Path, case: str, data: pathlib.Path) -> dict:
    """All results of all rounds, by contender."""
    one = args.cores[:1]
    contenders = {"byol": (byol_command(args, case, data, 1), one)}
    peers = [peer for peer in args.peers if case == "photos" or peer != "albumentations_23"]  # no blur at 32 px
    for peer in [*peers, "normalisation"]:
        command = [python, HERE / "peers.py", "--peer", peer, "--case", case, "--data", data]
        contenders[peer] = (command + ["--seconds", args.seconds, "--seed", args.seed], one)
    if len(args.cores) > 1:
        contenders["byol_two_workers"] = (byol_command(args, case, data, 2), args.cores[:2])
    results: dict = {name: [] for name in contenders}
    for number in range(args.rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            print(f"{case}, round {number + 1} of {args.rounds}: {name}", file=sys.stderr)
            results[name].append(run(*contenders[name]))
    return results


def summarise(results: dict) -> dict:
    """Medians in images/s, and byol's as ratios over each peer and over the best one."""

    def median(name: str, key: str) -> float:
        return statistics.median(result[key] for result in results[name])

    byol = median("byol", "images_per_second")
    normalised = 1 / (1 / byol + 1 / median("normalisation", "images_per_second"))
    peers = [name for name in results if name not in ("byol", "byol_two_workers", "normalisation")]
    rates = {name: (median(name, "images_per_second"), median(name, "bytes_per_second")) for name in peers}
    rates["best peer"] = tuple(max(rate[at] for rate in rates.values()) for at in (0, 1))
    summary = {"byol": byol, "byol_with_normalisation": normalised, "peers": {}}
    for name, (floats, small) in rates.items():
        summary["peers"][name] = {
            "images_per_second": floats,
            "bytes_per_second": small,
            "byol_over_peer": byol / floats,
            "byol_with_normalisation_over_peer": normalised / floats,
            "byol_over_peer_both_8_bit": byol / small,
        }
    shares = [result["images_core_share"] for name in [*peers, "normalisation"] for result in results[name]]
    summary["least_core_share"] = min(shares)
    if "byol_two_workers" in results:
        summary["byol_two_workers"] = median("byol_two_workers", "images_per_second")
        summary["two_workers_over_one"] = summary["byol_two_workers"] / byol
    return summary


def table(case: str, summary: dict) -> str:
    """Markdown."""
    lines = [
        f"| {SIZE[case]} px | images/s | images/s, 8-bit views | byol / peer | byol with normalisation / peer "
        "| byol / peer, both 8-bit |",
        "|---|---|---|---|---|---|",
        f"| byol | {summary['byol_with_normalisation']:.0f} with normalisation | {summary['byol']:.0f} | | | |",
    ]
    for name, peer in summary["peers"].items():
        ratios = ("byol_over_peer", "byol_with_normalisation_over_peer", "byol_over_peer_both_8_bit")
        cells = [f"{peer['images_per_second']:.0f}", f"{peer['bytes_per_second']:.0f}"]
        lines.append("| " + " | ".join([name, *cells, *(f"{peer[ratio]:.2f}" for ratio in ratios)]) + " |")
    if "byol_two_workers" in summary:
        two, ratio = summary["byol_two_workers"], summary["two_workers_over_one"]
        lines.append(f"\nbyol, two workers on two cores: {two:.0f} images/s, {ratio:.2f} times one worker.")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=pathlib.Path, help="folder with train*.parquet, 32 px JPEGs")
    parser.add_argument("--photos", type=pathlib.Path, help="folder of JPEGs at any depth")
    parser.add_argument("--byol", type=pathlib.Path, default=ROOT / "target/release/byol", help="the binary")
    parser.add_argument("--venv", type=pathlib.Path, default=ROOT / "target/compare", help="where the peers live")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring in each round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cores",
        type=int,
        nargs="+",
        default=sorted(os.sched_getaffinity(0))[:2],
        help="the first serves all single-core runs, two the run with two workers",
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write all rounds and the summary here")
    args = parser.parse_args()
    if not args.cifar and not args.photos:
        fail("found neither --cifar nor --photos, expected a data set to measure on")
    for name in ("cifar", "photos"):
        if (folder := getattr(args, name)) and not folder.is_dir():
            fail(f"--{name}: no such folder: {folder}")
    if not os.access(args.byol, os.X_OK):
        fail(f"--byol: found no program {args.byol}; scripts/byol builds it")
    args.byol = args.byol.resolve()
    if args.json and not args.json.resolve().parent.is_dir():
        fail(f"--json: no such folder: {args.json.resolve().parent}")
    if not shutil.which("taskset"):
        fail("found no taskset; install util-linux")
    if args.rounds < 1 or args.seconds <= 0:
        fail("found --rounds below 1 or --seconds not above 0, expected something to measure")
    return args


def main() -> None:
    args = arguments()
    python = prepare(args.venv)
    report = {}
    for case in ("cifar", "photos"):
        if folder := getattr(args, case):
            results = measure(args, python, case, folder)
            report[case] = {"summary": summarise(results), "rounds": results}
            print(table(case, report[case]["summary"]) + "\n", flush=True)
    share = min(case["summary"]["least_core_share"] for case in report.values())
    if share < 0.95:
        print(f"Not to be trusted: other programs ran on this core, a contender got only {share:.0%} of it.\n")
    print(NOTE.format(rounds=args.rounds, seconds=args.seconds, core=args.cores[0]))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""byol's loader against albumentations and torchvision with Pillow's `draft` on 12-megapixel photos: images/s on one
core, an image being its JPEG decoded and two BYOL views made of it.

    scripts/compare/big_photos.py --photos data/photos --work target/big --byol target/release/byol

Makes --count JPEGs of 4032 x 3024 pixels, about 3 MB each, from mosaics of enlarged photos of --photos (seeded), then
runs all contenders in turn, pinned to one core. `draft` is asked for an image of which the middle of the paper's crops
still has two pixels for one of the view in both directions, so it decodes at 1/2 throughout; `draft_small` for the size
of two views, 448 px, which decodes at 1/4 and leaves small crops with less than the view's resolution. Needs Pillow,
torchvision and albumentations (scripts/compare/requirements.txt).
"""

import argparse
import io
import itertools
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1")

ROOT = pathlib.Path(__file__).resolve().parents[2]
WIDTH, HEIGHT, BYTES = 4032, 3024, 3_000_000
DRAFTS = {"torchvision": None, "torchvision_draft": (2016, 1512), "torchvision_draft_small": (448, 448)}


def make(photos: pathlib.Path, folder: pathlib.Path, count: int, seed: int) -> None:
    """Mosaics of 4 x 3 photos, each enlarged to 1008 px, with the quality that comes nearest to 3 MB."""
    import numpy as np
    from PIL import Image

    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    paths = sorted(p for p in photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        mosaic = Image.new("RGB", (WIDTH, HEIGHT))
        for at, path in enumerate(rng.sample(paths, 12)):
            tile = Image.open(path).convert("RGB").resize((1008, 1008), Image.Resampling.BICUBIC)
            mosaic.paste(tile, (at % 4 * 1008, at // 4 * 1008))
        grain = numbers.normal(0, 3, (HEIGHT, WIDTH, 1))
        mosaic = Image.fromarray(np.clip(np.asarray(mosaic) + grain, 0, 255).astype(np.uint8))
        for quality in range(95, 50, -3):
            buffer = io.BytesIO()
            mosaic.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
            if buffer.tell() <= BYTES * 1.1:
                break
        (folder / f"{number:03}.jpg").write_bytes(buffer.getvalue())


def torchvision(draft):
    """torchvision's transforms on Pillow images, as the published PyTorch recipes compose them."""
    import torch
    from PIL import Image, ImageFilter
    from torchvision import transforms as T

    torch.set_num_threads(1)

    class Blur:
        def __call__(self, image):
            return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    def view(blur, solarize):
        return T.Compose([
            T.RandomResizedCrop(224, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([Blur()], blur),
            T.RandomSolarize(128, solarize),
        ])

    views = [view(1.0, 0.0), view(0.1, 0.2)]

    def transform(data):
        image = Image.open(io.BytesIO(data))
        if draft:
            image.draft("RGB", draft)
        image = image.convert("RGB")
        return [view(image) for view in views]

    return transform


def peer(name: str, folder: pathlib.Path, seconds: float) -> dict:
    images = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    if name in DRAFTS:
        transform = torchvision(DRAFTS[name])
    else:
        import peers

        peers.BATCH = 1
        work = peers.albumentations(images, "photos", 0, False)
        transform = lambda _: work()
    endless, done = itertools.cycle(images), 0
    for data in itertools.islice(endless, 2):
        transform(data)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        transform(next(endless))
        done += 1
    return {"images_per_second": done / (time.perf_counter() - start)}


def run(command: list, core: int) -> float:
    done = subprocess.run(["taskset", "-c", str(core), *map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])["images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=pathlib.Path, help="folder of JPEGs to make the mosaics from")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target/big", help="where the 12-megapixel JPEGs go")
    parser.add_argument("--byol", type=pathlib.Path, default=ROOT / "target/release/byol")
    parser.add_argument("--packed", type=pathlib.Path, help="also measure byol on this folder of shards (byol pack)")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", choices=["albumentations", *DRAFTS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(peer(args.peer, args.work, args.seconds)))
        return
    if not list(args.work.glob("*.jpg")):
        make(args.photos, args.work, args.count, args.seed)
    size = statistics.mean(path.stat().st_size for path in args.work.glob("*.jpg")) / 1e6

    def byol(data, kind, scaled):
        command = [args.byol, "-q", "bench", "loader", "--config", ROOT / "configs/imagenet_resnet50_100ep.yaml", "--workers", 1]
        keys = [f"data.format={kind}", f"data.path={data}", "data.eval_path=null", "train.batch_size=8", "train.accumulation_steps=1"]
        keys += [f"data.scaled_decoding={scaled}"]
        for key in keys:
            command += ["--set", key]
        return [*command, "--seconds", args.seconds * 8 / 5]

    contenders = {
        "byol": byol(args.work, "image_folder", "auto"),
        "byol, scaled_decoding: off": byol(args.work, "image_folder", "off"),
    }
    for name in ["albumentations", *DRAFTS]:
        contenders[name] = [sys.executable, __file__, "--peer", name, "--work", args.work, "--seconds", args.seconds]
    if args.packed:
        contenders["byol, packed"] = byol(args.packed, "webdataset", "auto")
    rates = {name: [] for name in contenders}
    for number in range(args.rounds):
        for name, command in contenders.items():
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr)
            rates[name].append(run(command, args.core))
    print(f"{WIDTH} x {HEIGHT} JPEGs of {size:.1f} MB, two views of 224 px, images/s on one core, best of {args.rounds}:\n")
    print("| | images/s | byol / it |\n|---|---|---|")
    best = {name: max(values) for name, values in rates.items()}
    for name, value in best.items():
        print(f"| {name} | {value:.1f} | {best['byol'] / value:.2f} |")


if __name__ == "__main__":
    main()

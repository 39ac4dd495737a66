#!/usr/bin/env python3
"""One peer of the loader benchmark: JPEG bytes in memory to two BYOL views, on the cores it is pinned to.

loader.py starts it in its own virtual environment, once a round; by hand, for one JSON line:

    taskset -c 0 target/compare/bin/python scripts/compare/peers.py --peer albumentations --case photos --data FOLDER

Every peer draws the probabilities and ranges of the paper's table 6 (without blur at 32 px) and decodes an image once
for both views. What it measures: "images_per_second" with the views as normalised float tensors, "bytes_per_second"
with 8-bit views, which is where byol's loader ends: byol normalises on the training device.
"""

import argparse
import io
import itertools
import json
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterator

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1")

import numpy as np

SIZE = {"cifar": 32, "photos": 224}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 64
MOST_IMAGES = 5000
# (blur probability at 224 px, solarisation probability) of view 1 and view 2.
VIEWS = [(1.0, 0.0), (0.1, 0.2)]

# Works on the next batch and returns how many images that were.
Work = Callable[[], int]


def read_images(case: str, folder: pathlib.Path, seed: int) -> list[bytes]:
    """Encoded images in an order that depends on the seed."""
    if case == "photos":
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        random.Random(seed).shuffle(paths)
        images = [p.read_bytes() for p in paths[:MOST_IMAGES]]
    else:
        import pyarrow.parquet as pq

        files = sorted(folder.glob("train*.parquet")) or sorted(folder.glob("*.parquet"))
        tables = [pq.read_table(file) for file in files]
        column = next(name for name in ("img", "image") if name in tables[0].schema.names)
        images = [row["bytes"] for table in tables for row in table.column(column).to_pylist()]
        random.Random(seed).shuffle(images)
        images = images[:MOST_IMAGES]
    if not images:
        raise SystemExit(f"error: --data: found no images in {folder}")
    return images


def one_by_one(images: list[bytes], transform: Callable[[bytes], object]) -> Work:
    endless = itertools.cycle(images)

    def work() -> int:
        for _ in range(BATCH):
            transform(next(endless))
        return BATCH

    return work


def lightly(images: list[bytes], case: str, seed: int, normalise: bool) -> Work:
    """lightly's own BYOLTransform on Pillow images (bilinear resize, which it does not let one choose)."""
    import torch
    from lightly.transforms import byol_transform as byol
    from PIL import Image

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    blur = case == "photos"
    kinds = (byol.BYOLView1Transform, byol.BYOLView2Transform)
    views = [
        kind(input_size=SIZE[case], gaussian_blur=blurred * blur, solarization_prob=solarised)
        for kind, (blurred, solarised) in zip(kinds, VIEWS, strict=True)
    ]
    if not normalise:
        for view in views:
            view.transform.transforms = view.transform.transforms[:-2]  # without ToTensor and Normalize

    def transform(data: bytes) -> object:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [view(image) for view in views]

    return one_by_one(images, transform)


def albumentations(images: list[bytes], case: str, seed: int, normalise: bool, taps: int = 0) -> Work:
    """8-bit pipeline on OpenCV with one thread; bicubic resize without antialiasing, which OpenCV has not. The blur's
    width is by default chosen from its sigma as Pillow and byol do; the paper's own code uses 23 taps at 224 px."""
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2

    cv2.setNumThreads(1)
    blur, size = case == "photos", SIZE[case]

    def compose(blurred: float, solarised: float, offset: int) -> A.Compose:
        steps = [
            A.RandomResizedCrop((size, size), scale=(0.08, 1), ratio=(3 / 4, 4 / 3), interpolation=cv2.INTER_CUBIC),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.8, 1.2), hue=(-0.1, 0.1), p=0.8),
            A.ToGray(p=0.2),
        ]
        if blur:
            steps.append(A.GaussianBlur(blur_limit=(taps, taps), sigma_limit=(0.1, 2.0), p=blurred))
        if solarised:
            steps.append(A.Solarize(threshold_range=(0.5, 0.5), p=solarised))
        steps += [A.Normalize(MEAN, STD), ToTensorV2()] if normalise else []
        return A.Compose(steps, seed=seed + offset)

    views = [compose(*view, offset) for offset, view in enumerate(VIEWS)]

    def transform(data: bytes) -> object:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return [view(image=image)["image"] for view in views]

    return one_by_one(images, transform)


def albumentations_23(images: list[bytes], case: str, seed: int, normalise: bool) -> Work:
    """albumentations with the blur of the paper's code."""
    return albumentations(images, case, seed, normalise, taps=23)


def dali(images: list[bytes], case: str, seed: int, normalise: bool) -> Work:
    """DALI's CPU operators in batches with one thread: colours in a fixed order, brightness, contrast, saturation, hue
    and greyscale as one operator; blur and solarisation run on their share of the batch only."""
    from nvidia.dali import fn, pipeline_def, types

    batch = 256 if case == "cifar" else BATCH
    arrays = [np.frombuffer(data, np.uint8) for data in images]

    def feed() -> Iterator[list[np.ndarray]]:
        endless = itertools.cycle(arrays)
        while True:
            yield list(itertools.islice(endless, batch))

    size, blur = SIZE[case], case == "photos"

    def coin(probability: float):
        return fn.random.coin_flip(probability=probability, dtype=types.BOOL)

    @pipeline_def(batch_size=batch, num_threads=1, device_id=None, seed=seed, enable_conditionals=True)
    def pipeline():
        encoded = fn.external_source(feed(), dtype=types.UINT8, batch=True)
        image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        outputs = []
        for blurred, solarised in VIEWS:
            view = fn.random_resized_crop(
                image,
                size=size,
                random_area=[0.08, 1.0],
                random_aspect_ratio=[3 / 4, 4 / 3],
                interp_type=types.INTERP_CUBIC,
                antialias=True,
            )
            # Neutral where there is no jitter, so that greyscale is a saturation of 0 in the same operator.
            on = fn.random.coin_flip(probability=0.8)
            colored = fn.random.coin_flip(probability=0.8)
            factor = [1 + on * fn.random.uniform(range=[-width, width]) for width in (0.4, 0.4, 0.2)]
            view = fn.color_twist(
                view,
                brightness=factor[0],
                contrast=factor[1],
                saturation=factor[2] * colored,
                hue=on * fn.random.uniform(range=[-36.0, 36.0]),
            )
            if blur:
                if coin(blurred):
                    view = fn.gaussian_blur(view, sigma=fn.random.uniform(range=[0.1, 2.0]))
            if solarised:
                if coin(solarised):
                    high = fn.cast(view >= 128, dtype=types.UINT8)
                    view = fn.cast(view ^ (high * 255), dtype=types.UINT8)
            mirror = fn.random.coin_flip(probability=0.5)
            if normalise:
                view = fn.crop_mirror_normalize(
                    view,
                    mirror=mirror,
                    mean=[255 * m for m in MEAN],
                    std=[255 * s for s in STD],
                    dtype=types.FLOAT,
                    output_layout="CHW",
                )
            else:
                view = fn.flip(view, horizontal=mirror)
            outputs.append(view)
        return tuple(outputs)

    built = pipeline()
    built.build()

    def work() -> int:
        built.run()
        return batch

    return work


def normalisation(images: list[bytes], case: str, seed: int, normalise: bool) -> Work:
    """What byol does to a batch when it trains on the CPU: 8-bit views to normalised floats, in libtorch."""
    import torch

    torch.set_num_threads(1)
    size = SIZE[case]
    views = [torch.randint(0, 256, (BATCH, size, size, 3), dtype=torch.uint8) for _ in range(2)]
    scale = torch.tensor([1 / (255 * s) for s in STD])
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])

    def work() -> int:
        for view in views:
            view.float().mul_(scale).add_(shift).permute(0, 3, 1, 2)
        return BATCH

    return work


PEERS = {f.__name__: f for f in (lightly, albumentations, albumentations_23, dali, normalisation)}


def rate(work: Work, seconds: float) -> tuple[float, float]:
    """Images a second, after a quarter of that time for warming up, and the share of a core this process got."""
    for limit in (seconds / 4, seconds):
        done, start, busy = 0, time.perf_counter(), time.process_time()
        while (elapsed := time.perf_counter() - start) < limit or done == 0:
            done += work()
    return done / elapsed, (time.process_time() - busy) / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, choices=PEERS)
    parser.add_argument("--case", required=True, choices=SIZE)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="folder of photos, or of parquet shards")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring, for each of the two rates")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = read_images(args.case, args.data, args.seed)
    peer = PEERS[args.peer]
    result = {"peer": args.peer, "case": args.case, "images": len(images), "cores": len(os.sched_getaffinity(0))}
    for kind, normalise in (("images", True), ("bytes", False)):
        work = peer(images, args.case, args.seed, normalise)
        result[f"{kind}_per_second"], result[f"{kind}_core_share"] = rate(work, args.seconds)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

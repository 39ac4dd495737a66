"""Writes the fixture of tests/golden/views.rs: what torchvision and numpy make of the operations that the paper lacks.

    python scripts/reference/views.py --seed 0 --out tests/golden/views.safetensors

Every image is H x W x C. With 1 and 3 channels the references are torchvision's on Pillow images; of any other number,
the same operation on every channel by itself, in numpy where torchvision has none for it. Rotation is compared where
the rotated image covers the view (`.inside`): beyond that byol reflects, and torchvision fills with a color.
"""

import argparse

import numpy as np
import torchvision.transforms.functional as F
from PIL import Image
from safetensors.numpy import save_file
from torchvision.transforms import InterpolationMode

KERNELS = (InterpolationMode.BICUBIC, InterpolationMode.BILINEAR)


def channelwise(image, work):
    """`work` on each channel as a gray Pillow image."""
    return np.stack([np.asarray(work(Image.fromarray(np.ascontiguousarray(image[..., c])))) for c in range(image.shape[2])], -1)


def on_pillow(image, work):
    """`work` on the image as torchvision gets it, RGB or gray; channel by channel for other numbers."""
    if image.shape[2] == 3:
        return np.asarray(work(Image.fromarray(image)))
    return channelwise(image, work)


def erase(image, top, left, height, width):
    """numpy: the mean of each channel, rounded half up, in the box."""
    out = image.copy()
    out[top : top + height, left : left + width] = np.floor(image.reshape(-1, image.shape[2]).mean(0) + 0.5)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="tests/golden/views.safetensors")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    tensors = {}
    for height, width, channels in ((24, 24, 3), (24, 24, 1), (18, 31, 3), (31, 18, 1), (20, 26, 5), (22, 22, 13)):
        y, x = np.mgrid[0:height, 0:width][..., None]
        waves = 127.5 + 127.5 * np.sin(x * rng.normal(0, 0.3, channels) + y * rng.normal(0, 0.3, channels))
        image = np.clip(waves * 0.7 + rng.integers(0, 80, (height, width, channels)), 0, 255).astype(np.uint8)
        name = f"{height}x{width}x{channels}"
        tensors[f"{name}.image"] = image
        tensors[f"{name}.vertical_flip"] = on_pillow(image, F.vflip)
        for turns in (1, 2, 3):
            made = np.ascontiguousarray(np.rot90(image, turns))
            if height == width:
                assert (made == on_pillow(image, lambda one: F.rotate(one, 90.0 * turns))).all()
            tensors[f"{name}.quarter_turns.{turns}"] = made
        for kernel, mode in enumerate(KERNELS):
            for degrees in (7.5, -33.0, 140.25):
                key = f"{name}.rotation.{kernel}.{degrees}"
                tensors[key] = on_pillow(image, lambda one: F.rotate(one, degrees, mode))
                white = Image.fromarray(np.full((height, width), 255, np.uint8))
                # Where a rotation filled with 0 leaves white, nothing came from outside.
                tensors[key + ".inside"] = (np.asarray(F.rotate(white, degrees, mode)) == 255).astype(np.uint8)
        factors = rng.uniform(0.5, 1.6, (channels, 2))
        gray = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(channels)]
        adjusted = [F.adjust_contrast(F.adjust_brightness(one, b), c) for one, (b, c) in zip(gray, factors)]
        tensors[f"{name}.channel_jitter"] = np.stack([np.asarray(one) for one in adjusted], -1)
        tensors[f"{name}.channel_jitter.factors"] = factors
        box = [height // 4, width // 5, height // 2, width // 3]
        tensors[f"{name}.erase"] = erase(image, *box)
        tensors[f"{name}.erase.box"] = np.array(box, np.float64)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, args.out)
    print(f"{len(tensors)} tensors")


if __name__ == "__main__":
    main()

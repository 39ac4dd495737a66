"""Writes the fixture of tests/golden/augment.rs: what torchvision does to Pillow images.

    python scripts/reference/augment.py --seed 0 --out tests/golden/augment.safetensors

A case is a vector of parameters and the expected view; the layout of the vector is that of `view` below
(or, for names that begin with eval, of `eval_view`). Images are shared between cases.
"""

import argparse

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from safetensors.numpy import save_file
from torchvision.transforms import InterpolationMode

KERNELS = (InterpolationMode.BICUBIC, InterpolationMode.BILINEAR)
ADJUST = (None, F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 1, 2, 3, 4


def blur(image, sigma):
    """The blur of the published PyTorch recipes, Pillow's; torchvision's own has a fixed number of taps."""
    return image.filter(ImageFilter.GaussianBlur(radius=float(sigma)))


def view(image, size, kernel, left, top, width, height, flip, ops, grayscale, sigma, threshold):
    """One view; `ops` are pairs of an index into ADJUST (0: none) and a value; sigma and threshold < 0: none."""
    image = F.resized_crop(image, top, left, height, width, [size, size], KERNELS[kernel])
    if flip:
        image = F.hflip(image)
    for op, value in ops:
        if op:
            image = ADJUST[op](image, value)
    if grayscale:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if sigma >= 0:
        image = blur(image, sigma)
    if threshold >= 0:
        image = F.solarize(image, threshold)
    return image


def eval_view(image, size, side):
    """The evaluation view."""
    return F.center_crop(F.resize(image, side, InterpolationMode.BICUBIC), [size, size])


def pictures(rng):
    """Noise, smooth colour, few colours, and extremes, of several shapes; the first four are square."""
    for number, (height, width) in enumerate(((40, 40), (33, 33), (32, 32), (64, 64), (75, 100), (97, 41), (32, 32), (130, 90))):
        noise = rng.integers(0, 256, (height, width, 3))
        y, x = np.mgrid[0:height, 0:width]
        waves = [127.5 + 127.5 * np.sin(x * rng.normal(0, 0.2) + y * rng.normal(0, 0.2) + phase) for phase in rng.uniform(0, 6, 3)]
        smooth = np.stack(waves, -1)
        kinds = (noise, smooth, smooth * 0.8 + noise * 0.2, (noise // 64) * 85, (noise // 128) * 255)
        yield Image.fromarray(np.clip(kinds[(number * 3 + 1) % 5], 0, 255).astype(np.uint8))


class Cases:
    """Collects the cases."""

    def __init__(self, rng):
        self.images = list(pictures(rng))
        self.tensors = {f"image.{i}": np.asarray(image) for i, image in enumerate(self.images)}
        self.count = 0

    def add(self, name, index, expected, params):
        key = f"{self.count:03}.{name}"
        self.count += 1
        self.tensors[f"{key}.params"] = np.array([index, *params], np.float64)
        self.tensors[f"{key}.expected"] = np.asarray(expected)

    def view(self, name, index, size=None, kernel=0, box=None, flip=0, ops=(), grayscale=0, sigma=-1.0, threshold=-1):
        image = self.images[index]
        left, top, width, height = box or (0, 0, image.width, image.height)
        size = size or image.width
        ops = [*ops, *[(0, 0.0)] * (4 - len(ops))]
        expected = view(image, size, kernel, left, top, width, height, flip, ops, grayscale, sigma, threshold)
        flat = [number for op in ops for number in op]
        self.add(name, index, expected, [size, kernel, left, top, width, height, flip, *flat, grayscale, sigma, threshold])

    def eval(self, index, size, side):
        self.add("eval", index, eval_view(self.images[index], size, side), [size, side])


def random_box(rng, image):
    width, height = (int(rng.integers(1, side + 1)) for side in image.size)
    return int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1)), width, height


def random_ops(rng):
    ops = [(BRIGHTNESS, rng.uniform(0.6, 1.4)), (CONTRAST, rng.uniform(0.6, 1.4)), (SATURATION, rng.uniform(0.8, 1.2)), (HUE, rng.uniform(-0.1, 0.1))]
    return [ops[i] for i in rng.permutation(4)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="tests/golden/augment.safetensors")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    cases = Cases(rng)
    shapes = range(len(cases.images))

    for kernel, name in enumerate(("bicubic", "bilinear")):
        for index in shapes:
            image = cases.images[index]
            for size in (8, 32, 45):
                cases.view(f"resize_{name}", index, size, kernel, random_box(rng, image))
            cases.view(f"resize_{name}", index, int(rng.integers(8, 70)), kernel)
            cases.view(f"resize_{name}", index, 16, kernel, (image.width - 1, image.height - 2, 1, 2))
        cases.view(f"resize_{name}", 4, 112, kernel, random_box(rng, cases.images[4]))
    squares = (0, 1, 2, 6)
    for index in squares:
        cases.view("flip", index, flip=1)
        cases.view("grayscale", index, grayscale=1)
        cases.view("solarize", index, threshold=128)
        cases.view("solarize", index, threshold=int(rng.integers(0, 256)))
        for op, name in ((BRIGHTNESS, "brightness"), (CONTRAST, "contrast"), (SATURATION, "saturation")):
            for factor in (0.0, 1.0, rng.uniform(0, 1), rng.uniform(1, 2), rng.uniform(2, 9)):
                cases.view(name, index, ops=[(op, factor)])
        for shift in (0.0, 0.5, -0.5, 1 / 255, -1 / 255, *rng.uniform(-0.1, 0.1, 3)):
            cases.view("hue", index, ops=[(HUE, shift)])
        for sigma in (0.1, 2.0, *rng.uniform(0.1, 2.0, 2), rng.uniform(2, 12), 40.0):
            cases.view("blur", index, sigma=sigma)
    for number in range(40):
        index = int(rng.integers(len(cases.images)))
        sigma = rng.uniform(0.1, 2.0) if number % 2 else -1.0
        threshold = 128 if number % 3 == 0 else -1
        box, ops = random_box(rng, cases.images[index]), random_ops(rng)
        cases.view("pipeline", index, 32, number % 4 == 3, box, int(rng.integers(2)), ops, int(number % 5 == 4), sigma, threshold)
    for index in shapes:
        for size in (8, 31, 32):
            cases.eval(index, size, size)
            cases.eval(index, size, size + int(rng.integers(0, 24)))
    save_file(cases.tensors, args.out)
    print(f"{cases.count} cases, torch {torch.__version__}, Pillow {Image.__version__}")


if __name__ == "__main__":
    main()

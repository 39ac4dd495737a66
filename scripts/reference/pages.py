"""TIFFs of several pages as tifffile writes them, and what their pages are as bytes: tests/fixtures/data/pages, pages.json.

Usage: python scripts/reference/pages.py [--seed N]
"""

import argparse
import json
import pathlib

import numpy as np
import tifffile
from bands import as_bytes

FOLDER = pathlib.Path(__file__).parents[2] / "tests/fixtures/data/pages"
HEIGHT, WIDTH = 17, 22


def files(rng):
    """Name, options of the file, and each page with its own."""
    u8 = lambda *more: rng.integers(0, 256, (HEIGHT, WIDTH, *more), dtype=np.uint8)  # noqa: E731
    u16 = lambda *more: rng.integers(0, 4096, (HEIGHT, WIDTH, *more), dtype=np.uint16)  # noqa: E731
    strips = {"rowsperstrip": 5}
    yield "gray.tif", {}, [(u8(), strips) for _ in range(3)]
    tiles = {"tile": (16, 16), "compression": "zlib"}
    yield "tiles_big_endian.tif", {"byteorder": ">"}, [(u16(), tiles) for _ in range(2)]
    yield "big.tif", {"bigtiff": True}, [(u16(), {**strips, "compression": "lzw"}) for _ in range(3)]
    yield "big_big_endian.tiff", {"bigtiff": True, "byteorder": ">"}, [(u16(), {}) for _ in range(2)]
    yield "rgb.tif", {}, [(u8(3), {**strips, "photometric": "rgb"}) for _ in range(2)]
    planar = {"planarconfig": "separate", "photometric": "minisblack"}
    yield "bands.tif", {}, [(np.ascontiguousarray(np.moveaxis(u16(5), -1, 0)), planar) for _ in range(2)]
    yield "floats.tif", {}, [(rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32), {}) for _ in range(2)]
    # Beside each page a copy of half the size, which is none; then one in a directory below the page's own.
    half = {"subfiletype": 1}
    first, second = u16(), u16()
    yield "reduced.tif", {}, [(first, {}), (first[::2, ::2], half), (second, {}), (second[::2, ::2], half)]
    below = {"subifds": 1}
    yield "below.tif", {}, [(first, below), (first[::2, ::2], half), (second, below), (second[::2, ::2], half)]
    yield "one.tif", {}, [(u8(), {})]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    rng = np.random.default_rng(parser.parse_args().seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    listed = []
    for name, options, written in files(rng):
        with tifffile.TiffWriter(FOLDER / name, **options) as file:
            for page, more in written:
                file.write(page, contiguous=False, metadata=None, **more)
        pages = [page for page, more in written if more.get("subfiletype") != 1]
        if "planarconfig" in written[0][1]:
            pages = [np.moveaxis(page, 0, -1) for page in pages]
        deep = pages[0].dtype != np.uint8
        ends = np.percentile(pages, [1, 99]).tolist() if deep else [0, 255]
        flat = np.stack(pages).reshape(len(pages) * HEIGHT * WIDTH, -1)
        (FOLDER / f"{name}.pages").write_bytes(as_bytes(flat, [ends] * flat.shape[1]).tobytes())
        listed.append({"name": name, "frames": len(pages), "channels": flat.shape[1], "range": ends})
    lines = ",\n".join(json.dumps(entry) for entry in listed)
    (FOLDER.parent / "pages.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()

"""Images of other channels and depths than 8-bit RGB, and what they are as bytes: tests/fixtures/data/bands.

Usage: python scripts/reference/bands.py [--seed N]
"""

import argparse
import json
import pathlib

import numpy as np
import rasterio
import tifffile
from PIL import Image

FOLDER = pathlib.Path(__file__).parents[2] / "tests/fixtures/data/bands"
HEIGHT, WIDTH = 17, 22


def picture(rng, kind, channels):
    """Height x width x channels: a gradient with noise over much of the type's range."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    base = np.stack([np.sin(x / (3 + c)) + np.cos(y / (2 + c)) for c in range(channels)], -1)
    base = (base - base.min()) / (base.max() - base.min())
    base = np.clip(base + rng.normal(0, 0.05, base.shape), 0, 1)
    integers = {"u1": (0, 255), "i1": (-128, 127), "u2": (3, 4095), "i2": (-1000, 3071)}
    low, high = {**integers, "u4": (7, 4e9), "i4": (-2e9, 2e9)}.get(kind, (-0.5, 1.5))
    values = low + base * (high - low)
    return values.astype(kind) if kind[0] == "f" else np.round(values).astype(kind)


def as_bytes(values, ranges):
    """Low and high become 0 and 255, rounded half up; what lies outside is clipped."""
    low, high = (np.array([r[at] for r in ranges], np.float64) for at in (0, 1))
    scaled = np.floor((values.astype(np.float64) - low) * (255 / (high - low)) + 0.5)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def gdal(rng, name, interleave):
    """Tiles as GDAL writes them."""
    array = picture(rng, "u2", 4)
    profile = {"driver": "GTiff", "width": WIDTH, "height": HEIGHT, "count": 4, "dtype": "uint16", "tiled": True}
    profile |= {"blockxsize": 16, "blockysize": 16, "interleave": interleave, "compress": "deflate"}

    def write(path):
        with rasterio.open(path, "w", **profile) as file:
            file.write(np.moveaxis(array, -1, 0))

    return name, array, write


def files(rng):
    """Name, the array as height x width x channels, and a function that writes it to a path."""

    def tiff(name, kind, channels, arrange=lambda a: a, **options):
        array = picture(rng, kind, channels)
        return name, array, lambda path: tifffile.imwrite(path, arrange(array), **options)

    planes = lambda a: np.moveaxis(a, -1, 0)  # noqa: E731
    one = lambda a: a[..., 0]  # noqa: E731
    gray = {"photometric": "minisblack"}
    yield tiff("u8_5_lzw.tif", "u1", 5, compression="lzw", **gray, planarconfig="contig")
    yield tiff("u16_4_planar.tif", "u2", 4, planes, compression="adobe_deflate", **gray, planarconfig="separate")
    yield tiff("u16_13_tiles_zstd.tif", "u2", 13, tile=(16, 16), compression="zstd", **gray, planarconfig="contig")
    yield tiff("u16_4_predictor.tif", "u2", 4, compression="lzw", predictor=2, **gray, planarconfig="contig")
    yield tiff("u16_rgb_nir.tif", "u2", 4, photometric="rgb", extrasamples=[0], planarconfig="contig")
    yield tiff("u8_rgb_6.tif", "u1", 6, photometric="rgb", extrasamples=[0] * 3, planarconfig="contig")
    yield tiff("u16_big.tif", "u2", 3, bigtiff=True, photometric="rgb", planarconfig="contig", rowsperstrip=5)
    yield tiff("u16_motorola.tif", "u2", 4, byteorder=">", **gray, planarconfig="contig", rowsperstrip=4)
    yield tiff("i16_1.tif", "i2", 1, one, compression="packbits", **gray)
    yield tiff("i32_2.tif", "i4", 2, **gray, planarconfig="contig")
    yield tiff("u32_1.tif", "u4", 1, one, **gray)
    yield tiff("f32_1.tif", "f4", 1, one, compression="adobe_deflate", predictor=3, **gray)
    yield tiff("f32_5_zstd.tif", "f4", 5, compression="zstd", **gray, planarconfig="contig")
    yield tiff("f64_2.tif", "f8", 2, **gray, planarconfig="contig")
    yield gdal(rng, "gdal_pixel.tif", "pixel")
    for name, kind, channels, arrange in [
        ("u8_1.npy", "u1", 1, one),
        ("u16_4.npy", "u2", 4, lambda a: a),
        ("i16_3.npy", "i2", 3, lambda a: a),
        ("chw_u16_5.npy", "u2", 5, planes),
        ("f32_2.npy", "f4", 2, lambda a: a.astype(">f4")),
        ("f64_1.npy", "f8", 1, one),
    ]:
        array = picture(rng, kind, channels)
        yield name, array, lambda path, a=arrange(array): np.save(path, np.ascontiguousarray(a))
    array = picture(rng, "u2", 1)
    yield "u16_1.png", array, lambda path: Image.fromarray(array[..., 0]).save(path)
    # Planar in tiles, those at the right and lower edge only partly used.
    for name, kind, channels, more in [
        ("u8_4_tiles.tif", "u1", 4, {}),
        ("u8_rgb_tiles.tif", "u1", 3, {"photometric": "rgb", "compression": "adobe_deflate"}),
        ("u8_2_tiles_lzw.tif", "u1", 2, {"compression": "lzw", "predictor": 2, "byteorder": ">"}),
        ("i8_3_tiles.tif", "i1", 3, {"compression": "packbits"}),
        ("u16_5_tiles_big.tif", "u2", 5, {"compression": "adobe_deflate", "predictor": 2, "bigtiff": True}),
        ("i16_2_tiles.tif", "i2", 2, {"compression": "zstd", "byteorder": ">", "tile": (32, 16)}),
        ("u32_3_tiles.tif", "u4", 3, {"compression": "lzw", "bigtiff": True, "byteorder": ">"}),
        ("i32_2_tiles.tif", "i4", 2, {"tile": (32, 32)}),
        ("f32_4_tiles.tif", "f4", 4, {"compression": "adobe_deflate", "predictor": 3}),
        ("f32_2_tiles_zstd.tif", "f4", 2, {"compression": "zstd"}),
    ]:
        yield tiff(name, kind, channels, planes, **{"tile": (16, 16), **gray, "planarconfig": "separate", **more})
    yield gdal(rng, "gdal_band.tif", "band")
    # Nothing at the edges: a few LZW codes for many rows.
    for name, kind, channels, rows in [("u8_rgb_empty.tif", "u1", 3, 4), ("u16_2_empty.tif", "u2", 2, 6)]:
        array = picture(rng, kind, channels)
        array[rows:] = array[:, 19:] = 0
        options = {"tile": (16, 16), "compression": "lzw", "planarconfig": "contig"}
        options["photometric"] = "rgb" if channels == 3 else "minisblack"
        yield name, array, lambda path, a=array, options=options: tifffile.imwrite(path, a, **options)
    array = picture(rng, "u4", 1)
    yield "u32_white.tif", 2**32 - 1 - array, lambda path: tifffile.imwrite(path, array[..., 0], photometric="miniswhite")
    # Luma and chroma, as aerial images are stored; what libjpeg decodes is expected, up to its rounding and upsampling.
    for name, more in [("u8_jpeg.tif", {"subsampling": (1, 1)}), ("u8_jpeg_tiles.tif", {"tile": (16, 16)})]:
        array = np.repeat(np.repeat(picture(rng, "u1", 3), 2, 0), 2, 1)[:HEIGHT, :WIDTH]
        options = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 95}, **more}
        yield name, array, lambda path, a=array, options=options: tifffile.imwrite(path, a, **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    rng = np.random.default_rng(parser.parse_args().seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    listed = []
    for name, array, write in files(rng):
        write(FOLDER / name)
        lossy = "_jpeg" in name
        if lossy:
            array = tifffile.imread(FOLDER / name)
        flat = array.reshape(-1, array.shape[-1]).astype(np.float64)
        # numpy's percentiles of all values, as data.value_range=auto takes them; then a range that clips more.
        auto = np.percentile(flat, [0.1, 99.9], axis=0).T.tolist()
        tight = np.percentile(flat, [5, 80], axis=0).T.tolist()
        if lossy:
            auto = tight = [[0.0, 255.0]] * 3
        (FOLDER / f"{name}.bytes").write_bytes(as_bytes(array, auto).tobytes() + as_bytes(array, tight).tobytes())
        clipped = int(sum(((flat[:, c] < lo) | (flat[:, c] > hi)).sum() for c, (lo, hi) in enumerate(tight)))
        entry = {"name": name, "channels": array.shape[-1], "auto": auto, "tight": tight, "clipped": clipped}
        # One in luma and chroma, times 1.772.
        listed.append(entry | ({"off": 3} if lossy else {}))
    lines = ",\n".join(json.dumps(entry) for entry in listed)
    (FOLDER.parent / "bands.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()

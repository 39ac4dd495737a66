#!/usr/bin/env python3
"""Writes tests/fixtures/data: odd images with the pixels Pillow reads from them, and parquet files
in the layout of Hugging Face datasets.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/data.py [--seed 0] [--cifar path/to/cifar10/train.parquet]
"""

import argparse
import hashlib
import io
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "data"
WIDTH, HEIGHT = 24, 16


def picture(rng):
    """A smooth RGB picture without symmetries."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = []
    for _ in range(3):
        a, b, c = rng.uniform(-0.25, 0.25, 2).tolist() + [rng.uniform(0, 6)]
        channels.append(127 + 110 * np.sin(a * x + b * y + c))
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def odd_images(rng):
    """Name, encoded bytes and the largest allowed difference of a channel. Lossless formats must
    match exactly; JPEG decoders may round and interpolate halved chroma differently."""
    rgb = picture(rng)
    grey = rgb.convert("L")
    alpha = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    cmyk = Image.merge("CMYK", [picture(rng).getchannel(i) for i in (0, 1, 2, 0)])
    other = picture(rng).quantize(32)
    wide = Image.fromarray(rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16))
    deep = np.repeat(np.asarray(rgb), 2).reshape(HEIGHT, WIDTH, 3, 2)
    deep[..., 1] = rng.integers(0, 256, deep.shape[:-1])
    yield "plain.jpg", encode(rgb, "JPEG", quality=90), 4
    yield "full_colour.jpg", encode(rgb, "JPEG", quality=90, subsampling=0), 4
    yield "progressive.jpg", encode(rgb, "JPEG", quality=90, progressive=True), 4
    yield "restarts.jpg", encode(rgb, "JPEG", quality=90, restart_marker_blocks=1), 4
    yield "grey.jpg", encode(grey, "JPEG", quality=90), 4
    yield "cmyk.jpg", encode(cmyk, "JPEG", quality=90), 4
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"exif{orientation}.jpg", encode(rgb, "JPEG", quality=90, exif=exif), 4
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "exif6.png", encode(rgb, "PNG", exif=exif), 0
    yield "rgb.png", encode(rgb, "PNG"), 0
    yield "rgba.png", encode(rgba, "PNG"), 0
    yield "grey.png", encode(grey, "PNG"), 0
    yield "grey_alpha.png", encode(Image.merge("LA", [grey, alpha]), "PNG"), 0
    yield "bilevel.png", encode(grey.convert("1"), "PNG"), 0
    yield "palette.png", encode(rgb.quantize(16), "PNG"), 0
    yield "palette_alpha.png", encode(rgb.quantize(16), "PNG", transparency=3), 0
    yield "grey16.png", encode(wide, "PNG"), 0
    yield "rgb16.png", png16(deep), 0
    yield "animated.gif", encode(rgb.quantize(32), "GIF", save_all=True, append_images=[other]), 0
    yield "rgb.bmp", encode(rgb, "BMP"), 0
    yield "rgb.tiff", encode(rgb, "TIFF", compression="tiff_lzw"), 0
    yield "lossless.webp", encode(rgb, "WEBP", lossless=True), 0
    yield "lossy.webp", encode(rgb, "WEBP", quality=90), 0


def png16(samples):
    """A 16-bit RGB PNG from [height, width, 3, 2] big-endian bytes; Pillow cannot write one."""
    import struct
    import zlib

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def reference(name, data):
    """What Pillow makes of an image. Its clipping of 16-bit grey is not followed."""
    image = Image.open(io.BytesIO(data))
    if name == "grey16.png":
        high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(high[..., None], 3, -1)
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def hugging_face(names):
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def parquet_files(rng):
    """Two training shards and a test shard; the second has a null image and a broken one."""
    folder = OUT / "shards"
    folder.mkdir(exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = []

    def write(name, count, compression, broken=()):
        images, labels = [], []
        for row in range(count):
            data = encode(Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)), "PNG")
            data = {0: None, 1: b"broken"}[broken.index(row)] if row in broken else data
            images.append({"bytes": data, "path": f"{row}.png"})
            labels.append(None if name.startswith("train-00001") and row == 0 else row % 3)
            rows.append({"file": name, "row": row, "label": labels[-1]})
            if data is not None and row not in broken:
                rows[-1]["pixels"] = np.asarray(Image.open(io.BytesIO(data))).flatten().tolist()
        table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64())})
        table = table.replace_schema_metadata(hugging_face(["ant", "bee", "cat"]))
        pq.write_table(table, folder / name, compression=compression, row_group_size=3)
        return table

    table = write("train-00000-of-00002.parquet", 7, "zstd")
    write("train-00001-of-00002.parquet", 5, "snappy", broken=(2, 4))
    write("test-00000-of-00001.parquet", 4, "none")
    flat = {
        "title": pa.array(["a"] * 7),
        "picture": pa.array([image["bytes"].as_py() for image in table["image"]], pa.binary()),
        "kind": table["label"].cast(pa.int32()),
    }
    # A dictionary and small pages of the second version, which readers skip differently.
    pq.write_table(pa.table(flat), OUT / "flat.parquet", use_dictionary=True, data_page_size=300,
                   data_page_version="2.0", write_batch_size=1, compression="snappy")
    return rows


def cifar(path):
    """First labels and digests of the encoded images of a few rows of CIFAR-10."""
    table = pq.read_table(path)
    rows = [0, 1, 2, 1999, 2000, 31234, 49999]
    sha = lambda row: hashlib.sha256(table["img"][row]["bytes"].as_py()).hexdigest()
    decoded = lambda row: np.asarray(Image.open(io.BytesIO(table["img"][row]["bytes"].as_py())))
    return {
        "rows": rows,
        "labels": table["label"].to_pylist()[:20],
        "sha256": [sha(row) for row in rows],
        "pixels": [decoded(row).flatten().tolist() for row in rows[:1]],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cifar", help="also write what CIFAR-10's training file holds")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    (OUT / "images").mkdir(parents=True, exist_ok=True)
    images = []
    for name, data, tolerance in odd_images(rng):
        (OUT / "images" / name).write_bytes(data)
        pixels = reference(name, data)
        (OUT / "images" / f"{name}.rgb").write_bytes(pixels.tobytes())
        height, width, _ = pixels.shape
        images.append({"name": name, "width": width, "height": height, "tolerance": tolerance})
    (OUT / "images.json").write_text(json.dumps(images, indent=0) + "\n")
    (OUT / "shards.json").write_text(json.dumps(parquet_files(rng)) + "\n")
    if arguments.cifar:
        (OUT / "cifar.json").write_text(json.dumps(cifar(arguments.cifar)) + "\n")


if __name__ == "__main__":
    main()

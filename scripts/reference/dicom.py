"""DICOM files as scanners write them, and what they are as bytes: tests/fixtures/data/dicom, dicom.json, frames.json.

Usage: python scripts/reference/dicom.py [--seed N]
"""

import argparse
import io
import json
import pathlib

import imagecodecs
import numpy as np
from bands import as_bytes
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_rescale, convert_color_space, pixel_array, set_pixel_data
from pydicom.sequence import Sequence
from pydicom.uid import UID

FOLDER = pathlib.Path(__file__).parents[2] / "tests/fixtures/data/dicom"
HEIGHT, WIDTH = 17, 22
IMPLICIT, EXPLICIT, BIG, RLE, JPEG, LOSSLESS, LS, NEAR_LS, LOSSLESS_2000, JPEG_2000 = (
    UID("1.2.840.10008.1.2" + end)
    for end in ("", ".1", ".2", ".5", ".4.50", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91")
)


def pattern(rng, low, high, shape=(HEIGHT, WIDTH)):
    """Waves with noise over low to high."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    base = np.sin(x / rng.uniform(2, 5)) + np.cos(y / rng.uniform(2, 5)) + rng.normal(0, 0.1, shape)
    base = (base - base.min()) / (base.max() - base.min())
    return np.round(low + base * (high - low)).astype(np.int64)


def color(rng):
    return np.stack([pattern(rng, 0, 255) for _ in range(3)], -1).astype(np.uint8)


def dataset(syntax, array, stored, photometric="MONOCHROME2", **more):
    """A file's elements without its pixels; `stored` are the bits, negative for signed ones."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4"
    ds.PatientName = "Nobody"
    ds.Rows, ds.Columns = HEIGHT, WIDTH
    ds.SamplesPerPixel = 3 if photometric.startswith(("RGB", "YBR")) else 1
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated = array.dtype.itemsize * 8
    ds.BitsStored = abs(stored)
    ds.HighBit = abs(stored) - 1
    ds.PixelRepresentation = int(stored < 0)
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    for name, value in more.items():
        setattr(ds, name, value)
    return ds


def written(ds, pixels):
    """The file's bytes with these bytes of pixels, or these fragments."""
    syntax = ds.file_meta.TransferSyntaxUID
    ds.PixelData = encapsulate(pixels) if isinstance(pixels, list) else pixels + b"\0" * (len(pixels) % 2)
    ds["PixelData"].VR = "OB" if isinstance(pixels, list) or ds.BitsAllocated == 8 else "OW"
    ds["PixelData"].is_undefined_length = isinstance(pixels, list)
    out = io.BytesIO()
    little = syntax != BIG
    ds.save_as(out, implicit_vr=syntax == IMPLICIT, little_endian=little, enforce_file_format=True)
    return out.getvalue()


def rle(array, ds):
    """The file with pydicom's own encoder."""
    ds.file_meta.TransferSyntaxUID = EXPLICIT
    set_pixel_data(ds, array, ds.PhotometricInterpretation, ds.BitsStored, generate_instance_uid=False)
    ds.compress(RLE, encoding_plugin="pydicom", generate_instance_uid=False)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def values(stored, ds, inverted=False):
    """Rescaled as 32-bit numbers."""
    bits = ds.BitsStored
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if ds.PixelRepresentation else (0, (1 << bits) - 1)
    return apply_rescale(low + high - stored if inverted else stored, ds).astype(np.float32)


def jpeg(array, **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def opened(data, mode):
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def gray_files(rng):
    """Name, bytes of the file and values; of 8 bits as they are."""
    hounsfield = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
    a = pattern(rng, 0, 3000).astype("<u2")
    # Sequences without lengths before the pixels, one of a private kind whose reader does not know it.
    inner = Dataset()
    inner.ReferencedSOPClassUID = "1.2.3"
    ds = dataset(EXPLICIT, a, 12, **hounsfield, ReferencedImageSequence=Sequence([inner, inner]))
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds.ReferencedImageSequence[0].is_undefined_length_sequence_item = True
    yield "ct_explicit.dcm", written(ds, a.tobytes()), values(a, ds)
    # Bits that are not stored hold an overlay.
    ds = dataset(IMPLICIT, a, 12, **hounsfield)
    yield "ct_implicit.dcm", written(ds, (a | 0x5000).astype("<u2").tobytes()), values(a, ds)
    a = pattern(rng, -1000, 2000).astype("<i2")
    a[:3] = a[:, :2] = -2000
    ds = dataset(EXPLICIT, a, -16, RescaleSlope="1", RescaleIntercept="0", PixelPaddingValue=-2000)
    real = values(a, ds)
    real[a == -2000] = np.nan
    yield "ct_padding.dcm", written(ds, a.tobytes()), real
    a = pattern(rng, -2000, 2000)
    ds = dataset(EXPLICIT, a.astype("<i2"), -12, RescaleSlope="2.5", RescaleIntercept="7.25")
    yield "mr_i12.dcm", written(ds, (a & 0xFFF).astype("<u2").tobytes()), values(a, ds)
    ds = dataset(EXPLICIT, a.astype("<i2"), -12, HighBit=15)
    yield "mr_high.dcm", written(ds, (a << 4).astype("<i2").tobytes()), values(a, ds)
    a = pattern(rng, 10, 60000).astype(">u2")
    ds = dataset(BIG, a, 16)
    yield "big_u16.dcm", written(ds, a.tobytes()), values(a.astype(int), ds)
    a = pattern(rng, 100, 16000).astype("<u2")
    ds = dataset(EXPLICIT, a, 14, "MONOCHROME1")
    yield "cr_inverted.dcm", written(ds, a.tobytes()), values(a.astype(int), ds, True)
    a = pattern(rng, 0, 4_000_000_000).astype("<u4")
    ds = dataset(EXPLICIT, a, 32, DoseGridScaling="1", RescaleSlope="1e-6", RescaleIntercept="0")
    yield "dose_u32.dcm", written(ds, a.tobytes()), values(a, ds)
    a = pattern(rng, 0, 255).astype("u1")
    ds = dataset(BIG, a, 8)
    # In words, the second pixel comes first.
    words = written(ds, a.reshape(-1, 2)[:, ::-1].tobytes())
    at = words.rindex(b"\x7f\xe0\x00\x10OB")
    yield "big_u8.dcm", words[: at + 4] + b"OW" + words[at + 6 :], a
    yield "u8.dcm", written(dataset(IMPLICIT, a, 8), a.tobytes()), a
    yield "u8_inverted.dcm", written(dataset(EXPLICIT, a, 8, "MONOCHROME1"), a.tobytes()), 255 - a
    ds = dataset(EXPLICIT, a, 8, RescaleSlope="2", RescaleIntercept="-100")
    yield "u8_rescaled.dcm", written(ds, a.tobytes()), values(a, ds)
    a = pattern(rng, 0, 4095).astype("<u2")
    ds = dataset(EXPLICIT, a, 12, **hounsfield)
    yield "rle_u12.dcm", rle(a, ds), values(a, ds)
    a = pattern(rng, 0, 255).astype("u1")
    data = jpeg(a)
    yield "jpeg_gray.dcm", written(dataset(JPEG, a, 8), [data]), opened(data, "L")
    for name, bits, sign in [("lossless_u12.dcm", 12, 1), ("lossless_i16.dcm", 16, -1)]:
        a = pattern(rng, 0 if sign > 0 else -30000, (1 << bits - (sign < 0)) - 1)
        coded = (a & (1 << bits) - 1).astype("<u2")
        data = imagecodecs.ljpeg_encode(coded, bitspersample=bits)
        ds = dataset(LOSSLESS, coded, sign * bits, RescaleSlope="0.5", RescaleIntercept="-3")
        yield name, written(ds, [data]), values(a, ds)


def color_files(rng):
    """The same of color."""
    a = color(rng)
    planes = np.moveaxis(a, -1, 0)
    yield "rgb.dcm", written(dataset(EXPLICIT, a, 8, "RGB"), a.tobytes()), a
    ds = dataset(EXPLICIT, a, 8, "RGB", PlanarConfiguration=1)
    yield "rgb_planar.dcm", written(ds, planes.tobytes()), a
    yield "rgb_rle.dcm", rle(a, dataset(EXPLICIT, a, 8, "RGB")), a
    rgb = convert_color_space(a, "YBR_FULL", "RGB")
    ds = dataset(EXPLICIT, a, 8, "YBR_FULL", PlanarConfiguration=1)
    yield "ybr_planar.dcm", written(ds, planes.tobytes()), rgb
    yield "ybr.dcm", written(dataset(EXPLICIT, a, 8, "YBR_FULL"), a.tobytes()), rgb
    half = a.copy()
    half[:, 1::2, 1:] = half[:, ::2, 1:]
    pairs = np.concatenate([half[:, ::2, :1], half[:, 1::2, :1], half[:, ::2, 1:]], -1)
    ds = dataset(EXPLICIT, a, 8, "YBR_FULL_422")
    yield "ybr_422.dcm", written(ds, pairs.tobytes()), convert_color_space(half, "YBR_FULL", "RGB")
    data = jpeg(a, subsampling="4:2:2")
    yield "jpeg_ybr.dcm", written(dataset(JPEG, a, 8, "YBR_FULL_422"), [data]), opened(data, "RGB")
    # RGB that only the file's elements tell from luma and chroma: without a marker in the JPEG.
    data = jpeg(a, keep_rgb=True)
    assert data[20:24] == b"\xff\xdb\x00\x43" or b"Adobe" in data
    at = data.index(b"\xff\xee")
    plain = data[:at] + data[at + 16 :]
    for marker in (b"R\x11", b"G\x11", b"B\x11"):
        plain = plain.replace(marker, bytes([b"RGB".index(marker[:1]) + 1]) + marker[1:], 1)
    for number, marker in enumerate(b"RGB", 1):
        scan = plain.index(b"\xff\xda") + 5 + 2 * (number - 1)
        assert plain[scan] == marker
        plain = plain[:scan] + bytes([number]) + plain[scan + 1 :]
    yield "jpeg_rgb.dcm", written(dataset(JPEG, a, 8, "RGB"), [plain]), opened(data, "RGB")
    data = imagecodecs.jpeg8_encode(a, lossless=True, predictor=1, colorspace="RGB", outcolorspace="RGB")
    assert np.array_equal(imagecodecs.jpeg8_decode(data), a)
    yield "lossless_rgb.dcm", written(dataset(LOSSLESS, a, 8, "RGB"), [data]), a
    index = pattern(rng, 0, 220).astype("u1")
    colors = rng.integers(0, 65536, (3, 200)).astype("<u2")
    ds = dataset(EXPLICIT, index, 8, "PALETTE COLOR")
    for name, table in zip(("Red", "Green", "Blue"), colors):
        setattr(ds, name + "PaletteColorLookupTableDescriptor", [200, 10, 16])
        setattr(ds, name + "PaletteColorLookupTableData", table.tobytes())
    looked_up = (colors.T >> 8).astype("u1")[np.clip(index.astype(int) - 10, 0, 199)]
    yield "palette.dcm", written(ds, index.tobytes()), looked_up


def fragments(ds, parts, table):
    """The file of fragments of compressed pixels and a table of offsets as they are."""
    item = lambda data: b"\xfe\xff\x00\xe0" + len(data).to_bytes(4, "little") + data  # noqa: E731
    out = written(ds, [b"\0\0"])
    at = out.index(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 12
    return out[:at] + b"".join(map(item, [table, *parts])) + b"\xfe\xff\xdd\xe0" + bytes(4)


def frames_files(rng):
    """Files of several frames, of which the first is expected."""
    a = np.stack([pattern(rng, 0, 4095) for _ in range(3)]).astype("<u2")
    ds = dataset(EXPLICIT, a, 12, NumberOfFrames=3)
    yield "frames.dcm", written(ds, a.tobytes()), values(a[0], ds)
    ds = dataset(EXPLICIT, a, 12, NumberOfFrames=3)
    first = values(a[0], ds)
    yield "frames_rle.dcm", rle(a, ds), first
    # Slope and intercept of each frame, in sequences.
    ds = dataset(EXPLICIT, a, 12, NumberOfFrames=3)
    groups = []
    for frame in range(3):
        transformation = Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = str(frame + 2), str(-10 * frame - 5)
        groups.append(Dataset())
        groups[-1].PixelValueTransformationSequence = Sequence([transformation])
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    yield "frames_enhanced.dcm", written(ds, a.tobytes()), (a[0] * 2.0 - 5).astype(np.float32)
    grays = [pattern(rng, 0, 255).astype("u1") for _ in range(2)]
    first, second = (jpeg(gray) for gray in grays)
    ds = dataset(JPEG, grays[0], 8, NumberOfFrames=2)
    cut = len(first) // 4 * 2
    # Frames in several fragments, with and without a table of their offsets.
    for name, table in [("frames_jpeg_table.dcm", True), ("frames_jpeg.dcm", False)]:
        parts = [part + b"\0" * (len(part) % 2) for part in (first[:cut], first[cut:], second)]
        offset = sum(len(part) + 8 for part in parts[:2])
        offsets = bytes(4) + offset.to_bytes(4, "little") if table else b""
        yield name, fragments(ds, parts, offsets), opened(first, "L")


def newer_files(rng):
    """Name, bytes of the file, values, and how far off a byte may be, of JPEG-LS and JPEG 2000."""
    hounsfield = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
    j2k = lambda array, **options: imagecodecs.jpeg2k_encode(array, codecformat="j2k", **options)  # noqa: E731
    for bits, sign in ((8, 1), (12, 1), (16, 1), (16, -1), (12, -1)):
        a = pattern(rng, 0 if sign > 0 else -(1 << bits - 1), (1 << bits - (sign < 0)) - 1)
        stored = a.astype("u1" if bits == 8 else "<u2" if sign > 0 else "<i2")
        coded = (a & (1 << bits) - 1).astype(stored.dtype.str.replace("i", "u"))
        name = f"{'u' if sign > 0 else 'i'}{bits}"
        ds = dataset(LS, stored, sign * bits, **(hounsfield if bits == 12 else {}))
        yield f"ls_{name}.dcm", written(ds, [imagecodecs.jpegls_encode(coded)]), values(a, ds) if bits > 8 else stored, 0
        # Of signed values the codestream says so, or does not.
        for kind, array in (("", stored), ("_as_unsigned", coded))[: 1 + (sign < 0)]:
            ds = dataset(LOSSLESS_2000, stored, sign * bits, **(hounsfield if bits == 12 else {}))
            data = j2k(array, reversible=True, level=0, bitspersample=bits)
            yield f"j2k_{name}{kind}.dcm", written(ds, [data]), values(a, ds) if bits > 8 else stored, 0
    a = pattern(rng, 0, 4095).astype("<u2")
    data = imagecodecs.jpegls_encode(a, level=5)
    ds = dataset(NEAR_LS, a, 12)
    yield "ls_near.dcm", written(ds, [data]), values(imagecodecs.jpegls_decode(data).astype(int), ds), 0
    data = j2k(a, reversible=False, level=45, bitspersample=12)
    ds = dataset(JPEG_2000, a, 12)
    yield "j2k_lossy.dcm", written(ds, [data]), values(imagecodecs.jpeg2k_decode(data).astype(int), ds), 1
    a = color(rng)
    data = j2k(a, reversible=True, level=0, mct=True)
    yield "j2k_rct.dcm", written(dataset(LOSSLESS_2000, a, 8, "YBR_RCT"), [data]), a, 0
    data = j2k(a, reversible=True, level=0, mct=False)
    yield "j2k_rgb.dcm", written(dataset(LOSSLESS_2000, a, 8, "RGB"), [data]), a, 0
    rgb = convert_color_space(a, "YBR_FULL", "RGB")
    yield "j2k_ybr.dcm", written(dataset(LOSSLESS_2000, a, 8, "YBR_FULL"), [data]), rgb, 0
    data = j2k(a, reversible=False, level=40, mct=True)
    yield "j2k_ict.dcm", written(dataset(JPEG_2000, a, 8, "YBR_ICT"), [data]), imagecodecs.jpeg2k_decode(data), 1
    # Two frames, the first in two fragments.
    grays = [pattern(rng, 0, 4095).astype("<u2") for _ in range(2)]
    first, second = (j2k(gray, reversible=True, level=0, bitspersample=12) for gray in grays)
    parts = [part + b"\0" * (len(part) % 2) for part in (first[:200], first[200:], second)]
    ds = dataset(LOSSLESS_2000, grays[0], 12, NumberOfFrames=2)
    yield "frames_j2k.dcm", fragments(ds, parts, b""), values(grays[0], ds), 0
    first, second = (imagecodecs.jpegls_encode(gray) for gray in grays)
    parts = [part + b"\0" * (len(part) % 2) for part in (first[:200], first[200:], second)]
    ds = dataset(LS, grays[0], 12, NumberOfFrames=2)
    yield "frames_ls.dcm", fragments(ds, parts, b""), values(grays[0], ds), 0


def unread_files(gray, rgb):
    """Name and bytes of files that are not read."""
    yield "unread_12.dcm", ".4.51", gray, imagecodecs.jpeg8_encode(gray, level=90, bitspersample=12)
    yield "unread_ls.dcm", ".4.80", rgb, imagecodecs.jpegls_encode(rgb)
    yield "unread_htj2k.dcm", ".4.201", gray, b"\xff\x4f\xff\x51"


def more_frames_files(rng):
    """Name and bytes of further files of several frames."""
    a = np.stack([pattern(rng, 10, 60000) for _ in range(3)]).astype(">u2")
    yield "frames_big.dcm", written(dataset(BIG, a, 16, NumberOfFrames=3), a.tobytes())
    a = np.stack([color(rng) for _ in range(2)])
    ds = dataset(IMPLICIT, a, 8, "RGB", NumberOfFrames=2, PlanarConfiguration=1)
    ds.add_new(0xFFFCFFFC, "OB", b"after the pixels")
    yield "frames_rgb.dcm", written(ds, np.moveaxis(a, -1, 1).tobytes())
    # Groups without lengths, longer than what is read at first.
    a = np.stack([pattern(rng, 0, 4095) for _ in range(3)]).astype("<u2")
    ds = dataset(EXPLICIT, a, 12, NumberOfFrames=3)
    groups = []
    for frame in range(3):
        transformation, group = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = str(3 - frame), str(frame)
        group.add_new(0x00091001, "OB", bytes(23_000))
        group.PixelValueTransformationSequence = Sequence([transformation])
        group["PixelValueTransformationSequence"].is_undefined_length = True
        group.is_undefined_length_sequence_item = True
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    yield "frames_open.dcm", rle(a, ds)
    # A table of zeros, and one fragment for each frame.
    grays = [pattern(rng, 0, 255).astype("u1") for _ in range(3)]
    parts = [part + b"\0" * (len(part) % 2) for part in map(jpeg, grays)]
    yield "frames_zeros.dcm", fragments(dataset(JPEG, grays[0], 8, NumberOfFrames=3), parts, bytes(12))


def all_frames(data):
    """What pydicom reads of a file of several frames, rescaled as each says; of 8 bits as they are."""
    item = b"\xfe\xff\x00\xe0"
    # It takes a table of zeros for one of offsets.
    ds = dcmread(io.BytesIO(data.replace(item + b"\x0c\0\0\0" + bytes(12), item + bytes(4))))
    syntax = ds.file_meta.TransferSyntaxUID
    if decode := {LS: imagecodecs.jpegls_decode, LOSSLESS_2000: imagecodecs.jpeg2k_decode}.get(syntax):
        stored = np.stack([decode(x) for x in generate_frames(ds.PixelData, number_of_frames=ds.NumberOfFrames)])
    else:
        stored = pixel_array(ds, decoding_plugin={JPEG: "pillow"}.get(syntax, ""))
    if stored.dtype == np.uint8:
        return stored
    groups = ds.get("PerFrameFunctionalGroupsSequence")
    rescales = [group.PixelValueTransformationSequence[0] for group in groups] if groups else [ds] * len(stored)
    return np.stack([apply_rescale(frame, rescale).astype(np.float32) for frame, rescale in zip(stored, rescales)])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    rng, newer = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    FOLDER.mkdir(parents=True, exist_ok=True)
    listed = []
    older = [(*file, 0) for file in (*gray_files(rng), *color_files(rng), *frames_files(rng))]
    for name, data, real, off in older + list(newer_files(newer)):
        (FOLDER / name).write_bytes(data)
        deep = real.dtype != np.uint8
        flat = real.reshape(HEIGHT * WIDTH, -1).astype(np.float64)
        measured = flat[np.isfinite(flat).all(1)]
        # As data.value_range=auto takes them; then a range that clips more. Padding becomes 0.
        auto = np.percentile(measured, [0.1, 99.9], axis=0).T.tolist() if deep else [[0, 255]] * flat.shape[1]
        tight = np.percentile(measured, [5, 80], axis=0).T.tolist()
        made = []
        for ranges in (auto, tight):
            low = np.array([r[0] for r in ranges])
            made.append(as_bytes(np.where(np.isnan(flat), low, flat), ranges).tobytes())
        (FOLDER / f"{name}.bytes").write_bytes(b"".join(made))
        clipped = int(sum((~((flat[:, c] >= lo) & (flat[:, c] <= hi))).sum() for c, (lo, hi) in enumerate(tight)))
        listed.append({"name": name, "deep": deep, "auto": auto, "tight": tight, "clipped": clipped, "off": off})
    for name, end, array, data in unread_files(pattern(rng, 0, 4095).astype("<u2"), color(newer)):
        kind = ["MONOCHROME2", "RGB"][array.ndim - 2]
        ds = dataset(UID("1.2.840.10008.1.2" + end), array, 8 if array.ndim == 3 else 12, kind)
        (FOLDER / name).write_bytes(written(ds, [data]))
    write_frames(rng)
    lines = ",\n".join(json.dumps(entry) for entry in listed)
    (FOLDER.parent / "dicom.json").write_text(f"[\n{lines}\n]\n")


def write_frames(rng):
    """Every frame of the files of several, those written before included."""
    for name, data in more_frames_files(rng):
        (FOLDER / name).write_bytes(data)
    listed = []
    for path in sorted(FOLDER.glob("frames*.dcm")):
        frames = all_frames(path.read_bytes())
        deep = frames.dtype != np.uint8
        ends = np.percentile(frames, [1, 99]).tolist() if deep else [0, 255]
        flat = frames.reshape(len(frames) * HEIGHT * WIDTH, -1)
        path.with_suffix(".dcm.frames").write_bytes(as_bytes(flat, [ends] * flat.shape[1]).tobytes())
        listed.append({"name": path.name, "frames": len(frames), "channels": flat.shape[1], "range": ends})
    lines = ",\n".join(json.dumps(entry) for entry in listed)
    (FOLDER.parent / "frames.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()

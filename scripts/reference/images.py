"""Odd images of every format and what Pillow makes of them: `ImageOps.exif_transpose`, then
`.convert("RGB")`. `data.py` writes them to tests/fixtures/data/images."""

import io
import json
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

WIDTH, HEIGHT = 24, 16
ORIENTATION = 0x0112


def picture(rng, width=WIDTH, height=HEIGHT):
    """A smooth RGB picture without symmetries."""
    y, x = np.mgrid[0:height, 0:width]
    channels = []
    for _ in range(3):
        a, b, c = rng.uniform(-0.25, 0.25, 2).tolist() + [rng.uniform(0, 6)]
        channels.append(127 + 110 * np.sin(a * x + b * y + c))
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def xmp(orientation):
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def odd_images(rng):
    """Name, encoded bytes and the largest allowed difference of a channel. Lossless formats must
    match exactly, and JPEGs but for those inside TIFFs."""
    rgb = picture(rng)
    grey = rgb.convert("L")
    alpha = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    cmyk = Image.merge("CMYK", [picture(rng).getchannel(i) for i in (0, 1, 2, 0)])
    other = picture(rng).quantize(32)
    wide = rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    deep = np.repeat(np.asarray(rgb), 2).reshape(HEIGHT, WIDTH, 3, 2)
    deep[..., 1] = rng.integers(0, 256, deep.shape[:-1])
    yield from jpegs(rgb, grey, cmyk)
    yield from pngs(rgb, grey, alpha, rgba, wide, deep)
    yield from others(rgb, grey, rgba, cmyk, other, wide)


def jpegs(rgb, grey, cmyk):
    jpeg = lambda image, **options: encode(image, "JPEG", quality=90, **options)
    yield "plain.jpg", jpeg(rgb), 0
    yield "full_colour.jpg", jpeg(rgb, subsampling=0), 0
    yield "half_width.jpg", jpeg(rgb, subsampling=1), 0
    yield "quarter_width.jpg", jpeg(rgb, subsampling="4:1:1"), 0
    yield "progressive.jpg", jpeg(rgb, progressive=True), 0
    yield "restarts.jpg", jpeg(rgb, restart_marker_blocks=1), 0
    yield "grey.jpg", jpeg(grey), 0
    yield "grey_progressive.jpg", jpeg(grey, progressive=True), 0
    yield "rgb_inside.jpg", jpeg(rgb, keep_rgb=True), 0
    yield "cmyk.jpg", jpeg(cmyk), 0
    yield "cmyk_progressive.jpg", jpeg(cmyk, progressive=True), 0
    # The same four channels, declared as YCCK by the last byte of Adobe's segment.
    at = jpeg(cmyk).index(b"Adobe") + 11
    yield "ycck.jpg", jpeg(cmyk)[:at] + b"\2" + jpeg(cmyk)[at + 1:], 0
    # Odd sizes end in the middle of a block, and of a pair of columns and rows that share chroma.
    for width, height in [(1, 1), (7, 3), (17, 9), (33, 31)]:
        data = jpeg(picture(np.random.default_rng(width), width, height))
        yield f"size{width}x{height}.jpg", data, 0
    # Of many blocks, so that parts can be cut out: for every way to store chroma.
    noise = np.random.default_rng(3)
    large = np.asarray(picture(noise, 83, 70)) // 2 + noise.integers(0, 128, (70, 83, 3), dtype=np.uint8)
    large = Image.fromarray(large)
    for name, options in [
        ("444", dict(subsampling="4:4:4")),
        ("422", dict(subsampling="4:2:2")),
        ("420", dict(subsampling="4:2:0")),
        ("411", dict(subsampling="4:1:1")),
        ("420_restarts", dict(subsampling="4:2:0", restart_marker_blocks=4)),
        ("420_progressive", dict(subsampling="4:2:0", progressive=True)),
    ]:
        yield f"large_{name}.jpg", encode(large, "JPEG", quality=50, **options), 0
    yield "large_grey.jpg", encode(large.convert("L"), "JPEG", quality=50), 0
    yield "large_cmyk.jpg", encode(large.convert("CMYK"), "JPEG", quality=50), 0
    yield "large_exif7.jpg", encode(large, "JPEG", quality=50, exif=turned(7)), 0
    for orientation in range(1, 9):
        yield f"exif{orientation}.jpg", jpeg(rgb, exif=turned(orientation)), 0
    yield "exif0.jpg", jpeg(rgb, exif=turned(0)), 0
    yield "exif6_progressive.jpg", jpeg(rgb, exif=turned(6), progressive=True), 0
    yield "exif6_grey.jpg", jpeg(grey, exif=turned(6)), 0
    yield "exif6_cmyk.jpg", jpeg(cmyk, exif=turned(6)), 0
    little = turned(6).tobytes()
    yield "exif6_damaged.jpg", jpeg(rgb, exif=little[:10] + b"\xff" * 12), 0
    yield "xmp8.jpg", jpeg(rgb, xmp=xmp(8)), 0
    yield "xmp8_exif3.jpg", jpeg(rgb, xmp=xmp(8), exif=turned(3)), 0
    thumbnail = turned(1)
    yield "trailer.jpg", jpeg(rgb, exif=thumbnail) + b"\0\xff\xda\0moving picture", 0
    yield "comment.jpg", jpeg(rgb, comment=b"\xff\xd9 \xff\xda", icc_profile=b"unused" * 40), 0


def pngs(rgb, grey, alpha, rgba, wide, deep):
    png = lambda image, **options: encode(image, "PNG", **options)
    yield "rgb.png", png(rgb), 0
    yield "rgba.png", png(rgba), 0
    yield "grey.png", png(grey), 0
    yield "grey_alpha.png", png(Image.merge("LA", [grey, alpha])), 0
    yield "bilevel.png", png(grey.convert("1")), 0
    for bits in (1, 2, 4, 8):
        yield f"palette{bits}.png", png(rgb.quantize(2**bits), bits=bits), 0
    yield "palette_alpha.png", png(rgb.quantize(16), transparency=3), 0
    yield "palette_alphas.png", png(rgb.quantize(16), transparency=bytes(range(0, 240, 15))), 0
    # One grey value or one colour that is transparent.
    yield "grey_key.png", png(grey, transparency=grey.getpixel((3, 3))), 0
    yield "rgb_key.png", png(rgb, transparency=rgb.getpixel((3, 3))), 0
    yield "grey16.png", png(Image.fromarray(wide)), 0
    samples = np.asarray(grey, np.uint8)
    for bits in (2, 4):
        packed = samples >> (8 - bits)
        packed = sum(packed[:, i::8 // bits] << (8 - bits * (i + 1)) for i in range(8 // bits))
        yield f"grey{bits}.png", raw_png(packed.astype(np.uint8), bits, 0), 0
    # Pillow cannot write 16-bit colours nor interlaced files.
    opaque = np.asarray(alpha)[..., None]
    big = wide.astype(">u2").view(np.uint8).reshape(HEIGHT, WIDTH, 1, 2)
    yield "rgb16.png", raw_png(deep, 16, 2), 0
    yield "rgba16.png", raw_png(np.concatenate([deep, np.stack([opaque, opaque], -1)], 2), 16, 6), 0
    yield "grey_alpha16.png", raw_png(np.concatenate([big, np.stack([opaque, opaque], -1)], 2), 16, 4), 0
    yield "interlaced.png", raw_png(np.asarray(rgb), 8, 2, interlaced=True), 0
    yield "interlaced_grey16.png", raw_png(big, 16, 0, interlaced=True), 0
    for orientation in range(2, 9):
        yield f"exif{orientation}.png", png(rgb, exif=turned(orientation)), 0
    yield "exif6_palette.png", png(rgb.quantize(16), exif=turned(6)), 0
    yield "exif6_bilevel.png", png(grey.convert("1"), exif=turned(6)), 0
    plain = png(rgb)
    late = plain[:-12] + png_chunk(b"eXIf", turned(6).tobytes()[6:]) + plain[-12:]
    yield "exif6_late.png", late, 0
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)
    yield "xmp6.png", plain[:33] + png_chunk(b"iTXt", text) + plain[33:], 0
    animation = dict(save_all=True, append_images=[rgb.transpose(Image.Transpose.ROTATE_180)])
    yield "animated.png", png(rgb, **animation), 0
    # A still picture that is not part of the animation.
    yield "animated_still.png", png(rgb, default_image=True, **animation), 0


def others(rgb, grey, rgba, cmyk, other, wide):
    palette = rgb.quantize(32)
    gif = lambda image, **options: encode(image, "GIF", **options)
    yield "animated.gif", gif(palette, save_all=True, append_images=[other]), 0
    yield "interlaced.gif", gif(palette, interlace=1), 0
    yield "transparent.gif", gif(palette, transparency=palette.getpixel((5, 5))), 0
    yield "grey.gif", gif(grey), 0
    still = gif(palette, interlace=0)
    # The first frame covers a part of a larger canvas.
    frame = lambda left, top: b"\x2c" + struct.pack("<HHHH", left, top, WIDTH, HEIGHT)
    canvas = struct.pack("<HH", WIDTH + 5, HEIGHT + 3)
    yield "part.gif", still[:6] + canvas + still[10:].replace(frame(0, 0), frame(2, 1)), 0
    bmp = lambda image: encode(image, "BMP")
    yield "rgb.bmp", bmp(rgb), 0
    yield "rgba.bmp", bmp(rgba), 0
    yield "grey.bmp", bmp(grey), 0
    yield "palette.bmp", bmp(rgb.quantize(16)), 0
    yield "bilevel.bmp", bmp(grey.convert("1")), 0
    tiff = lambda image, **options: encode(image, "TIFF", **options)
    yield "rgb.tiff", tiff(rgb, compression="tiff_lzw"), 0
    yield "raw.tiff", tiff(rgb), 0
    yield "deflate.tiff", tiff(rgb, compression="tiff_adobe_deflate"), 0
    yield "packbits.tiff", tiff(rgb, compression="packbits"), 0
    yield "rgba.tiff", tiff(rgba), 0
    yield "grey.tiff", tiff(grey), 0
    yield "grey_alpha.tiff", tiff(Image.merge("LA", [grey, grey])), 0
    yield "grey16.tiff", tiff(Image.fromarray(wide)), 0
    yield "bilevel.tiff", tiff(grey.convert("1")), 0
    yield "palette.tiff", tiff(rgb.quantize(16)), 0
    yield "cmyk.tiff", tiff(cmyk), 1
    yield "jpeg.tiff", tiff(rgb, compression="jpeg"), 4
    yield "pages.tiff", tiff(rgb, save_all=True, append_images=[other.convert("RGB")]), 0
    for orientation in range(2, 9):
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[ORIENTATION] = orientation
        yield f"exif{orientation}.tiff", tiff(rgb, tiffinfo=info), 0
    webp = lambda image, **options: encode(image, "WEBP", **options)
    yield "lossless.webp", webp(rgb, lossless=True), 0
    yield "lossy.webp", webp(rgb, quality=90), 0
    yield "rgba.webp", webp(rgba, lossless=True, exact=True), 0
    yield "lossy_alpha.webp", webp(rgba, quality=90), 0
    animation = dict(save_all=True, append_images=[other.convert("RGB")], lossless=True)
    yield "animated.webp", webp(rgb, **animation), 0
    yield "animated_alpha.webp", webp(rgba, exact=True, **animation), 0
    yield from jpegs_2000(rgb, grey, rgba, wide)
    for orientation in range(2, 9):
        yield f"exif{orientation}.webp", webp(rgb, lossless=True, exif=turned(orientation)), 0
    yield "xmp6.webp", webp(rgb, lossless=True, xmp=xmp(6)), 0


def jpegs_2000(rgb, grey, rgba, wide):
    """Lossy ones may round to the next value: the inverse wavelet transform is in floating point."""
    jp2 = lambda image, **options: encode(image, "JPEG2000", **options)
    lossy = dict(irreversible=True, quality_mode="dB", quality_layers=[40])
    yield "rgb.jp2", jp2(rgb), 0
    yield "rgb_mct.jp2", jp2(rgb, mct=1), 0
    yield "rgba.jp2", jp2(rgba), 0
    yield "grey.jp2", jp2(grey), 0
    yield "grey_alpha.jp2", jp2(Image.merge("LA", [grey, rgba.getchannel(3)])), 0
    yield "grey16.jp2", jp2(Image.fromarray(wide)), 0
    yield "tiles.j2k", jp2(rgb, tile_size=(16, 8), no_jp2=True), 0
    yield "progression.j2k", jp2(rgb, progression="RPCL", num_resolutions=3, no_jp2=True), 0
    yield "lossy.jp2", jp2(rgb, mct=1, **lossy), 1
    yield "lossy_grey.j2k", jp2(grey, no_jp2=True, **lossy), 1



def png_chunk(kind, data):
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def raw_png(samples, bits, color_type, interlaced=False):
    """A PNG of rows of big-endian samples, by hand."""
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
                  (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in passes
        for row in samples[top::down, left::right]
    )
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color_type, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def reference(name, data):
    """What Pillow makes of an image, but for two things that are not followed: it clips 16-bit grey
    at 255, and paints what the first frame of a GIF leaves free in the first colour of the palette."""
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I;16"):
        high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(high[..., None], 3, -1)
    pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if name == "part.gif":
        covered = pixels[1:1 + HEIGHT, 2:2 + WIDTH].copy()
        pixels[:] = 0
        pixels[1:1 + HEIGHT, 2:2 + WIDTH] = covered
    return pixels


def write(rng, out):
    """Writes the images, their pixels, and the list of them."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    images = []
    for name, data, tolerance in odd_images(rng):
        (out / "images" / name).write_bytes(data)
        pixels = reference(name, data)
        (out / "images" / f"{name}.rgb").write_bytes(pixels.tobytes())
        height, width, _ = pixels.shape
        images.append({"name": name, "width": width, "height": height, "tolerance": tolerance})
    (out / "images.json").write_text(json.dumps(images, indent=0) + "\n")

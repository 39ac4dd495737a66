//! From an image and the choices for a view to its pixels.

use super::blur::Blur;
use super::color::{Steps, plane_length};
use super::resize::{Resizer, Target};
use super::stages::{Laps, Stages};
use super::{Draws, Interpolation, Size, degrade, spatial};
use crate::pixels::Pixels;
use native::simd::widest;

/// Scratch buffers of one worker, reused so that no memory is allocated after the first few images.
#[derive(Default)]
pub struct Scratch {
    pub(super) resizer: Resizer,
    blur: Blur,
    pub(super) steps: Steps,
    /// The channels, a byte for each pixel plus padding.
    pub(super) planes: Vec<u8>,
    /// Planes before a turn.
    turned: Vec<u8>,
    /// If set, the time of every stage is added to it.
    pub stages: Option<Stages>,
}

/// Makes one view of `image` from `draws`: `out[(y * size.width + x) * channels + channel]`, with the image's channels.
/// Saturation, hue and grayscale are for RGB, and leave other images as they are.
/// Panics unless `out` has `size.pixels() * channels` bytes and the crop lies inside the image.
pub fn apply(
    image: &Pixels,
    draws: &Draws,
    size: Size,
    interpolation: Interpolation,
    scratch: &mut Scratch,
    out: &mut [u8],
) {
    let Scratch { resizer, blur, steps, planes, turned, stages } = scratch;
    let (mut laps, pixels) = (Laps::new(stages), size.pixels());
    let made = draws.unturned(size);
    let target = Target { width: made.width, height: made.height, left: 0, top: 0, size: made, flip: draws.flip };
    widest(
        #[inline(always)]
        || resizer.run(image, draws.crop, draws.reduction, target, interpolation, planes),
    );
    turn(planes, size, draws, interpolation, turned);
    laps.end(|stages| &mut stages.resize);
    recolor(planes, pixels, draws, steps);
    let mut planes = &mut planes[..];
    if let Some(sigma) = draws.blur {
        widest(
            #[inline(always)]
            || steps.flush(planes, pixels),
        );
        laps.end(|stages| &mut stages.color);
        if draws.grayscale && image.channels == 3 {
            // All planes are equal and stay so: one is enough.
            planes = &mut planes[..plane_length(pixels)];
        }
        for plane in planes.chunks_exact_mut(plane_length(pixels)) {
            widest(
                #[inline(always)]
                || blur.run(&mut plane[..pixels], size, sigma),
            );
        }
        laps.end(|stages| &mut stages.blur);
    }
    if let Some(threshold) = draws.solarize {
        steps.solarize(threshold);
    }
    widest(
        #[inline(always)]
        || steps.finish(planes, pixels, image.channels, out),
    );
    if let Some(noise) = draws.noise {
        degrade::add_noise(out, noise);
    }
    if let Some(area) = draws.erase {
        degrade::erase(out, size, area);
    }
    laps.end(|stages| &mut stages.color);
}

/// Changes of color up to the blur: those of each channel first.
fn recolor(planes: &mut [u8], pixels: usize, draws: &Draws, steps: &mut Steps) {
    for (plane, &factors) in planes.chunks_exact_mut(plane_length(pixels)).zip(draws.channels.iter().flatten()) {
        degrade::adjust_channel(&mut plane[..pixels], factors);
    }
    for &op in draws.color.iter().flatten() {
        widest(
            #[inline(always)]
            || steps.color(op, planes, pixels),
        );
    }
    if draws.grayscale {
        steps.grayscale();
    }
}

/// Vertical flip, quarter turns and rotation; the planes then have `size`.
fn turn(planes: &mut [u8], size: Size, draws: &Draws, kernel: Interpolation, spare: &mut Vec<u8>) {
    let before = draws.unturned(size);
    if draws.vertical_flip || draws.quarter_turns > 0 {
        for plane in planes.chunks_exact_mut(plane_length(size.pixels())) {
            if draws.vertical_flip {
                spatial::flip_rows(plane, before);
            }
            spatial::quarter_turns(plane, before, draws.quarter_turns, spare);
        }
    }
    if let Some(degrees) = draws.rotation {
        spatial::rotate(planes, size, degrees, kernel, spare);
    }
}

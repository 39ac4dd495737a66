//! Where to crop: torchvision's `RandomResizedCrop.get_params`.

use super::Size;
use crate::rng::Stream;

/// A box of whole pixels inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Column of the left edge.
    pub left: usize,
    /// Row of the top edge.
    pub top: usize,
    /// Columns, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
}

/// What is needed, or held, of an image: a part of it, maybe at a lower resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The part, in pixels of the image.
    pub crop: Crop,
    /// Pixels of the image, in both directions, for one in memory: 1, 2, 4 or 8. As a wish, the most that will do.
    pub reduction: usize,
}

impl Part {
    /// Part and all of the image, pixel by pixel.
    pub fn whole(width: usize, height: usize) -> Self {
        Self { crop: Crop::whole(width, height), reduction: 1 }
    }
}

impl Crop {
    /// The whole image.
    pub fn whole(width: usize, height: usize) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// The bounding box of both.
    pub fn around(self, other: Self) -> Self {
        let (left, top) = (self.left.min(other.left), self.top.min(other.top));
        let right = (self.left + self.width).max(other.left + other.width);
        let bottom = (self.top + self.height).max(other.top + other.height);
        Self { left, top, width: right - left, height: bottom - top }
    }

    /// The box of whole pixels that covers this one in an image reduced to 1/`reduction`, its sides rounded up.
    pub fn reduced(self, reduction: usize) -> Self {
        let (left, top) = (self.left / reduction, self.top / reduction);
        let (right, bottom) = (self.left + self.width, self.top + self.height);
        Self { left, top, width: right.div_ceil(reduction) - left, height: bottom.div_ceil(reduction) - top }
    }

    /// The most that the image may be reduced, 1, 2, 4 or 8, so that the box still has at least twice the view's
    /// pixels in each direction: what the antialiased resize then takes away, a reduction has not touched.
    pub fn reduction(self, view: Size) -> usize {
        let enough = |by: &usize| self.width >= 2 * view.width * by && self.height >= 2 * view.height * by;
        [8, 4, 2].into_iter().find(enough).unwrap_or(1)
    }

    /// Draws up to 10 boxes, of uniform area and log-uniform aspect, and takes the first that fits;
    /// otherwise the largest central box with an aspect in `ratio`. Only for aspects beyond the image's size in
    /// pixels does this differ from torchvision: the box then has one row or column, not zero.
    pub fn random(width: usize, height: usize, scale: [f64; 2], ratio: [f64; 2], rng: &mut Stream) -> Self {
        let area = (width * height) as f64;
        let side = |square: f64| square.sqrt().round_ties_even() as usize;
        for _ in 0..10 {
            let target = area * rng.uniform(scale[0], scale[1]);
            let aspect = rng.uniform(ratio[0].ln(), ratio[1].ln()).exp();
            let (w, h) = (side(target * aspect), side(target / aspect));
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = rng.below(height - h + 1);
                let left = rng.below(width - w + 1);
                return Self { left, top, width: w, height: h };
            }
        }
        Self::central(width, height, ratio)
    }

    fn central(width: usize, height: usize, ratio: [f64; 2]) -> Self {
        let (w, h) = (width as f64, height as f64);
        let (mut crop_width, mut crop_height) = (width, height);
        if w / h < ratio[0] {
            crop_height = ((w / ratio[0]).round_ties_even() as usize).max(1);
        } else if w / h > ratio[1] {
            crop_width = ((h * ratio[1]).round_ties_even() as usize).max(1);
        }
        let (left, top) = ((width - crop_width) / 2, (height - crop_height) / 2);
        Self { left, top, width: crop_width, height: crop_height }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    #[test]
    fn boxes_stay_inside_and_the_fallback_is_central() {
        for index in 0..2000 {
            let mut rng = Stream::new(3, Purpose::Augment, 0, index, 0);
            let (width, height) = (1 + rng.below(300), 1 + rng.below(300));
            let crop = Crop::random(width, height, [0.08, 1.0], [0.75, 4.0 / 3.0], &mut rng);
            assert!(crop.width >= 1 && crop.left + crop.width <= width);
            assert!(crop.height >= 1 && crop.top + crop.height <= height);
        }
        // No box of the whole area and aspect 1 fits an image that is not square.
        let mut rng = Stream::new(3, Purpose::Augment, 0, 0, 0);
        let mut fallback = |w, h| Crop::random(w, h, [1.0, 1.0], [1.0, 1.0], &mut rng);
        let central = |left, top, side| Crop { left, top, width: side, height: side };
        assert_eq!(fallback(500, 375), central(62, 0, 375));
        assert_eq!(fallback(100, 301), central(0, 100, 100));
        let whole = Crop::central(40, 35, [0.75, 4.0 / 3.0]);
        assert_eq!(whole, Crop { left: 0, top: 0, width: 40, height: 35 });
        assert_eq!(Crop::central(1, 9, [10.0, 10.0]).height, 1);
    }
}

//! Pages of TIFFs against tifffile (scripts/reference/pages.py).

use std::fs;

use byol::data::open_train;
use byol::pixels::Pixels;

use crate::bands::fixture;
use crate::dicom::{assert_damage_is_borne, assert_frames, frames};

#[test]
fn every_page_is_the_image_that_tifffile_wrote() {
    assert_frames("pages", "pages.json", "pages");
}

#[test]
fn damage_to_a_file_of_pages_ends_in_images_or_one_line() {
    for name in ["gray.tif", "big.tif", "tiles_big_endian.tif"] {
        let whole = fs::read(fixture("pages").join(name)).expect("read");
        assert_damage_is_borne(name, &whole, (0, 2), 100);
    }
}

#[test]
fn directories_in_a_circle_are_one_bad_image() {
    let mut bytes = fs::read(fixture("pages").join("one.tif")).expect("read");
    let first = u32::from_le_bytes(*bytes[4..].first_chunk().expect("an offset")) as usize;
    let entries = u16::from_le_bytes(*bytes[first..].first_chunk().expect("a number"));
    let next = first + 2 + 12 * usize::from(entries);
    bytes[next..next + 4].copy_from_slice(&(first as u32).to_le_bytes());
    let (_folder, config) = frames("one.tif", &bytes);
    let set = open_train(&config).expect("opens");
    assert_eq!((set.len(), set.name(0)), (1, "one.tif".into()));
    let error = set.load(0, &mut Pixels::default()).expect_err("damaged");
    assert!(format!("{error:#}").contains("cycle"), "{error:#}");
}

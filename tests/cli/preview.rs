//! `byol preview` from end to end: the cells of the picture are the views of the training loader, and what cannot be
//! drawn or written is refused in one line.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use byol::config::Config;
use byol::data;
use byol::data::loader::sampler::Sampler;
use byol::data::loader::{BadImages, Loader, LoaderOptions};
use byol::preview::Layout;
use image::{Rgb, RgbImage};

struct Folder(tempfile::TempDir);

impl Folder {
    /// A folder with a config of drawn textures, for views of `size` pixels.
    fn new(size: usize) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        let config = format!("data: {{synthetic: {{images: 9}}}}\naugment: {{size: {size}}}\ntrain: {{seed: 5}}\n");
        fs::write(folder.path("config.yaml"), config).expect("written");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn preview(&self, output: &str, extra: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
        command.arg("preview").arg("--config").arg(self.path("config.yaml"));
        command.arg("--output").arg(self.path(output)).args(extra).output().expect("byol runs")
    }

    /// The picture, and what was said about it.
    fn picture(&self, extra: &[&str]) -> (RgbImage, String) {
        let output = self.preview("views.png", extra);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        assert!(said.starts_with(&format!("{}: ", self.path("views.png").display())), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        (image::open(self.path("views.png")).expect("a PNG file").into_rgb8(), said)
    }

    /// Views 1 and 2 that the training loader makes, by (epoch, wanted index).
    fn trained_on(&self, overrides: &[String], epochs: u64) -> HashMap<(u64, u32), [Vec<u8>; 2]> {
        let config = Config::load(&self.path("config.yaml"), overrides).expect("a config");
        let dataset = data::open_train(&config.data).expect("images");
        let (len, bad) = (dataset.len(), BadImages::new(config.data.on_bad_image));
        let sampler = Sampler::new(len, len, 1, config.train.seed).expect("a sampler");
        let order: Vec<_> = (0..epochs).map(|epoch| sampler.epoch_order(epoch)).collect();
        let options = LoaderOptions { workers: 1, ..Default::default() };
        let mut loader = Loader::new(dataset, config.augment.clone(), sampler, 0, bad, options).expect("a loader");
        let bytes = config.augment.view_bytes();
        let mut views = HashMap::new();
        for epoch in 0..epochs {
            let batch = loader.next_batch().expect("a batch");
            for (at, &wanted) in order[epoch as usize].iter().enumerate() {
                let view = |view: usize| batch.views[view][at * bytes..][..bytes].to_vec();
                views.insert((epoch, wanted), [view(0), view(1)]);
            }
        }
        views
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One line that says `error: ` and all of `parts`; exit code 1, nothing on stdout.
fn refused(output: &Output, parts: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
    parts.iter().for_each(|part| assert!(stderr.contains(part), "{part:?} is not in {stderr}"));
}

/// Whether a cell shows the view, every pixel of it as a square of `factor` x `factor`.
fn shows(picture: &RgbImage, (left, top): (u32, u32), size: u32, factor: u32, view: &[u8]) -> bool {
    (0..size * factor).all(|y| {
        (0..size * factor).all(|x| {
            let at = 3 * (y / factor * size + x / factor) as usize;
            picture.get_pixel(left + x, top + y).0 == view[at..at + 3]
        })
    })
}

/// Compares every view of a picture of all `images` with the loader's, and looks at what lies between the cells.
fn compare(folder: &Folder, picture: &RgbImage, overrides: &[String], images: usize, factor: u32) {
    let draws = 3;
    let config = Config::load(&folder.path("config.yaml"), overrides).expect("a config");
    let layout = Layout::new(images, draws, config.augment.size);
    let size = config.augment.size.width as u32;
    assert_eq!((picture.dimensions(), layout.cell()), (layout.dimensions(), size * factor));
    let expected = folder.trained_on(overrides, draws as u64);
    for row in 0..images {
        for draw in 0..draws {
            let views = &expected[&(draw as u64, row as u32)];
            for (view, bytes) in views.iter().enumerate() {
                let corner = layout.corner(row, 1 + view * draws + draw);
                assert!(shows(picture, corner, size, factor, bytes), "image {row}, epoch {draw}, view {view}");
            }
        }
        // Text to the left of a row, paper in the seams of its cells and around all.
        let (left, top) = layout.corner(row, 0);
        let cell = layout.cell();
        assert!((0..left).any(|x| (top..top + cell).any(|y| picture.get_pixel(x, y).0[0] < 100)), "no label");
        for column in 0..=2 * draws {
            let right = layout.corner(row, column).0 + cell;
            assert!((top..top + cell).all(|y| *picture.get_pixel(right, y) == Rgb([255; 3])), "row {row}");
        }
    }
}

#[test]
fn cells_hold_the_views_of_training_pixel_by_pixel() {
    let folder = Folder::new(96);
    let (picture, said) = folder.picture(&["--images", "20", "--draws", "3"]);
    assert!(said.contains("9 of 9 images, 3 draws of each view"), "{said}");
    compare(&folder, &picture, &[], 9, 1);
}

#[test]
fn small_views_are_enlarged_and_originals_shown() {
    let folder = Folder::new(32);
    let (picture, _) = folder.picture(&["--images", "9", "--draws", "3"]);
    compare(&folder, &picture, &[], 9, 5);
    // The drawn images are as large as the views, so the originals are enlarged alike.
    let config = Config::load(&folder.path("config.yaml"), &[]).expect("a config");
    let (dataset, mut original) = (data::open_train(&config.data).expect("images"), Default::default());
    for row in 0..9 {
        dataset.load(row, &mut original).expect("an image");
        assert!(shows(&picture, Layout::new(9, 3, 32.into()).corner(row, 0), 32, 5, &original.data), "original {row}");
    }
}

#[test]
fn bad_images_are_replaced_as_in_training_or_fatal() {
    let folder = Folder::new(32);
    let images = folder.path("images");
    fs::create_dir(&images).expect("a folder");
    for (name, color) in [("a.png", [200, 10, 10]), ("c a name that is far too long for its place.png", [10, 10, 200])]
    {
        let image = RgbImage::from_fn(300, 7, |x, _| Rgb(color.map(|c: u8| c.wrapping_add(x as u8 / 8))));
        image.save(images.join(name)).expect("written");
    }
    fs::write(images.join("b.png"), "dust").expect("written");
    let overrides = ["data.format=image_folder".to_string(), format!("data.path={}", images.display())];
    let extra = ["--set", &overrides[0], "--set", &overrides[1], "--draws", "3"];
    let (picture, said) = folder.picture(&extra);
    assert!(said.contains("3 of 3 images") && said.contains("1 unreadable images skipped"), "{said}");
    compare(&folder, &picture, &overrides, 3, 5);
    fs::remove_file(folder.path("views.png")).expect("removed");
    let output = folder.preview("views.png", &[&extra[..], &["--set", "data.on_bad_image=fail"]].concat());
    refused(&output, &["bad image", "b.png", "expected JPEG, PNG"]);
    assert!(!folder.path("views.png").exists());
}

#[test]
fn an_output_that_exists_is_replaced_only_by_force() {
    let folder = Folder::new(32);
    fs::write(folder.path("views.png"), "mine").expect("written");
    refused(&folder.preview("views.png", &[]), &["--output", "views.png already exists", "--force"]);
    assert_eq!(fs::read(folder.path("views.png")).expect("still there"), b"mine");
    folder.picture(&["--force", "--images", "1", "--draws", "1"]);
    fs::create_dir(folder.path("folder.png")).expect("a folder");
    refused(&folder.preview("folder.png", &["--force"]), &["--output", "found the folder", "folder.png"]);
}

#[test]
fn what_cannot_be_written_is_refused_before_the_images_are_opened() {
    let folder = Folder::new(32);
    let nowhere = ["--set", "data.format=image_folder", "--set", "data.path=/nowhere"];
    refused(&folder.preview("views.jpg", &nowhere), &["--output", "views.jpg", "expected a name ending in .png"]);
    refused(&folder.preview("views", &nowhere), &["--output", "expected a name ending in .png"]);
    refused(&folder.preview("missing/views.png", &nowhere), &["--output", "found no folder", "missing", "create it"]);
    refused(&folder.preview("views.png", &nowhere), &["--set data.path=/nowhere", "no such file or folder: /nowhere"]);
    assert!(!Path::new(&folder.path("views.png")).exists());
}

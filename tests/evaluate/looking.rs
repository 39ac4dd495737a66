//! `byol neighbors` and `byol duplicates` on a folder of drawn images, some of which are copies of others.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use image::imageops::{self, FilterType};
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::Value;

use crate::support::TinyRun;
use crate::support::run::{byol, failed, succeeded, text};

/// A run on textures: its encoder is used on other images.
fn run() -> &'static TinyRun {
    static RUN: OnceLock<TinyRun> = OnceLock::new();
    RUN.get_or_init(|| TinyRun::train_shared("looking", &["schedule.epochs=6"]))
}

/// 30 images of random waves, and of three of them a smaller, a recompressed and a mirrored copy. Returns the names of
/// those that belong together.
fn draw(folder: &Path) -> Vec<BTreeSet<String>> {
    let mut random = byol::rng::Stream::new(5, byol::rng::Purpose::Verify, 0, 0, 0);
    let mut waves = || {
        let waves: Vec<[f64; 6]> = (0..4).map(|_| [(); 6].map(|()| random.uniform(-1.0, 1.0))).collect();
        RgbImage::from_fn(64, 64, |x, y| {
            let (x, y) = (f64::from(x) / 5.0, f64::from(y) / 5.0);
            let sum = |channel: usize| {
                let wave =
                    |[a, b, phase, weights @ ..]: &[f64; 6]| (a * x + b * y + 6.0 * phase).sin() * weights[channel];
                (128.0 + 60.0 * waves.iter().map(wave).sum::<f64>()).clamp(0.0, 255.0) as u8
            };
            Rgb([sum(0), sum(1), sum(2)])
        })
    };
    let mut together = Vec::new();
    for at in 0..30 {
        let image = waves();
        let save = |image: &RgbImage, name: &str| image.save(folder.join(name)).expect("saved");
        save(&image, &format!("{at:02}.png"));
        if at % 10 == 3 {
            save(&imageops::resize(&image, 40, 40, FilterType::Triangle), &format!("{at:02}-small.png"));
            save(&imageops::flip_horizontal(&image), &format!("{at:02}-mirrored.png"));
            image.save_with_format(folder.join(format!("{at:02}-again.jpg")), ImageFormat::Jpeg).expect("saved");
            let names = ["", "-small", "-mirrored"].map(|kind| format!("{at:02}{kind}.png"));
            together.push(names.into_iter().chain([format!("{at:02}-again.jpg")]).collect());
        }
    }
    together
}

fn arguments<'a>(command: &'a str, run: &'a str, path: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let data = ["--set", path];
    [&[command, "--checkpoint", run][..], &data, more].concat()
}

fn name(path: &Value) -> String {
    path.as_str().expect("a name").rsplit('/').next().expect("a name").to_string()
}

#[test]
fn planted_duplicates_are_found_and_left_out_of_the_list() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = folder.path().join("images");
    fs::create_dir(&images).expect("made");
    let planted = draw(&images);
    let (run, path) = (run().dir().display().to_string(), format!("data.path={}", images.display()));
    let (sheet, list) = (folder.path().join("sheet.png"), folder.path().join("kept.txt"));
    let files = [sheet.display().to_string(), list.display().to_string()];
    let more = ["--threshold", "0.9995", "--json", "--output", &files[0], "--keep-list", &files[1]];
    let output = byol(&arguments("duplicates", &run, &path, &more)).output().expect("byol runs");
    succeeded(&output);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let groups = report["groups"].as_array().expect("groups");
    let found: Vec<BTreeSet<String>> = groups
        .iter()
        .map(|group| group.as_array().expect("a group").iter().map(|m| name(&m["name"])).collect())
        .collect();
    assert_eq!(found, planted, "{report:#}");
    assert_eq!(report["duplicates"], 9);
    // The first of a group is a large one, and the small one is never kept.
    assert!(groups.iter().all(|group| group[0]["width"] == 64 && group[0]["cosine"].as_f64() > Some(0.999_99)));
    assert_eq!(image::open(&sheet).expect("a picture").height(), 72 + 3 * (128 + 50));
    let kept = fs::read_to_string(&list).expect("a list");
    assert!(kept.lines().count() == 30 && !kept.contains("-small"), "{kept}");
    // The list is a data set.
    let again = format!("data.path={}", list.display());
    let output = byol(&arguments("duplicates", &run, &again, &["--threshold", "0.9995"])).output().expect("byol runs");
    succeeded(&output);
    assert!(text(&output.stdout).starts_with("30 images, 0 groups with 0 duplicates"), "{}", text(&output.stdout));
    failed(
        &byol(&arguments("duplicates", &run, &path, &more)).output().expect("byol runs"),
        &["already exists; add --force"],
    );
}

#[test]
fn a_set_without_a_readable_image_is_refused_and_odd_names_are_left_out_of_a_list() {
    let folder = tempfile::tempdir().expect("a folder");
    let [bad, odd] = ["bad", "odd"].map(|name| folder.path().join(name));
    [&bad, &odd].into_iter().for_each(|folder| fs::create_dir(folder).expect("made"));
    fs::write(bad.join("a.png"), "no image").expect("written");
    draw(&odd);
    for (name, new) in [("05.png", OsStr::from_bytes(b"caf\xe9.png")), ("07.png", OsStr::new("a\tb.png"))] {
        fs::rename(odd.join(name), odd.join(new)).expect("renamed");
    }
    let (run, list) = (run().dir().display().to_string(), folder.path().join("kept.txt").display().to_string());
    let [bad, odd] = [bad, odd].map(|path| format!("data.path={}", path.display()));
    let expected = ["none of the images could be read", "nothing was written"];
    let looking =
        |command, path: &str, more: &[&str]| byol(&arguments(command, &run, path, more)).output().expect("runs");
    failed(&looking("duplicates", &bad, &["--threshold", "0.9", "--keep-list", &list]), &expected);
    failed(&looking("neighbors", &bad, &["--sample", "2"]), &expected);
    assert!(fs::metadata(&list).is_err(), "a list was written");
    failed(
        &looking("duplicates", &odd, &["--threshold", "0.9", "--keep-list", "/dev/full"]),
        &["--keep-list: /dev/full is not a regular file"],
    );
    let output = looking("duplicates", &odd, &["--threshold", "0.9995", "--keep-list", &list]);
    assert!(succeeded(&output).contains("2 images are left out of the list"), "{}", text(&output.stderr));
    let kept = fs::read_to_string(&list).expect("a list");
    assert!(kept.contains("04.png") && !kept.contains('\u{fffd}') && !kept.contains("a\tb"), "{kept}");
}

#[test]
fn neighbors_of_an_image_inside_and_outside_of_the_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = folder.path().join("images");
    fs::create_dir(&images).expect("made");
    draw(&images);
    let (run, path) = (run().dir().display().to_string(), format!("data.path={}", images.display()));
    let outside = folder.path().join("a\n\u{202e}b<script>.png");
    fs::copy(images.join("03.png"), &outside).expect("copied");
    let sheet = folder.path().join("sheet.png");
    let [outside, file] = [&outside, &sheet].map(|path| path.display().to_string());
    let more = ["--query", &outside, "--top", "3", "--output", &file];
    let output = byol(&arguments("neighbors", &run, &path, &more)).output().expect("byol runs");
    succeeded(&output);
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 4, "names on one line each: {said}");
    assert!(lines[0].ends_with(r"a\n\u{202e}b<script>.png") && lines[1].starts_with("  1.0000  "), "{said}");
    assert!(lines[1].ends_with("/03.png"), "{said}");
    assert_eq!(image::open(&sheet).expect("a picture").width(), 2 * 24 + 4 * 128 + 3 * 12);
    let json = |more: &[&str]| -> Value {
        let output = byol(&arguments("neighbors", &run, &path, more)).output().expect("byol runs");
        succeeded(&output);
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let sample = json(&["--sample", "5", "--top", "50", "--json"]);
    let results = sample["results"].as_array().expect("results");
    assert_eq!((results.len(), results[0]["neighbors"].as_array().map(Vec::len)), (5, Some(38)));
    for result in results {
        let near: Vec<f64> =
            result["neighbors"].as_array().expect("some").iter().filter_map(|near| near["cosine"].as_f64()).collect();
        assert!(near.is_sorted_by(|a, b| a >= b), "{near:?}");
        assert!(result["neighbors"].as_array().expect("some").iter().all(|near| near["index"] != result["index"]));
    }
    let one = json(&["--index", "3", "--top", "1", "--json"]);
    assert_eq!(one["results"][0]["index"], 3);
    let arguments =
        |more: &[&'static str]| byol(&self::arguments("neighbors", &run, &path, more)).output().expect("byol runs");
    failed(&arguments(&["--index", "39"]), &["--index: found 39, expected 0 to 38"]);
    failed(&arguments(&["--query", "nowhere.png"]), &["--query: nowhere.png", "no such file"]);
    assert_eq!(arguments(&[]).status.code(), Some(2), "one of --query, --index and --sample is required");
}

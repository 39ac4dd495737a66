//! `byol report`: the page as a file, and in a browser where there is one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::TinyRun;
use crate::support::run::{byol, failed, succeeded, text};

/// Names of browsers that have Chromium's options.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

fn browser() -> Option<&'static str> {
    BROWSERS.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success()))
}

/// What is added to a page to use it as a reader does. The result replaces the page's body.
const VISIT: &str = r#"<script>
window.addEventListener("load", () => {
  const result = { errors: window.seen, dark: [], hover: {}, sorted: [] };
  const paper = () => getComputedStyle(document.body).backgroundColor;
  result.dark.push(paper());
  document.getElementById("theme").click();
  result.dark.push(paper());
  const circle = document.querySelector(".map figure:not([hidden]) circle:nth-of-type(4)");
  circle.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, clientX: 200, clientY: 200 }));
  const tip = document.getElementById("tip");
  const picture = getComputedStyle(tip.children[0]);
  result.hover = { hidden: tip.hidden, image: picture.backgroundImage.slice(0, 23), width: picture.width, name: tip.children[1].textContent };
  circle.dispatchEvent(new PointerEvent("pointerout", { bubbles: true }));
  result.hover.after = tip.hidden;
  const planes = [...document.querySelectorAll(".map figure")].map((plane) => plane.hidden);
  document.querySelectorAll(".planes button")[1].click();
  result.planes = [planes, [...document.querySelectorAll(".map figure")].map((plane) => plane.hidden)];
  const table = document.querySelector("table.sortable.by-class") ?? document.querySelectorAll("table.sortable")[1];
  const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[2].dataset.value));
  for (let click = 0; click < 2; click++) { table.tHead.rows[0].cells[2].click(); result.sorted.push(column()); }
  result.wide = document.documentElement.scrollWidth - innerWidth;
  const text = document.createElement("pre");
  text.id = "result";
  text.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(result))));
  document.body.replaceChildren(text);
});
</script>"#;

/// Runs at the start of the page: every error is remembered.
const WATCH: &str = r#"<script>
window.seen = [];
window.addEventListener("error", (event) => window.seen.push(String(event.message)));
const log = console.error;
console.error = (...all) => { window.seen.push(all.join(" ")); log(...all); };
window.alert = (text) => window.seen.push("alert " + text);
</script>"#;

/// What a visit of the page found, in a window of this width.
fn visit(browser: &str, page: &Path, width: u32) -> Value {
    let profile = tempfile::tempdir().expect("a folder");
    let html = fs::read_to_string(page).expect("a page");
    let html = html.replacen("<head>", &format!("<head>{WATCH}"), 1).replacen("</body>", &format!("{VISIT}</body>"), 1);
    let changed = profile.path().join("page.html");
    fs::write(&changed, html).expect("written");
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"])
        .args(["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=20000"])
        .arg(format!("--window-size={width},1000"))
        .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
        .args(["--enable-logging=stderr", "--dump-dom"])
        .arg(format!("file://{}", changed.display()))
        .output()
        .expect("a browser");
    let (dom, log) = (text(&output.stdout), text(&output.stderr));
    assert!(!log.contains(":CONSOLE"), "{log}");
    let result = dom.split("<pre id=\"result\">").nth(1).and_then(|rest| rest.split('<').next());
    let result = result.unwrap_or_else(|| panic!("no result: {}\n{log}", &dom[..dom.len().min(2000)]));
    let bytes = <base64ct::Base64 as base64ct::Encoding>::decode_vec(result.trim()).expect("base64");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// Images with hostile names in folders with hostile names.
fn hostile(folder: &Path) {
    for at in 0..60u8 {
        let class = folder.join(["<script>alert(1)<", "\"quotes' & \u{202e}gnp.\n"][at as usize % 2]);
        fs::create_dir_all(&class).expect("made");
        let image = image::RgbImage::from_fn(20, 20, |x, y| {
            image::Rgb([at * 4, (x * 12) as u8, (y * (1 + u32::from(at) % 2 * 11)) as u8])
        });
        image.save(class.join(format!("<img src=x onerror=alert({at})>\u{2067}\n.png"))).expect("saved");
    }
}

fn report(runs: &[PathBuf], page: &Path, more: &[&str]) -> String {
    let runs: Vec<String> = runs.iter().map(|run| run.display().to_string()).collect();
    let page = page.display().to_string();
    let mut arguments = vec!["report", "--output", &page];
    arguments.extend(more);
    arguments.extend(runs.iter().map(String::as_str));
    let output = byol(&arguments).output().expect("byol runs");
    succeeded(&output);
    text(&output.stdout)
}

/// 60 images for TensorBoard's projector, and a picture of views.
fn assert_projector(folder: &Path) {
    let read = |name: &str| fs::read_to_string(folder.join("projector").join(name)).expect(name);
    let (vectors, metadata) = (read("vectors.tsv"), read("metadata.tsv"));
    let row = vectors.lines().next().expect("a row").split('\t');
    let width = row.map(|value| value.parse::<f32>().expect("a number")).collect::<Vec<_>>().len();
    assert!(vectors.lines().count() == 60 && vectors.lines().all(|line| line.split('\t').count() == width), "{width}");
    assert_eq!((metadata.lines().count(), metadata.lines().next()), (61, Some("name\tclass")), "{metadata}");
    assert!(metadata.lines().all(|line| line.split('\t').count() == 2), "{metadata}");
    let sprite = image::image_dimensions(folder.join("projector/sprite.png")).expect("a picture");
    assert_eq!(sprite, (8 * 44, 8 * 44));
    assert!(fs::read_to_string(folder.join("projector_config.pbtxt")).expect("read").contains("projector/sprite.png"));
    let has = |part: &[u8]| {
        let files = fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path());
        let files = files.filter(|path| path.is_file()).map(|path| fs::read(path).expect("read"));
        files.into_iter().any(|bytes| bytes.windows(part.len()).any(|window| window == part))
    };
    assert!(has(b"views") && has(b"_hparams_/session_start_info") && has(b"optimizer.base_lr"));
}

#[test]
fn a_report_of_hostile_names_is_one_page_that_works() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = folder.path().join("images <b>");
    fs::create_dir(&images).expect("made");
    hostile(&images);
    let path = format!("data.path={}", serde_json::to_string(&images).expect("text"));
    let images = ["data.format=image_folder", &path, "monitor.tensorboard_images=true"];
    let run = TinyRun::train(&[&images[..], &["monitor.knn_every=1", "monitor.knn_k=5"]].concat());
    let events = run.dir().join("tensorboard");
    assert_projector(&events);
    fs::remove_dir_all(events.join("projector")).expect("removed");
    let page = folder.path().join("report.html");
    let said = report(&[run.dir()], &page, &[]);
    assert!(said.contains("1 of 1 runs with images"), "{said}");
    let html = fs::read_to_string(&page).expect("a page");
    assert!(html.len() < 2_000_000, "{}", html.len());
    assert!(
        !html.contains("<script>alert")
            && !html.contains("<img src=x")
            && !html.contains('\u{202e}')
            && !html.contains('\u{2067}')
    );
    assert!(html.contains("&lt;script&gt;alert(1)&lt;"), "the class's name, escaped");
    for part in
        ["k-NN top-1", "Effective rank", "View retrieval", "Most isolated", "byol train --config", "Views", "PCA"]
    {
        assert!(html.contains(part), "{part}");
    }
    // The same again, to the byte.
    let again = folder.path().join("again.html");
    report(&[run.dir()], &again, &["--tensorboard"]);
    assert!(html == fs::read_to_string(&again).expect("a page"), "a report repeats");
    assert_projector(&events);
    let name = page.display().to_string();
    failed(
        &byol(&["report", "--output", &name, &run.dir().display().to_string()]).output().expect("byol runs"),
        &["already exists"],
    );
    let Some(browser) = browser() else {
        println!("skipped: the page in a browser (none of {} is installed)", BROWSERS.join(", "));
        return;
    };
    for width in [1280, 500] {
        let found = assert_works(browser, &page, width, 2);
        let name = found["hover"]["name"].as_str();
        assert!(name.is_some_and(|name| name.contains("<img src=x onerror=alert(")), "{found}");
    }
}

/// Looks, hover, maps and a table of `classes` rows of the page; returns what was found.
fn assert_works(browser: &str, page: &Path, width: u32, classes: usize) -> Value {
    let found = visit(browser, page, width);
    assert_eq!(found["errors"], serde_json::json!([]), "{found}");
    assert!(found["dark"][0] != found["dark"][1], "{found}");
    let hover = &found["hover"];
    assert_eq!((&hover["hidden"], &hover["after"]), (&Value::Bool(false), &Value::Bool(true)), "{found}");
    assert!(hover["image"].as_str().is_some_and(|image| image.starts_with("url(\"data:image/jpeg")), "{found}");
    assert_eq!(found["planes"], serde_json::json!([[false, true], [true, false]]), "{found}");
    let sorted: Vec<Vec<f64>> = serde_json::from_value(found["sorted"].clone()).expect("numbers");
    assert!(sorted[0].is_sorted() && sorted[1].iter().rev().is_sorted() && sorted[0].len() == classes, "{found}");
    assert!(found["wide"].as_i64().is_some_and(|pixels| pixels <= 0), "it scrolls sideways: {found}");
    found
}

/// A step of each: the page is made of the images and the config, not of how long they were trained on.
#[test]
fn the_reports_of_the_quick_start_and_of_cifar_10_work_in_a_browser() {
    let Some(browser) = browser() else {
        println!("skipped: the pages in a browser (none of {} is installed)", BROWSERS.join(", "));
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cifar = root.join("../shared/data/cifar10");
    let path = format!("data.path={}", cifar.display());
    for (config, path) in [("quickstart", "data.path=null"), ("cifar10_cpu", &path)] {
        if config == "cifar10_cpu" && !cifar.exists() {
            println!("skipped: {} is missing", cifar.display());
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (run, page) = (folder.path().join("run"), folder.path().join("report.html"));
        let out = format!("output.dir={}", run.display());
        let file = root.join(format!("configs/{config}.yaml")).display().to_string();
        let mut arguments = vec!["train", "--config", &file];
        for set in [path, &out, "train.max_steps=1", "monitor.knn_eval_images=100", "monitor.quality_images=64"] {
            arguments.extend(["--set", set]);
        }
        succeeded(&byol(&arguments).output().expect("byol runs"));
        report(&[run], &page, &["--images", "500"]);
        assert_works(browser, &page, 1280, 10);
    }
}

#[test]
fn runs_are_compared_side_by_side_without_their_images() {
    let runs = [TinyRun::train(&["optimizer.base_lr=0.1"]), TinyRun::train(&["data.synthetic.images=80"])];
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("report.html");
    // A run of an older version: no quality, no new keys of the summary.
    let old = runs[1].dir();
    let metrics = fs::read_to_string(old.join("metrics.jsonl")).expect("metrics");
    let kept: Vec<&str> = metrics.lines().filter(|line| !line.contains("effective_rank")).collect();
    fs::write(old.join("metrics.jsonl"), kept.join("\n")).expect("written");
    fs::remove_file(old.join("summary.json")).expect("removed");
    let said = report(&[runs[0].dir(), old], &page, &["--curves-only"]);
    assert!(said.contains("0 of 2 runs with images"), "{said}");
    let html = fs::read_to_string(&page).expect("a page");
    for part in ["optimizer.base_lr", "data.synthetic.images", "run (2)", "left out (--curves-only)", "unknown"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("<code>optimizer.name</code>"), "the same in both");
    let nothing = folder.path().display().to_string();
    failed(&byol(&["report", "--output", "x.html", &nothing]).output().expect("byol runs"), &["found no config.yaml"]);
}

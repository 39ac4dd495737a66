//! Build script: writes the commit and the rpath of libtorch into the binary, and turns the guide into documentation.
//! C++ code is compiled in src/native.

use std::fs;
use std::path::Path;
use std::process::Command;

fn main() {
    let lib = std::env::var("DEP_BYOL_NATIVE_LIBTORCH_LIB").expect("src/native says where libtorch is");
    // First where scripts/wheel installs the binary: beside torch in site-packages.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../torch/lib:{lib}");
    println!("cargo:rustc-env=BYOL_COMMIT={}", commit().unwrap_or("unknown".into()));
    guide();
    for sources in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={sources}");
    }
}

/// The guide's pages link to each other as files (`data.md`), which a code host follows; rustdoc wants modules.
fn guide() {
    let out = Path::new(&std::env::var("OUT_DIR").expect("cargo sets it")).join("guide");
    fs::create_dir_all(&out).expect("a folder in OUT_DIR");
    let entries =
        fs::read_dir("src/guide").expect("src/guide").map(|entry| entry.expect("an entry of src/guide").path());
    let pages: Vec<_> = entries.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect();
    let names: Vec<String> =
        pages.iter().filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect();
    for (path, name) in pages.iter().zip(&names) {
        let text = fs::read_to_string(path).expect("a page of the guide");
        let linked =
            names.iter().fold(text, |text, to| text.replace(&format!("]({to}.md"), &format!("](crate::guide::{to}")));
        fs::write(out.join(format!("{name}.md")), linked).expect("a page in OUT_DIR");
    }
}

/// Output of git for this checkout; `None` without git, or if the sources are part of another repository.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
}

/// The commit that is being built, with `-changed` if there are uncommitted changes.
fn commit() -> Option<String> {
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None; // unpacked within another repository
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // Whatever moves HEAD writes to one of these; a path that does not exist would mean a rebuild every time.
    let branch = git(&["symbolic-ref", "-q", "HEAD"]).unwrap_or("HEAD".into());
    for name in ["HEAD", "logs/HEAD", "packed-refs", &branch] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let changed = !git(&["status", "--porcelain", "--", "src", "Cargo.toml", "Cargo.lock"])?.is_empty();
    Some(if changed { commit + "-changed" } else { commit })
}

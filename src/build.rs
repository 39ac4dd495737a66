//! Build script: writes the commit and the rpath of libtorch into the binary. C++ code is compiled in src/native.

use std::path::Path;
use std::process::Command;

fn main() {
    let lib = std::env::var("DEP_BYOL_NATIVE_LIBTORCH_LIB").expect("src/native says where libtorch is");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rustc-env=BYOL_COMMIT={}", commit().unwrap_or("unknown".into()));
    for sources in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={sources}");
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

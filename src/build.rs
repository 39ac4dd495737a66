//! Build script: bakes the commit and the way to libtorch into the binary. What is compiled here is src/native's.

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

/// What git says on this checkout; nothing where there is no git, or where the sources are a part of someone else's.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
}

/// The commit that is being built, with `-changed` where the sources are not what was committed.
fn commit() -> Option<String> {
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None; // unpacked within another repository
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // Whatever moves HEAD writes to one of these; a path that does not exist would mean a build every time.
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

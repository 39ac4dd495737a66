//! Build script: compiles the C++ shims against libtorch, and bakes libtorch's folder and the commit into the binary.

use std::path::{Path, PathBuf};
use std::process::Command;

const SHIMS: [&str; 2] = ["shim.cpp", "dist.cpp"];

fn main() {
    for source in ["build.rs", "guarded.h", "gloo_stub"].iter().chain(&SHIMS) {
        println!("cargo:rerun-if-changed=src/backend/{source}");
    }
    // Published by torch-sys to its direct dependents.
    let lib = PathBuf::from(
        std::env::var("DEP_TCH_LIBTORCH_LIB")
            .expect("torch-sys must publish where libtorch is; is it a direct dependency?"),
    );
    let include = lib.parent().expect("libtorch/lib has a parent").join("include");
    compile_shim(&include);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=BYOL_LIBTORCH_LIB={}", lib.display());
    println!("cargo:rustc-env=BYOL_COMMIT={}", commit().unwrap_or("unknown".into()));
}

/// Compiles the shims, unless that was done: this script runs whenever a source changes, for [`commit`].
fn compile_shim(include: &Path) {
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo says where to"));
    let stamp = out.join("shim-for");
    let text = |name: &&str| std::fs::read_to_string(format!("src/backend/{name}")).expect("the shim's source");
    let made_from =
        format!("{}\n{}", include.display(), SHIMS.iter().chain(&["guarded.h"]).map(text).collect::<String>());
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == made_from) {
        println!("cargo:rustc-link-search=native={}", out.display());
        println!("cargo:rustc-link-lib=static=byol_shim");
        println!("cargo:rustc-link-lib=stdc++");
        return;
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(include)
        .include(include.join("torch/csrc/api/include"))
        .include("src/backend/gloo_stub") // c10d's declaration of its Gloo back end needs these names
        .define("USE_C10D_GLOO", None)
        .files(SHIMS.map(|name| format!("src/backend/{name}")))
        .compile("byol_shim");
    std::fs::write(stamp, made_from).expect("OUT_DIR can be written");
}

/// What git says on this checkout; nothing where there is no git, or where the sources are a part of someone else's.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
}

/// The commit that is being built, with `-changed` where the sources are not what was committed.
fn commit() -> Option<String> {
    if git(&["rev-parse", "--show-prefix"])? != "" {
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
    for sources in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={sources}");
    }
    let changed = git(&["status", "--porcelain", "--", "src", "Cargo.toml", "Cargo.lock"])? != "";
    Some(if changed { commit + "-changed" } else { commit })
}

//! Build script: compiles the shims against libtorch and libjpeg-turbo, and bakes libtorch's folder and the commit into
//! the binary.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Folder of the shims.
const SHIMS: &str = "src/backend";

/// Where PyPI's package has it, beside CUDA's.
const NCCL_HEADER: &str = "nccl/include/nccl.h";

fn main() {
    // Published by torch-sys to its direct dependents.
    let lib = PathBuf::from(
        std::env::var("DEP_TCH_LIBTORCH_LIB")
            .expect("torch-sys must publish where libtorch is; is it a direct dependency?"),
    );
    let include = lib.parent().expect("libtorch/lib has a parent").join("include");
    let nvidia = lib.ancestors().nth(2).map(|site| site.join("nvidia")).unwrap_or_default();
    compile_shims(&lib, &include, &nvidia);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=BYOL_LIBTORCH_LIB={}", lib.display());
    println!("cargo:rustc-env=BYOL_COMMIT={}", commit().unwrap_or("unknown".into()));
    for sources in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={sources}");
    }
    // A path that is not there would mean a build every time.
    let header = nvidia.join(NCCL_HEADER);
    println!("cargo:rerun-if-changed={}", if header.exists() { header } else { nvidia }.display());
}

/// Compiles the shims, unless that was done: this script runs whenever a source changes, for [`commit`].
fn compile_shims(lib: &Path, include: &Path, nvidia: &Path) {
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo says where to"));
    let stamp = out.join("shims-for");
    let cuda = nvidia.join("cu13/include");
    let with_cuda = cuda.join("crt/host_config.h").exists() && cuda.join("cccl").exists();
    let with_nccl = with_cuda && nvidia.join(NCCL_HEADER).exists();
    let jpeg = std::env::var("DEP_TURBOJPEG_INCLUDE").expect("turbojpeg-sys must publish where its headers are");
    let made_from = format!("{} {jpeg} {with_cuda} {with_nccl} {}", include.display(), sources(Path::new(SHIMS)));
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == made_from) {
        println!("cargo:rustc-link-search=native={}", out.display());
        println!("cargo:rustc-link-lib=static=byol_shim");
        println!("cargo:rustc-link-lib=stdc++");
        println!("cargo:rustc-link-lib=static=byol_jpeg");
    } else {
        let files = ["shim.cpp", "foreach.cpp", "stream.cpp", "dist.cpp"];
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .warnings(false)
            .include(include)
            .include(include.join("torch/csrc/api/include"))
            .include(Path::new(SHIMS).join("gloo_stub")) // c10d's declaration of its Gloo back end needs these names
            .define("USE_C10D_GLOO", None)
            .files(files.map(|file| Path::new(SHIMS).join(file)))
            .compile("byol_shim");
        cc::Build::new().include(jpeg).file(Path::new(SHIMS).join("jpeg.c")).compile("byol_jpeg");
        for (name, there) in [("graph", with_cuda), ("nccl", with_nccl)] {
            cuda_library(name, &out, lib, include, there.then_some(nvidia));
        }
        std::fs::write(stamp, made_from).expect("OUT_DIR can be written");
    }
    if !with_cuda {
        println!("cargo:warning=CUDA's headers are not in {}: building without CUDA graphs", cuda.display());
    }
}

/// Text of every C and C++ file below a folder, in the order of their names.
fn sources(folder: &Path) -> String {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).expect("the sources").flatten().map(|e| e.path()).collect();
    paths.sort();
    let text = |path: PathBuf| match path.extension().and_then(|e| e.to_str()) {
        None if path.is_dir() => sources(&path),
        Some("c" | "cpp" | "h") => std::fs::read_to_string(path).expect("a source"),
        _ => String::new(),
    };
    paths.into_iter().map(text).collect()
}

/// CUDA graphs and NCCL need headers (from PyPI, beside torch) and libtorch_cuda: shared objects of their own, for the
/// binary to carry. Without the headers it is an empty file, and the binary says what to install when asked for it.
fn cuda_library(name: &str, out: &Path, lib: &Path, include: &Path, nvidia: Option<&Path>) {
    let (source, out) = (format!("{SHIMS}/{name}.cpp"), out.join(format!("libbyol_{name}.so")));
    let Some(nvidia) = nvidia else {
        std::fs::write(out, []).expect("OUT_DIR can be written");
        return;
    };
    let includes = [include.to_path_buf(), include.join("torch/csrc/api/include")];
    let nvidias = ["cu13/include", "cu13/include/cccl", "nccl/include"].map(|folder| nvidia.join(folder));
    let last = [Path::new(SHIMS).join("cuda_stub")]; // what a CPU install lacks of what those include
    let status = Command::new(cc::Build::new().cpp(true).get_compiler().path())
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-w", "-DUSE_CUDA", "-DUSE_C10D_NCCL", "-o"])
        .args([out, PathBuf::from(&source)])
        .args(includes.iter().chain(&nvidias).chain(&last).map(|folder| format!("-I{}", folder.display())))
        .arg(format!("-L{}", lib.display()))
        .args(["-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"])
        .status();
    assert!(status.is_ok_and(|s| s.success()), "{source} does not compile");
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

//! Build script: compiles the C++ shim against libtorch and bakes libtorch's folder into the binary.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    for source in ["build.rs", "shim.cpp", "foreach.cpp", "stream.cpp", "graph.cpp", "guarded.h"] {
        println!("cargo:rerun-if-changed=src/backend/{source}");
    }
    // Published by torch-sys to its direct dependents.
    let lib = PathBuf::from(
        std::env::var("DEP_TCH_LIBTORCH_LIB")
            .expect("torch-sys must publish where libtorch is; is it a direct dependency?"),
    );
    let include = lib.parent().expect("libtorch/lib has a parent").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/backend/shim.cpp")
        .file("src/backend/foreach.cpp")
        .file("src/backend/stream.cpp")
        .compile("byol_shim");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=BYOL_LIBTORCH_LIB={}", lib.display());
    graph_library(&lib, &include);
}

/// CUDA graphs need CUDA's headers (from PyPI, beside torch) and libtorch_cuda: a shared object of its own, for the
/// binary to carry. Without the headers it is an empty file, and the binary says what to install when asked for a graph.
fn graph_library(lib: &Path, include: &Path) {
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it")).join("libbyol_graph.so");
    let cuda = lib.ancestors().nth(2).map(|site| site.join("nvidia/cu13/include")).unwrap_or_default();
    println!("cargo:rerun-if-changed={}", cuda.join("crt/host_config.h").display());
    if !cuda.join("crt/host_config.h").exists() || !cuda.join("cccl").exists() {
        println!("cargo:warning=CUDA's headers are not in {}: building without CUDA graphs", cuda.display());
        std::fs::write(&out, []).expect("OUT_DIR can be written");
        return;
    }
    let compiler = cc::Build::new().cpp(true).get_compiler();
    let status = Command::new(compiler.path())
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-w", "src/backend/graph.cpp", "-o"])
        .arg(&out)
        .args(
            [include, &include.join("torch/csrc/api/include"), &cuda, &cuda.join("cccl")]
                .map(|i| format!("-I{}", i.display())),
        )
        .arg(format!("-L{}", lib.display()))
        .args(["-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"])
        .status();
    assert!(status.is_ok_and(|s| s.success()), "src/backend/graph.cpp does not compile");
}

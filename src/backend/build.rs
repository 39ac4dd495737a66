//! Build script: compiles the C++ shims against libtorch and bakes libtorch's folder into the binary.

use std::path::PathBuf;

fn main() {
    for source in ["build.rs", "shim.cpp", "dist.cpp", "guarded.h", "gloo_stub"] {
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
        .include("src/backend/gloo_stub") // c10d's declaration of its Gloo back end needs these names
        .define("USE_C10D_GLOO", None)
        .file("src/backend/shim.cpp")
        .file("src/backend/dist.cpp")
        .compile("byol_shim");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=BYOL_LIBTORCH_LIB={}", lib.display());
}

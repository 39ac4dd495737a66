//! Build script: compiles the shims against libtorch and libjpeg-turbo, and bakes libtorch's folder into the binary.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/backend/shim.cpp");
    println!("cargo:rerun-if-changed=src/backend/jpeg.c");
    println!("cargo:rerun-if-changed=src/backend/build.rs");
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
        .compile("byol_shim");
    let jpeg = std::env::var("DEP_TURBOJPEG_INCLUDE").expect("turbojpeg-sys must publish where its headers are");
    cc::Build::new().include(jpeg).file("src/backend/jpeg.c").compile("byol_jpeg");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=BYOL_LIBTORCH_LIB={}", lib.display());
}

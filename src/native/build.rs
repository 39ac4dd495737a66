//! Build script: compiles the shims against libtorch and libjpeg-turbo, and writes libtorch's folder into the binary.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything that is compiled here, and this script; changes in Rust code do not recompile it.
const SOURCES: [&str; 16] = [
    "build.rs",
    "c10d/c10d.cpp",
    "c10d/gloo_stub",
    "c10d/nccl.cpp",
    "c10d/store.h",
    "cuda_stub",
    "guarded.h",
    "jpeg/huffman.c",
    "jpeg/huffman.h",
    "jpeg/jpeg.c",
    "torch/batch_norm.cpp",
    "torch/foreach.cpp",
    "torch/graph.cpp",
    "torch/observer.cpp",
    "torch/shim.cpp",
    "torch/stream.cpp",
];

/// Where PyPI's package puts it, beside CUDA's.
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
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display()); // for this crate's own tests
    println!("cargo:libtorch_lib={}", lib.display());
    for sources in SOURCES {
        println!("cargo:rerun-if-changed={sources}");
    }
    // A path that does not exist would mean a rebuild every time.
    let header = nvidia.join(NCCL_HEADER);
    println!("cargo:rerun-if-changed={}", if header.exists() { header } else { nvidia }.display());
}

/// Compiles the shims, side by side: they are a third of the build's time.
fn compile_shims(lib: &Path, include: &Path, nvidia: &Path) {
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo says where to"));
    let cuda = nvidia.join("cu13/include");
    let with_cuda = cuda.join("crt/host_config.h").exists() && cuda.join("cccl").exists();
    let with_nccl = with_cuda && nvidia.join(NCCL_HEADER).exists();
    let jpeg = std::env::var("DEP_TURBOJPEG_INCLUDE").expect("turbojpeg-sys must publish where its headers are");
    std::thread::scope(|scope| {
        for (source, there) in [("torch/graph.cpp", with_cuda), ("c10d/nccl.cpp", with_nccl)] {
            let out = &out;
            scope.spawn(move || cuda_library(Path::new(source), out, lib, include, there.then_some(nvidia)));
        }
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .warnings(false)
            .include(".")
            .include(include)
            .include(include.join("torch/csrc/api/include"))
            .include("c10d/gloo_stub") // c10d's declaration of its Gloo back end needs these names
            .define("USE_C10D_GLOO", None)
            .files(["shim", "batch_norm", "foreach", "observer", "stream"].map(|name| format!("torch/{name}.cpp")))
            .file("c10d/c10d.cpp")
            .compile("byol_shim");
    });
    cc::Build::new().include(jpeg).files(["huffman", "jpeg"].map(|name| format!("jpeg/{name}.c"))).compile("byol_jpeg");
    if !with_cuda {
        println!("cargo:warning=CUDA's headers are not in {}: building without CUDA graphs", cuda.display());
    }
}

/// CUDA graphs and NCCL need headers (from PyPI, beside torch) and libtorch_cuda: shared objects of their own, for the
/// binary to carry. Without the headers it is an empty file, and the binary says what to install when asked for it.
fn cuda_library(source: &Path, out: &Path, lib: &Path, include: &Path, nvidia: Option<&Path>) {
    let name = source.file_stem().expect("a file").display();
    let out = out.join(format!("libbyol_{name}.so"));
    let Some(nvidia) = nvidia else {
        std::fs::write(out, []).expect("OUT_DIR can be written");
        return;
    };
    let includes = [include.to_path_buf(), include.join("torch/csrc/api/include")];
    let nvidias = ["cu13/include", "cu13/include/cccl", "nccl/include"].map(|folder| nvidia.join(folder));
    let last = ["cuda_stub", "."].map(PathBuf::from); // headers that those include and a CPU install lacks
    let status = Command::new(cc::Build::new().cpp(true).get_compiler().path())
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-w", "-DUSE_CUDA", "-DUSE_C10D_NCCL", "-o"])
        .args([&out, source])
        .args(includes.iter().chain(&nvidias).chain(&last).map(|folder| format!("-I{}", folder.display())))
        .arg(format!("-L{}", lib.display()))
        .args(["-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"])
        .status();
    assert!(status.is_ok_and(|s| s.success()), "{} does not compile", source.display());
}

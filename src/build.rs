//! Build script: writes the run path of libtorch into the binary and turns the guide into documentation.
//! C++ code is compiled in src/native.

use std::fs;
use std::path::Path;

fn main() {
    let lib = std::env::var("DEP_BYOL_NATIVE_LIBTORCH_LIB").expect("src/native says where libtorch is");
    // First where scripts/wheel installs the binary: beside torch in site-packages.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../torch/lib:{lib}");
    guide();
    println!("cargo:rerun-if-changed=src/guide");
    println!("cargo:rerun-if-changed=src/build.rs");
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

//! `unsafe` is in src/native alone. (That every block there says why is clippy's `undocumented_unsafe_blocks`, which
//! Cargo.toml denies.)

use std::fs;
use std::path::Path;

use crate::rust_files;

#[test]
fn unsafe_code_is_in_the_native_crate_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    ["src", "tests"].iter().for_each(|folder| rust_files(&root.join(folder), &mut files));
    assert!(files.len() > 80, "{}", files.len());
    let (mut inside, mut outside) = (0, Vec::new());
    for path in files.iter().filter(|path| !path.parent().is_some_and(|folder| folder.ends_with("tests/house"))) {
        let text = fs::read_to_string(path).expect("text");
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        let words = code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
        let count = words.filter(|word| ["unsafe", "unsafe_code"].contains(word)).count();
        match path.starts_with(root.join("src/native")) {
            true => inside += count,
            false if count > 0 => outside.push(path),
            false => {}
        }
    }
    assert!(outside.is_empty() && inside > 20, "{outside:?}, {inside} inside");
}

//! The direction of imports: each module imports from those above its line in the map of `src/lib.rs`, and no two files
//! of a folder import each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::rust_files;

/// Names that follow `prefix` in code (not in comments): `crate::` gives modules, `super::` siblings.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let code = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let mut depth = 0;
        let list: String = match rest.starts_with('{') {
            // The first name of each entry of `{a::b, c::{d, e}}`.
            true => rest
                .chars()
                .take_while(|&c| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    depth > 0
                })
                .skip(1)
                .collect(),
            false => rest.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect(),
        };
        let mut depth = 0;
        for entry in list.split(|c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        }) {
            let name: String = entry.trim().chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect();
            names.insert(name);
        }
    }
    names
}

fn sources() -> (PathBuf, Vec<PathBuf>) {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    files.retain(|path| {
        let path = path.strip_prefix(&src).expect("below src");
        !path.starts_with("native") && !["lib.rs", "main.rs", "build.rs"].iter().any(|name| path == Path::new(name))
    });
    (src, files)
}

/// The module of `src/lib.rs` that a file belongs to.
fn module(src: &Path, path: &Path) -> String {
    let path = path.strip_prefix(src).expect("below src");
    path.components().next().expect("a name").as_os_str().to_string_lossy().trim_end_matches(".rs").to_string()
}

#[test]
fn imports_run_down_the_map_of_the_crate() {
    let (src, files) = sources();
    let root = fs::read_to_string(src.join("lib.rs")).expect("text");
    let map = root.split("//! ```").nth(1).expect("a map");
    let floors: Vec<&str> =
        map.lines().filter_map(|line| line.strip_prefix("//! ")?.split_whitespace().next()).collect();
    let declared: BTreeSet<&str> =
        root.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(floors.iter().copied().collect::<BTreeSet<_>>(), declared, "the map of src/lib.rs and its modules");
    let floor = |name: &str| floors.iter().position(|&at| at == name);
    let (mut up, mut seen) = (Vec::new(), 0);
    for path in &files {
        let own = module(&src, path);
        let code = fs::read_to_string(path).expect("text");
        for name in names_after(&code, "crate::").iter().filter(|name| **name != own) {
            let Some(other) = floor(name) else { continue }; // a constant of the crate's root
            seen += 1;
            if other > floor(&own).expect("it is in the map") {
                up.push(format!("{} imports {name}", path.display()));
            }
        }
    }
    assert!(up.is_empty() && seen > 150, "{up:#?}, {seen} imports");
}

#[test]
fn no_two_files_of_a_folder_import_each_other() {
    let (_, files) = sources();
    let mut imports: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
    for path in &files {
        let (folder, stem) = (path.parent().expect("a folder"), path.file_stem().expect("a name").to_string_lossy());
        // A mod.rs is its folder, beside the files of the folder above.
        let (folder, own) = match &*stem {
            "mod" => (folder.parent().expect("above"), folder.to_path_buf()),
            _ => (folder, path.with_extension("")),
        };
        let siblings = names_after(&fs::read_to_string(path).expect("text"), "super::");
        let there = |name: &String| folder.join(name).is_dir() || folder.join(format!("{name}.rs")).is_file();
        imports
            .entry(own)
            .or_default()
            .extend(siblings.iter().filter(|name| there(name)).map(|name| folder.join(name)));
    }
    let both = |a: &PathBuf, b: &PathBuf| a < b && imports.get(b).is_some_and(|of_b| of_b.contains(a));
    let pairs = imports.iter().flat_map(|(a, of_a)| of_a.iter().map(move |b| (a, b)));
    let circles: Vec<_> = pairs.filter(|(a, b)| both(a, b)).collect();
    assert!(circles.is_empty() && imports.len() > 80, "{circles:#?}");
}

#[test]
fn names_are_found_in_lists_and_not_in_comments() {
    let code = "use crate::a::{b, c};\nuse crate::{d::e, f::{g, h}, i};\n// crate::j\nlet x = crate::k(supercrate::l);";
    let found: Vec<String> = names_after(code, "crate::").into_iter().collect();
    assert_eq!(found, ["a", "d", "f", "i", "k"]);
}

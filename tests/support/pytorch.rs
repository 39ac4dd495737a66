//! Files as `torch.save` writes them, or would not.
#![allow(dead_code)] // each test file uses its part

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use zip::write::FileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A file by `scripts/reference/pytorch.py`.
pub fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pytorch").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; see scripts/reference", path.display()))
}

/// A zip archive as torch.save writes it.
pub fn archive(pickle: &[u8], storages: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(name, FileOptions::default().compression_method(method)).expect("a member");
        zip.write_all(bytes).expect("written");
    };
    add("archive/data.pkl", pickle);
    storages.iter().for_each(|(key, bytes)| add(&format!("archive/data/{key}"), bytes));
    zip.finish().expect("an archive").into_inner()
}

pub fn stored(pickle: &[u8]) -> Vec<u8> {
    archive(pickle, &[("0".into(), vec![0; 16])], CompressionMethod::Stored)
}

pub fn join(parts: &[&dyn AsRef<[u8]>]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.as_ref().to_vec()).collect()
}

pub fn text(text: &str) -> Vec<u8> {
    join(&[b"X", &(text.len() as u32).to_le_bytes(), &text])
}

/// The instructions for a tensor, with the class of its storage.
pub fn tensor(class: &str, key: &str, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let tuple = |values: &[i64]| format!("({}t", values.iter().map(|n| format!("I{n}\n")).collect::<String>());
    let class = format!("ctorch\n{class}\n");
    let storage = join(&[&text("storage"), &class, &text(key), &text("cpu"), b"K\x01tQ"]);
    let view = format!("I{offset}\n{}{}", tuple(shape), tuple(strides));
    join(&[b"ctorch._utils\n_rebuild_tensor_v2\n((", &storage, &view, b"\x89}tR"])
}

/// `{"w": ...}`
pub fn named(value: &[u8]) -> Vec<u8> {
    join(&[b"\x80\x02}", &text("w"), &value, b"s."])
}

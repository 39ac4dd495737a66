//! One webdataset shard: written under a temporary name, read back, and only then given its name.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use tar::{Archive, Builder, EntryType, Header};

use crate::files::Unfinished;

/// An image to pack.
pub struct Item {
    /// Its name in the data set, with folders and, maybe, an ending.
    pub name: String,
    /// The ending of its name in the shard, without a dot.
    pub ending: String,
    /// Encoded.
    pub bytes: Vec<u8>,
    /// Its class as text.
    pub class: Option<String>,
}

/// A shard being written.
pub struct Shard {
    builder: Builder<Writer>,
    keys: HashSet<String>,
    /// Name and checksum of every member.
    members: Vec<(String, [u8; 32])>,
    /// Bytes of the members so far.
    pub bytes: u64,
    /// Images so far.
    pub images: usize,
    path: PathBuf,
}

struct Writer(Unfinished);

impl std::io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shard {
    /// Starts the shard `path`.
    pub fn create(path: &Path) -> Result<Self> {
        crate::files::remove_stale(path);
        let builder = Builder::new(Writer(Unfinished::create(path)?));
        let (keys, members) = (HashSet::new(), Vec::new());
        Ok(Self { builder, keys, members, bytes: 0, images: 0, path: path.to_path_buf() })
    }

    /// Adds an image and its class.
    pub fn add(&mut self, item: &Item) -> Result<()> {
        let key = self.key(&item.name);
        self.member(format!("{key}.{}", item.ending), &item.bytes)?;
        if let Some(class) = &item.class {
            self.member(format!("{key}.cls"), class.as_bytes())?;
        }
        self.images += 1;
        Ok(())
    }

    /// The name without its ending, which is the key of the sample: dots would end it early, and two images need two.
    fn key(&mut self, name: &str) -> String {
        let (folder, file) = name.rsplit_once('/').map_or(("", name), |(folder, file)| (folder, file));
        let stem = file.rsplit_once('.').map_or(file, |(stem, _)| if stem.is_empty() { file } else { stem });
        let stem = stem.trim_start_matches('.').replace(['.', '\n', '\r', '\0'], "_");
        // Neither the top nor a folder above can be in an archive.
        let folders = folder.split('/').filter(|name| !matches!(*name, "" | "." | ".."));
        let folder = folders.collect::<Vec<_>>().join("/").replace("__", "_");
        let key = if folder.is_empty() { stem } else { format!("{folder}/{stem}") };
        let numbered = |number: usize| if number == 1 { key.clone() } else { format!("{key}_{number}") };
        let free = (1..).map(numbered).find(|key| !self.keys.contains(key)).unwrap_or_default();
        self.keys.insert(free.clone());
        free
    }

    fn member(&mut self, name: String, bytes: &[u8]) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(EntryType::Regular);
        self.builder
            .append_data(&mut header, &name, bytes)
            .with_context(|| format!("writing {}", self.path.display()))?;
        self.bytes += 1024 + bytes.len() as u64;
        self.members.push((name, Sha256::digest(bytes).into()));
        Ok(())
    }

    /// Ends the shard, reads it back and compares every member.
    /// # Errors
    /// The disk is full, or gives back other bytes than were written.
    pub fn finish(self) -> Result<()> {
        let Writer(file) = self.builder.into_inner().with_context(|| format!("writing {}", self.path.display()))?;
        file.finish()?;
        let verified = verify(&self.path, &self.members);
        if verified.is_err() {
            // Best effort: what could not be read back is not to be used.
            let _ = std::fs::remove_file(&self.path);
        }
        verified.with_context(|| format!("{}: the shard does not read back as it was written", self.path.display()))
    }
}

fn verify(path: &Path, members: &[(String, [u8; 32])]) -> Result<()> {
    let mut archive = Archive::new(File::open(path)?);
    let mut expected = members.iter();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let (name, checksum) = expected.next().context("found more members than were written")?;
        let found = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        ensure!(found == *name, "found member {found}, expected {name}");
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        entry.read_to_end(&mut bytes)?;
        ensure!(Sha256::digest(&bytes)[..] == checksum[..], "found other bytes in member {name}");
    }
    ensure!(expected.next().is_none(), "found fewer members than were written");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_names_and_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let mut shard = Shard::create(&folder.path().join("a.tar")).unwrap();
        let names = [
            "cat/1.jpg",
            "cat/1.png",
            "cat/b.v2.jpg",
            "a.parquet/17",
            "17",
            "x.d/.hidden.jpg",
            "__a__/1.jpg",
            "/a/../b/1.jpg",
        ];
        let keys = names.map(|name| shard.key(name));
        assert_eq!(keys, ["cat/1", "cat/1_2", "cat/b_v2", "a.parquet/17", "17", "x.d/hidden", "_a_/1", "a/b/1"]);
    }

    #[test]
    fn a_shard_that_changed_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let item = |name: &str| Item {
            name: name.into(),
            ending: "png".into(),
            bytes: name.repeat(300).into_bytes(),
            class: Some("cat".into()),
        };
        let mut shard = Shard::create(&path).unwrap();
        ["one", "two"].iter().for_each(|name| shard.add(&item(name)).unwrap());
        let members = shard.members.clone();
        shard.finish().unwrap();
        verify(&path, &members).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[600] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(verify(&path, &members).unwrap_err().to_string(), "found other bytes in member one.png");
        assert_eq!(verify(&path, &members[1..]).unwrap_err().to_string(), "found member one.png, expected one.cls");
    }
}

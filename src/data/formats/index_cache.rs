//! Keeps what reading a shard's headers told: beside the shard, as `NAME.tar.byol-index`, or where that cannot be
//! written in the user's cache folder, or nowhere. A file that is damaged, or whose shard has another size or time of
//! change, is as good as none.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::tar_index::{Index, Member, scan};
use crate::data::decode::caught;
use crate::files;

/// The last byte is the version of the layout.
const MAGIC: &[u8] = b"byol-index\x01";
const MEMBER_BYTES: usize = 14;
/// Three hundred million images.
const MAX_BYTES: u64 = 4 << 30;

/// The index of a shard, from the cache or by reading its headers.
pub(super) fn open(shard: &Path) -> Result<Index> {
    open_from(shard, &places(shard))
}

fn open_from(shard: &Path, places: &[PathBuf]) -> Result<Index> {
    let stamp = stamp(shard).context("cannot read its size")?;
    let cached = places.iter().find_map(|place| decode(&files::read_regular(place, MAX_BYTES).ok()?, &stamp));
    if let Some(index) = cached {
        return Ok(index);
    }
    let index = caught(|| scan(shard))?;
    let bytes = encode(&index, &stamp);
    if !places.iter().any(|place| write(place, &bytes).is_ok()) {
        log::debug!("the index of {} cannot be kept: it will be made again", shard.display());
    }
    Ok(index)
}

/// Where the index may be, best first.
fn places(shard: &Path) -> Vec<PathBuf> {
    let mut beside = shard.as_os_str().to_os_string();
    beside.push(".byol-index");
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    let name = shard.canonicalize().map(|path| files::hex(&Sha256::digest(path.as_os_str().as_bytes())[..16]));
    let elsewhere = cache.zip(name.ok()).map(|(cache, name)| cache.join("byol").join(name + ".byol-index"));
    [Some(beside.into()), elsewhere].into_iter().flatten().collect()
}

/// Size and time of change of the shard.
fn stamp(shard: &Path) -> std::io::Result<[u8; 24]> {
    let data = fs::metadata(shard)?;
    let mut stamp = [0; 24];
    for (to, value) in stamp.chunks_exact_mut(8).zip([data.size() as i64, data.mtime(), data.mtime_nsec()]) {
        to.copy_from_slice(&value.to_le_bytes());
    }
    Ok(stamp)
}

fn encode(index: &Index, stamp: &[u8; 24]) -> Vec<u8> {
    let mut bytes = [MAGIC, stamp, &index.digest].concat();
    bytes.extend((index.note.len() as u32).to_le_bytes());
    bytes.extend(index.note.as_bytes());
    for member in &index.members {
        bytes.extend(member.block.to_le_bytes());
        bytes.extend(member.size.to_le_bytes());
        bytes.extend(member.label.to_le_bytes());
        bytes.extend(member.headers.to_le_bytes());
    }
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// `None` unless the bytes are whole and about the shard as it is.
fn decode(bytes: &[u8], stamp: &[u8; 24]) -> Option<Index> {
    let (bytes, sum) = bytes.split_last_chunk()?;
    if crc32c::crc32c(bytes) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (digest, rest) = bytes.strip_prefix(MAGIC)?.strip_prefix(stamp)?.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (note, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let member = |bytes: &[u8]| {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes[at..].first_chunk()?));
        let headers = u16::from_le_bytes(*bytes[12..].first_chunk()?);
        Some(Member { block: word(0)?, size: word(4)?, label: word(8)? as i32, headers })
    };
    let members = rest.chunks(MEMBER_BYTES).map(|bytes| if bytes.len() == MEMBER_BYTES { member(bytes) } else { None });
    Some(Index {
        members: members.collect::<Option<_>>()?,
        digest: *digest,
        note: String::from_utf8(note.to_vec()).ok()?,
    })
}

/// Writes a file that is there whole or not at all, also when several runs do it at once. Not synced: a lost one is made again.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut unfinished = path.as_os_str().to_os_string();
    unfinished.push(format!(".{}.tmp", std::process::id()));
    let written = fs::write(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        fs::remove_file(&unfinished).ok();
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shard whose bytes are replaced by nonsense, with its size and time as before: only a cache can tell more.
    fn scrambled(folder: &Path) -> PathBuf {
        let shard = folder.join("a.tar");
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/webdataset/train-000000.tar");
        fs::copy(fixture, &shard).unwrap();
        shard
    }

    fn scramble(shard: &Path) {
        let time = fs::metadata(shard).unwrap().modified().unwrap();
        fs::write(shard, vec![7; fs::metadata(shard).unwrap().len() as usize]).unwrap();
        fs::File::options().write(true).open(shard).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn a_shard_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let shard = scrambled(folder.path());
        let place = [folder.path().join("deep/er/a.index")];
        let index = open_from(&shard, &place).unwrap();
        assert_eq!(index, scan(&shard).unwrap());
        scramble(&shard);
        assert!(scan(&shard).is_err());
        assert_eq!(open_from(&shard, &place).unwrap(), index);
        // No file is left but the index.
        assert_eq!(fs::read_dir(place[0].parent().unwrap()).unwrap().count(), 1);
        // Another time of change, and the shard counts.
        fs::File::options().write(true).open(&shard).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(open_from(&shard, &place).is_err());
    }

    #[test]
    fn where_the_first_place_cannot_be_written_the_second_serves() {
        let folder = tempfile::tempdir().unwrap();
        let shard = scrambled(folder.path());
        let taken = folder.path().join("taken");
        fs::create_dir_all(taken.join("full")).unwrap();
        let second = folder.path().join("second");
        let index = open_from(&shard, &[taken.clone(), second.clone()]).unwrap();
        assert!(second.is_file());
        fs::remove_file(&second).unwrap();
        assert_eq!(open_from(&shard, &[taken]).unwrap(), index);
    }

    #[test]
    fn damaged_indices_are_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let shard = scrambled(folder.path());
        let place = [folder.path().join("index")];
        let index = open_from(&shard, &place).unwrap();
        let whole = fs::read(&place[0]).unwrap();
        let stamp = stamp(&shard).unwrap();
        assert_eq!(decode(&whole, &stamp).as_ref(), Some(&index));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged, &stamp), None, "byte {at}");
            assert_eq!(decode(&whole[..at], &stamp), None, "cut to {at}");
        }
        for damaged in [&whole[..whole.len() / 2], b"", &[0; 5000]] {
            fs::write(&place[0], damaged).unwrap();
            assert_eq!(open_from(&shard, &place).unwrap(), index);
            assert_eq!(fs::read(&place[0]).unwrap(), whole);
        }
    }
}

//! Caches the index of a shard: next to it, as `NAME.tar.byol-index`, or if that cannot be written in the user's cache
//! folder, or not at all. A cache file that is damaged, of another version, or whose shard has changed is ignored and
//! replaced.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::tar_index::{Index, Member, scan};
use crate::data::KeyRule;
use crate::data::decode::caught;
use crate::files;

/// The last byte is the version of the layout.
const MAGIC: &[u8] = b"byol-index\x02";
const MEMBER_BYTES: usize = 16;
/// Maximum size of a cache file: three hundred million images.
const MAX_BYTES: u64 = 4 << 30;

/// Bytes at each end of a shard that are part of its stamp.
const HASHED: u64 = 64 << 10;

/// Identifies the state of a shard.
type Stamp = [u8; 81];

/// The index of a shard, from the cache or by reading its headers.
pub(super) fn open(shard: &Path, rule: KeyRule) -> Result<Index> {
    open_from(shard, rule, &places(shard))
}

fn open_from(shard: &Path, rule: KeyRule, places: &[PathBuf]) -> Result<Index> {
    let stamp = stamp(shard, rule)?;
    let cached = places.iter().find_map(|place| decode(&files::read_regular(place, MAX_BYTES).ok()?, &stamp));
    if let Some(index) = cached {
        return Ok(index);
    }
    let index = caught(|| scan(shard, rule))?;
    let bytes = encode(&index, &stamp)?;
    if !places.iter().any(|place| write(place, &bytes).is_ok()) {
        log::debug!("the index of {} cannot be cached: the next run reads all headers again", shard.display());
    }
    Ok(index)
}

/// Possible locations of the index, best first.
fn places(shard: &Path) -> Vec<PathBuf> {
    let mut beside = shard.as_os_str().to_os_string();
    beside.push(".byol-index");
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    let name = shard.canonicalize().map(|path| files::hex(&Sha256::digest(path.as_os_str().as_bytes())[..16]));
    let elsewhere = cache.zip(name.ok()).map(|(cache, name)| cache.join("byol").join(name + ".byol-index"));
    [Some(beside.into()), elsewhere].into_iter().flatten().collect()
}

/// Size, times and inode of a shard, its first and last bytes, and the key rule of its index. Size and modification
/// time alone may equal those of a shard that was replaced: tar pads sizes, and reproducible builds fix times.
fn stamp(shard: &Path, rule: KeyRule) -> Result<Stamp> {
    let file = files::open_regular(shard)?;
    let data = file.metadata().context("cannot read the file")?;
    let numbers =
        [data.size() as i64, data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec(), data.ino() as i64];
    let mut ends = vec![0; data.size().min(HASHED) as usize];
    let mut hasher = Sha256::new();
    for start in [0, data.size().saturating_sub(HASHED)] {
        file.read_exact_at(&mut ends, start).context("cannot read the file")?;
        hasher.update(&ends);
    }
    let mut stamp = [0; size_of::<Stamp>()];
    let parts = numbers.iter().flat_map(|number| number.to_le_bytes()).chain(hasher.finalize()).chain([rule as u8]);
    stamp.iter_mut().zip(parts).for_each(|(to, byte)| *to = byte);
    Ok(stamp)
}

fn encode(index: &Index, stamp: &Stamp) -> Result<Vec<u8>> {
    let mut bytes = [MAGIC, stamp, &index.digest].concat();
    let about = serde_json::to_vec(&(&index.classes, &index.report))?;
    bytes.extend((about.len() as u32).to_le_bytes());
    bytes.extend(about);
    for member in &index.members {
        bytes.extend(member.block.to_le_bytes());
        bytes.extend(member.size.to_le_bytes());
        bytes.extend(member.label.to_le_bytes());
        bytes.extend(member.headers.to_le_bytes());
        bytes.extend(member.check.to_le_bytes());
    }
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    Ok(bytes)
}

/// `None` unless the bytes are valid and match the shard's current state.
fn decode(bytes: &[u8], stamp: &Stamp) -> Option<Index> {
    let (bytes, sum) = bytes.split_last_chunk()?;
    if crc32c::crc32c(bytes) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (digest, rest) = bytes.strip_prefix(MAGIC)?.strip_prefix(stamp)?.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (about, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let member = |bytes: &[u8]| {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let half = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        Some(Member { block: word(0)?, size: word(4)?, label: word(8)? as i32, headers: half(12)?, check: half(14)? })
    };
    let members = rest.chunks(MEMBER_BYTES).map(member).collect::<Option<_>>()?;
    let (classes, report) = serde_json::from_slice(about).ok()?;
    Some(Index { members, digest: *digest, classes, report })
}

/// Writes a file atomically, also when several runs do it at once. Not synced: a lost file is written again.
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

    const RULE: KeyRule = KeyRule::FirstDot;

    fn fixture(folder: &Path) -> PathBuf {
        let shard = folder.join("a.tar");
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/webdataset/train-000000.tar");
        fs::copy(fixture, &shard).unwrap();
        shard
    }

    #[test]
    fn a_shard_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let shard = fixture(folder.path());
        let place = [folder.path().join("deep/er/a.index")];
        let mut index = open_from(&shard, RULE, &place).unwrap();
        assert_eq!(index, scan(&shard, RULE).unwrap());
        // No other file than the index is left.
        assert_eq!(fs::read_dir(place[0].parent().unwrap()).unwrap().count(), 1);
        // Only the cache can have this.
        index.members[0].label = 12345;
        fs::write(&place[0], encode(&index, &stamp(&shard, RULE).unwrap()).unwrap()).unwrap();
        assert_eq!(open_from(&shard, RULE, &place).unwrap(), index);
        // After another rule or another change time the shard is read again.
        assert_ne!(open_from(&shard, KeyRule::LastDot, &place).unwrap(), index);
        fs::write(&place[0], encode(&index, &stamp(&shard, RULE).unwrap()).unwrap()).unwrap();
        fs::File::options().write(true).open(&shard).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_ne!(open_from(&shard, RULE, &place).unwrap(), index);
    }

    /// With the same size and modification time, in place or as another file, and with a cache of the previous version.
    #[test]
    fn a_rebuilt_shard_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let shard = fixture(folder.path());
        let place = [folder.path().join("index")];
        let first = open_from(&shard, RULE, &place).unwrap();
        let time = fs::metadata(&shard).unwrap().modified().unwrap();
        let mut bytes = fs::read(&shard).unwrap();
        let label = bytes.windows(10).position(|part| part == b"000000.cls").unwrap() + 512;
        assert_eq!(bytes[label], b'7');
        for (in_place, digit) in [(true, b'8'), (false, b'9')] {
            bytes[label] = digit;
            if !in_place {
                fs::remove_file(&shard).unwrap();
            }
            fs::write(&shard, &bytes).unwrap();
            fs::File::options().write(true).open(&shard).unwrap().set_modified(time).unwrap();
            let index = open_from(&shard, RULE, &place).unwrap();
            assert_eq!((first.members[0].label, index.members[0].label), (7, i32::from(digit - b'0')));
        }
        let index = open_from(&shard, RULE, &place).unwrap();
        let mut old = fs::read(&place[0]).unwrap();
        old[MAGIC.len() - 1] = 1;
        fs::write(&place[0], &old).unwrap();
        assert_eq!(open_from(&shard, RULE, &place).unwrap(), index);
        assert_ne!(fs::read(&place[0]).unwrap(), old);
    }

    #[test]
    fn the_second_location_is_used_if_the_first_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let shard = fixture(folder.path());
        let taken = folder.path().join("taken");
        fs::create_dir_all(taken.join("full")).unwrap();
        let second = folder.path().join("second");
        let index = open_from(&shard, RULE, &[taken.clone(), second.clone()]).unwrap();
        assert!(second.is_file());
        fs::remove_file(&second).unwrap();
        assert_eq!(open_from(&shard, RULE, &[taken]).unwrap(), index);
    }

    #[test]
    fn damaged_indices_are_rebuilt() {
        let folder = tempfile::tempdir().unwrap();
        let shard = fixture(folder.path());
        let place = [folder.path().join("index")];
        let index = open_from(&shard, RULE, &place).unwrap();
        let whole = fs::read(&place[0]).unwrap();
        let stamp = stamp(&shard, RULE).unwrap();
        assert_eq!(decode(&whole, &stamp).as_ref(), Some(&index));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged, &stamp), None, "byte {at}");
            assert_eq!(decode(&whole[..at], &stamp), None, "cut to {at}");
        }
        for damaged in [&whole[..whole.len() / 2], b"", &[0; 5000]] {
            fs::write(&place[0], damaged).unwrap();
            assert_eq!(open_from(&shard, RULE, &place).unwrap(), index);
            assert_eq!(fs::read(&place[0]).unwrap(), whole);
        }
    }
}

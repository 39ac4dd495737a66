//! TensorBoard event files with scalars, hyperparameters and pictures: `Event` and `Summary` messages of
//! tensorflow/core/util/event.proto and framework/summary.proto (only the fields used here), framed as TFRecords with
//! masked CRC-32C.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use prost::Message;
use serde_json::Value as Json;

use super::append::AppendFile;
use super::hparams::{Metadata, NullTensor};
use super::{Metrics, Sink};

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    // Explicit presence: a scalar that is 0 must still be written.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<NullTensor>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// Number of channels.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SESSION_START: i32 = 1;

const HPARAMS_TAG: &str = "_hparams_/session_start_info";

/// Prefix of the names of event files.
const PREFIX: &str = "events.out.tfevents.";

/// Writes one event file.
pub struct EventWriter {
    file: AppendFile,
    /// Events since the last flush, framed.
    buffer: Vec<u8>,
}

impl EventWriter {
    /// The event file of a run with these settings; `resume_from_step` as in [`Self::open`].
    pub fn of_run(dir: &Path, resume_from_step: Option<u64>, settings: &[(String, Json)]) -> Result<Self> {
        let mut writer = Self::open(dir, resume_from_step)?;
        writer.hparams(settings, now());
        Ok(writer)
    }

    /// Creates `dir` and in it a new event file. With `resume_from_step` TensorBoard drops events of earlier
    /// files for later steps.
    pub fn open(dir: &Path, resume_from_step: Option<u64>) -> Result<Self> {
        let mut writer = Self::create(dir, now())?;
        if let Some(step) = resume_from_step {
            writer.restart_at(step + 1);
        }
        Ok(writer)
    }

    /// A new `events.out.tfevents.<seconds>.<host>.<pid>`. TensorBoard reads the files of a directory in the order of
    /// their names, so this one gets a later time than all existing ones, even if the clock was set back.
    fn create(dir: &Path, now: f64) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let newest = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| seconds(&entry.file_name()));
        let mut seconds = newest.max().map_or(0, |newest| newest.saturating_add(1)).max(now as u64);
        let (path, file) = loop {
            let name = format!("{PREFIX}{seconds:010}.{}.{}", host(), std::process::id());
            let path = dir.join(&name);
            match File::options().create_new(true).append(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => seconds += 1,
                file => break (path.clone(), file.with_context(|| format!("creating {}", path.display()))?),
            }
        };
        let version = Some("brain.Event:2".to_string());
        let header = frame(&Event { wall_time: now, file_version: version, ..Event::default() }.encode_to_vec());
        // The header is written with the first record.
        Ok(Self { file: AppendFile::new(&path, file, header)?, buffer: Vec::new() })
    }

    /// Makes TensorBoard drop events of earlier files from `step` on: a resumed run repeats them.
    fn restart_at(&mut self, step: u64) {
        let session_log = Some(SessionLog { status: SESSION_START });
        self.add(&Event { wall_time: now(), step: step as i64, session_log, ..Event::default() });
    }

    /// Adds one value; `wall_time` is in seconds since 1970.
    fn scalar(&mut self, tag: &str, step: u64, value: f64, wall_time: f64) {
        let value = Value { tag: tag.to_string(), simple_value: Some(value as f32), ..Value::default() };
        self.value(value, step, wall_time);
    }

    /// Adds an RGB picture, `png` encoded, of this width and height.
    pub fn picture(&mut self, tag: &str, step: u64, (width, height): (u32, u32), png: Vec<u8>) {
        let (width, height, colorspace) = (width as i32, height as i32, 3);
        let image = Some(Image { width, height, colorspace, encoded_image_string: png });
        self.value(Value { tag: tag.to_string(), image, ..Value::default() }, step, now());
    }

    /// Adds the settings of the run, for TensorBoard's comparison of runs.
    fn hparams(&mut self, settings: &[(String, Json)], wall_time: f64) {
        let (tensor, metadata) = (Some(NullTensor::new()), Some(Metadata::new(settings, wall_time)));
        self.value(Value { tag: HPARAMS_TAG.to_string(), tensor, metadata, ..Value::default() }, 0, wall_time);
    }

    fn value(&mut self, value: Value, step: u64, wall_time: f64) {
        let summary = Some(Summary { value: vec![value] });
        self.add(&Event { wall_time, step: step as i64, summary, ..Event::default() });
    }

    fn add(&mut self, event: &Event) {
        self.buffer.extend(frame(&event.encode_to_vec()));
    }
}

impl Sink for EventWriter {
    fn record(&mut self, record: &Metrics) -> Result<()> {
        let wall_time = now();
        record.scalars().iter().for_each(|(tag, value)| self.scalar(tag, record.step(), *value, wall_time));
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        match std::mem::take(&mut self.buffer) {
            events if events.is_empty() => self.file.flush(),
            events => self.file.append(events),
        }
    }
}

/// The seconds in the name of an event file.
fn seconds(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().replace('/', "_");
    if name.is_empty() { "localhost".to_string() } else { name }
}

/// A TFRecord: length (u64), its checksum, data, its checksum; all little endian.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length), data, &checksum(data)].concat()
}

/// CRC-32C, masked as TFRecord does so that a checksum of data with checksums in it stays strong.
fn checksum(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(bytes[8..12], checksum(&bytes[..8]));
            let data = &bytes[12..12 + length];
            assert_eq!(bytes[12 + length..16 + length], checksum(data));
            events.push(Event::decode(data).unwrap());
            bytes = &bytes[16 + length..];
        }
        events
    }

    /// ```python
    /// value = Summary.Value(tag="train/loss", simple_value=2.5)
    /// RecordWriter(f).write(Event(wall_time=1.5, step=300, summary=Summary(value=[value])).SerializeToString())
    /// ```
    /// with the messages and the writer of the `tensorboard` package.
    #[test]
    fn a_record_has_the_bytes_of_the_reference_writer() {
        let expected = "2100000000000000017becf609000000000000f83f10ac022a130a110a0a\
                        747261696e2f6c6f73731500002040b4ca3a3b";
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::open(dir.path(), None).unwrap();
        writer.restart_at(300);
        writer.flush().unwrap();
        let header = fs::metadata(writer.file.path()).unwrap().len() as usize;
        writer.scalar("train/loss", 300, 2.5, 1.5);
        writer.flush().unwrap();
        let bytes = fs::read(writer.file.path()).unwrap();
        assert_eq!(crate::files::hex(&bytes[header..]), expected);
    }

    /// As in [`a_record_has_the_bytes_of_the_reference_writer`], the events that `tensorboard` makes with
    /// `metadata.create_summary_metadata(HParamsPluginData(session_start_info=SessionStartInfo(...)))`,
    /// `metadata.NULL_TENSOR` and `Summary.Image(height=2, width=3, colorspace=3, encoded_image_string=b"png")`.
    #[test]
    fn settings_and_pictures_have_the_bytes_of_the_reference() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::open(dir.path(), None).unwrap();
        writer.hparams(&[("optimizer.base_lr".into(), json!(0.5))], 1.5);
        writer.picture("views", 7, (3, 2), b"png".to_vec());
        writer.flush().unwrap();
        let mut events = parse(&fs::read(writer.file.path()).unwrap());
        events[2].wall_time = 1.5;
        let hex = |event: &Event| crate::files::hex(&event.encode_to_vec());
        let settings = "09000000000000f83f2a620a600a1c5f68706172616d735f2f73657373696f6e5f73746172745f696e666f42060801120212004a38\
                        0a360a0768706172616d73122b1a290a1e0a116f7074696d697a65722e626173655f6c72120911000000000000e03f2900000000\
                        0000f83f";
        let picture = "09000000000000f83f10072a160a140a057669657773220b0802100318032203706e67";
        assert_eq!((hex(&events[1]).as_str(), hex(&events[2]).as_str()), (settings, picture));
    }

    #[test]
    fn a_file_reads_back_with_its_version_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::open(&dir.path().join("events"), Some(5)).unwrap();
        writer.scalar("loss", 7, 0.0, 12.25);
        writer.flush().unwrap();
        let events = parse(&fs::read(writer.file.path()).unwrap());
        assert_eq!(events.len(), 3);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!(events[1].step, 6);
        assert_eq!(events[1].session_log, Some(SessionLog { status: SESSION_START }));
        let value = Value { tag: "loss".into(), simple_value: Some(0.0), ..Value::default() };
        assert_eq!((events[2].step, events[2].wall_time), (7, 12.25));
        assert_eq!(events[2].summary, Some(Summary { value: vec![value] }));
    }

    #[test]
    fn writers_of_one_second_do_not_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let first = EventWriter::open(dir.path(), None).unwrap();
        let second = EventWriter::open(dir.path(), None).unwrap();
        assert_ne!(first.file.path(), second.file.path());
        let name = first.file.path().file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("events.out.tfevents.") && name.contains(&std::process::id().to_string()), "{name}");
    }

    #[test]
    fn a_file_sorts_last_even_if_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        for other in ["events.out.tfevents.1700000500.zebra.9.v2", "events.out.tfevents.x", "notes.txt"] {
            fs::write(dir.path().join(other), "").unwrap();
        }
        let name = |now| EventWriter::create(dir.path(), now).unwrap().file.path().file_name().unwrap().to_owned();
        let names: Vec<_> = [1.7e9, 1.6e9, 1.8e9].map(|now| name(now).into_string().unwrap()).into();
        let seconds: Vec<_> = names.iter().map(|name| &name[PREFIX.len()..][..10]).collect();
        assert_eq!(seconds, ["1700000501", "1700000502", "1800000000"]);
    }
}

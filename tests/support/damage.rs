//! Damaging files in ways that find the mistakes of their readers, and counting what came of it.
#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// How long to go on: BYOL_FUZZ_INPUTS inputs, or BYOL_FUZZ_SECONDS, or as long as a test may take.
pub struct Budget {
    inputs: Option<u64>,
    time: Duration,
    started: Instant,
    /// BYOL_FUZZ_FIRST: number of the first input.
    pub first: u64,
}

impl Budget {
    pub fn new(seconds: u64) -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
        let time = Duration::from_secs(number("BYOL_FUZZ_SECONDS").unwrap_or(seconds));
        let (inputs, first) = (number("BYOL_FUZZ_INPUTS"), number("BYOL_FUZZ_FIRST").unwrap_or(0));
        Self { inputs, time, started: Instant::now(), first }
    }

    pub fn goes_on(&self, tried: u64) -> bool {
        self.inputs.map_or_else(|| self.started.elapsed() < self.time, |inputs| tried < inputs)
    }
}

/// Inputs by kind, and how many of them could be read.
#[derive(Default)]
pub struct Tally(BTreeMap<String, [u64; 2]>);

impl Tally {
    pub fn add(&mut self, kind: &str, read: bool) {
        if !self.0.contains_key(kind) {
            self.0.insert(kind.to_string(), [0; 2]);
        }
        let counts = self.0.get_mut(kind).expect("inserted");
        counts[0] += 1;
        counts[1] += u64::from(read);
    }

    /// The fewest inputs of a kind.
    pub fn fewest(&self) -> u64 {
        self.0.values().map(|counts| counts[0]).min().unwrap_or(0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().try_for_each(|(kind, [all, read])| writeln!(f, "{kind:>10} {all:>9} inputs, {read:>9} read"))
    }
}

/// A file of the corpus, damaged in one to three ways; `draw(n)` gives a number below n.
pub fn damaged(corpus: &[(String, Vec<u8>)], chosen: usize, draw: &mut dyn FnMut(usize) -> usize) -> Vec<u8> {
    let mut bytes = corpus[chosen].1.clone();
    for _ in 0..1 + draw(3) {
        if bytes.is_empty() {
            break;
        }
        // Headers are where most decisions are made.
        let near = [bytes.len(), bytes.len().min(64)][draw(4) / 3];
        let at = draw(near);
        match draw(8) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << draw(8),
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, 0xd9][draw(6)],
            3 => {
                let value = [0, 1, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff_u32][draw(7)];
                let value = if draw(2) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
                let length = (bytes.len() - at).min(2 + 2 * draw(2));
                bytes[at..at + length].copy_from_slice(&value[4 - length.max(2)..][..length]);
            }
            4 => {
                let other = &corpus[draw(corpus.len())].1;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[draw(other.len())..]);
            }
            5 => drop(bytes.drain(at..at + draw((bytes.len() - at).min(40)))),
            6 => {
                let part = bytes[at..at + draw((bytes.len() - at).min(200))].to_vec();
                for _ in 0..1 + draw(20) {
                    let to = draw(bytes.len());
                    bytes.splice(to..to, part.iter().copied());
                }
            }
            _ => (0..draw(16)).for_each(|offset| {
                if let Some(byte) = bytes.get_mut(at + offset) {
                    *byte = draw(256) as u8;
                }
            }),
        }
    }
    bytes
}

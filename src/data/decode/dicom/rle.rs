//! DICOM's run-length encoding: a segment for each byte of the samples of each channel, each packed as in PackBits.

use anyhow::{Context, Result, ensure};

/// Unpacks a frame of `pixels` pixels with `channels` samples of `bytes` bytes: one channel after the other, the lowest
/// byte of a sample first.
pub(super) fn unpack(frame: &[u8], pixels: usize, channels: usize, bytes: usize) -> Result<Vec<u8>> {
    let damaged = "the RLE pixels of the DICOM file are damaged or truncated";
    let number = |at: usize| frame.get(at * 4..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let segments = number(0).context(damaged)?;
    ensure!(segments == channels * bytes, "found {segments} RLE segments, expected {}", channels * bytes);
    let mut out = vec![0; pixels * channels * bytes];
    for segment in 0..segments {
        let start = number(1 + segment).context(damaged)?;
        let end = if segment + 1 < segments { number(2 + segment).context(damaged)? } else { frame.len() };
        let packed = frame.get(start..end).context(damaged)?;
        // The highest byte comes first.
        let (channel, byte) = (segment / bytes, bytes - 1 - segment % bytes);
        let first = channel * pixels * bytes + byte;
        let found = fill(packed, out[first..].iter_mut().step_by(bytes).take(pixels));
        ensure!(found == pixels, damaged);
    }
    Ok(out)
}

/// Fills `out`, returns how many were there for it.
fn fill<'a>(mut packed: &[u8], mut out: impl Iterator<Item = &'a mut u8>) -> usize {
    let mut count = 0;
    let mut put = |byte: u8| out.next().map(|target| *target = byte).inspect(|()| count += 1);
    while let Some((&control, rest)) = packed.split_first() {
        packed = rest;
        let length = match control {
            0..=127 => {
                let length = (control as usize + 1).min(packed.len());
                if packed[..length].iter().any(|&byte| put(byte).is_none()) {
                    break;
                }
                length
            }
            128 => 0,
            _ => {
                let Some(&byte) = packed.first() else { break };
                if (0..257 - control as usize).any(|_| put(byte).is_none()) {
                    break;
                }
                1
            }
        };
        packed = &packed[length..];
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_runs_are_unpacked_and_short_ones_are_errors() {
        let mut frame = [2u32, 64, 67].map(u32::to_le_bytes).concat();
        frame.resize(64, 0);
        frame.extend([253, 7, 128, 1, 1, 2, 255, 3]);
        assert_eq!(unpack(&frame, 4, 1, 2).expect("whole"), [1, 7, 2, 7, 3, 7, 3, 7]);
        assert!(unpack(&frame[..frame.len() - 2], 4, 1, 2).is_err());
        assert!(unpack(&frame, 4, 3, 1).is_err());
        (0..frame.len()).for_each(|end| _ = unpack(&frame[..end], 4, 1, 2));
    }
}

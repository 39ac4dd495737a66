//! Damaged and hostile files of weights, read as `model.init` and `--checkpoint` read them: no panic may escape, memory
//! follows the size of the file, and every error is one line. BYOL_FUZZ_INPUTS and the like are those of images.rs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use byol::logging::one_line;
use byol::model::{Arch, EncoderConfig, Stem};
use byol::pytorch::tensors;
use byol::rng::{Purpose, Stream};
use byol::weights::{Choice, WeightFile, find};
use native::peak_bytes;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use zip::CompressionMethod;

use crate::alone;
use crate::support::damage::{Budget, Tally, damaged};
use crate::support::pytorch::*;

/// Objects of a pickle take 72 bytes, tensors and their names are copied at most twice.
const MAX_PEAK: u64 = 24 << 20;

/// Names of a small ResNet in three spellings; only the first convolutions have their shape.
fn encoder_names() -> Vec<(String, Vec<usize>)> {
    let config = EncoderConfig { arch: Arch::Resnet18, width: 0.25, stem: Stem::Cifar, ..EncoderConfig::default() };
    let tensors: Vec<_> = config.layers().iter().flat_map(|layer| layer.tensors()).collect();
    let shape = |name: &str| if name == "conv1.weight" { vec![16, 3, 3, 3] } else { vec![1] };
    let mut names = Vec::new();
    for (name, _) in &tensors {
        names.push((format!("a.{name}"), shape(name)));
        let first = usize::from(!name.starts_with("layer"));
        let list = name.replacen("conv1.", "0.", first).replacen("bn1.", "1.", first);
        let list = (1..5).fold(list, |name, stage| name.replace(&format!("layer{stage}."), &format!("{}.", stage + 3)));
        names.push((format!("b.{list}"), shape(name)));
    }
    names
}

/// Every kind of file and its whole examples.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let zipped = ["state_dict.pth", "protocol4.pth", "trainer.ckpt", "legacy.pth", "module.pt"];
    let mut corpus: Vec<_> = zipped.map(|name| ("file".to_string(), fixture(name))).to_vec();
    // The archive's own damage hides that of the pickle: these are damaged in a sound archive.
    let pickle = |bytes: &[u8]| {
        let mut zip = zip::ZipArchive::new(Cursor::new(bytes.to_vec())).ok()?;
        let name = zip.file_names().find(|name| name.ends_with("/data.pkl"))?.to_string();
        let mut pickle = Vec::new();
        std::io::copy(&mut zip.by_name(&name).ok()?, &mut pickle).ok()?;
        Some(pickle)
    };
    let pickles: Vec<_> = corpus.iter().filter_map(|(_, bytes)| Some(("pickle".to_string(), pickle(bytes)?))).collect();
    corpus.extend(pickles);
    let names = encoder_names();
    let items: Vec<u8> = names
        .iter()
        .flat_map(|(name, shape)| {
            let (shape, strides): (Vec<i64>, Vec<i64>) = shape.iter().map(|&length| (length as i64, 0)).unzip();
            join(&[&text(name), &tensor("FloatStorage", "0", 0, &shape, &strides)])
        })
        .collect();
    corpus.push(("names".into(), join(&[b"\x80\x02}", &text("model"), b"}(", &items, b"us."])));
    let values = vec![0; 4 * 16 * 27];
    let views = names.iter().map(|(name, shape)| {
        let bytes = 4 * shape.iter().product::<usize>();
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), &values[..bytes]).expect("a view"))
    });
    corpus.push(("safetensors".into(), safetensors::serialize(views, None).expect("serialized")));
    corpus
}

/// Reads a file as the program does, choosing an encoder in both ways; whether it could be read.
fn read(path: &Path) -> Result<bool, String> {
    let line = |error: anyhow::Error| {
        let text = one_line(&format!("{error:#}"));
        assert!(!text.is_empty() && !text.contains(['\n', '\r']) && text.len() < 4000, "{text:?}");
        text
    };
    let file = WeightFile::read(path).map_err(line)?;
    assert_eq!(file.sha256().len(), 64);
    let tensors = file.tensors().map_err(line)?;
    for prefix in [None, Some("b")] {
        match find(&tensors, &Choice { prefix, option: "--prefix", network: "online", known: None }) {
            Ok(found) => assert!(found.count() > 0 && found.ignored(&[]).is_none_or(|text| text.len() < 100_000)),
            Err(error) => drop(line(error)),
        }
    }
    drop(file.metadata().map_err(line)?);
    Ok(true)
}

#[test]
fn any_file_of_weights_ends_in_tensors_or_in_one_line() {
    let _alone = alone();
    let corpus = corpus();
    let kinds = ["file", "pickle", "names", "safetensors"];
    let storages: Vec<_> = (0..20).map(|key| (key.to_string(), vec![0; 480])).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("weights");
    let (budget, mut tally, mut tried, mut largest) = (Budget::new(4), Tally::default(), 0, (0, 0));
    while budget.goes_on(tried) {
        let number = budget.first + tried;
        let mut rng = Stream::new(5, Purpose::Synthetic, 0, number, 0);
        let mut draw = |below: usize| rng.below(below.max(1));
        let kind = kinds[number as usize % kinds.len()];
        let of_kind: Vec<usize> = (0..corpus.len()).filter(|&at| corpus[at].0 == kind).collect();
        let mut bytes = damaged(&corpus, of_kind[draw(of_kind.len())], &mut draw);
        if matches!(kind, "pickle" | "names") {
            bytes = archive(&bytes, &storages, CompressionMethod::Stored);
        }
        fs::write(&path, bytes).expect("written");
        let run = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&path)));
        let (ended, peak) = peak_bytes(run);
        let ended = ended.unwrap_or_else(|_| panic!("input {number} ({kind}) panics"));
        largest = largest.max((peak, number));
        assert!(peak < MAX_PEAK, "input {number} ({kind}) takes {peak} bytes");
        tally.add(kind, ended.is_ok());
        tried += 1;
    }
    println!("{tally}{tried} inputs, largest {largest:?}");
    assert!(tally.fewest() * 6 > tried, "{tally}");
}

#[test]
fn both_encoders_of_the_corpus_are_found() {
    let names = encoder_names();
    let values = vec![0; 4 * 16 * 27];
    let view = |shape: &Vec<usize>| byol::pytorch::Stored {
        dtype: Dtype::F32,
        shape: shape.clone(),
        data: values[..4 * shape.iter().product::<usize>()].into(),
    };
    let mut tensors: BTreeMap<_, _> = names.iter().map(|(name, shape)| (name.clone(), view(shape))).collect();
    let choice = Choice { prefix: None, option: "--prefix", network: "online", known: None };
    assert_eq!(find(&tensors, &choice).expect("equal ones are one").prefix, "a.");
    let first = tensors.get_mut("b.0.weight").expect("a first convolution");
    first.data.to_mut()[0] = 1;
    let error = find(&tensors, &choice).expect_err("two").to_string();
    let stem = "(resnet18 of width 0.25 with stem cifar)";
    assert_eq!(error, format!("found 2 encoders, expected one; choose with --prefix a {stem}, --prefix b {stem}"));
}

/// Small files that say, or become, much.
#[test]
fn what_a_file_says_costs_no_more_than_it_holds() {
    let _alone = alone();
    let refused = |bytes: &[u8], expected: &str| {
        let (read, peak) = peak_bytes(|| tensors(bytes).map(drop));
        let error = format!("{:#}", read.expect_err("refused"));
        assert!(error.contains(expected) && !error.contains('\n'), "{expected:?} in {error}");
        peak
    };
    for (instruction, expected) in [(b'N', "values at once"), (b'2', "values at once"), (b'(', "values at once")] {
        let pickle = join(&[b"N", &vec![instruction; 20 << 20]]);
        assert!(refused(&stored(&pickle), expected) < 128 << 20);
    }
    assert!(refused(&stored(&join(&[b"N", &vec![0x94; 20 << 20]])), "values at once") < 512 << 20);
    assert!(refused(&stored(&b")0".repeat(10 << 20)), "more than 4000000 objects") < 1 << 30);
    let long = stored(&vec![b'0'; (32 << 20) + 1]);
    assert!(refused(&long, "found 33554433 bytes, expected at most 33554432") < 1 << 20);
    let bomb = archive(&vec![b'N'; 200 << 20], &[], CompressionMethod::Deflated);
    assert!(bomb.len() < 1 << 20);
    assert!(refused(&bomb, "data.pkl is compressed, which torch.save never does") < 1 << 20);
    // One storage of a megabyte, of which 100 tensors want a copy each.
    let transposed = tensor("FloatStorage", "0", 0, &[512, 512], &[1, 512]);
    let items: Vec<u8> = (0..100).flat_map(|at| join(&[&text(&format!("w{at}")), &transposed])).collect();
    let pickle = join(&[b"\x80\x02}(", &items, b"u."]);
    let file = archive(&pickle, &[("0".into(), vec![0; 1 << 20])], CompressionMethod::Stored);
    assert!(refused(&file, "shape [512, 512] is beyond what the file holds") < 4 << 20);
    // As many as it likes without a copy: a network in another one is in a state_dict twice.
    let items: Vec<u8> = (0..100)
        .flat_map(|at| join(&[&text(&format!("w{at}")), &tensor("FloatStorage", "0", 0, &[512, 512], &[512, 1])]))
        .collect();
    let file =
        archive(&join(&[b"\x80\x02}(", &items, b"u."]), &[("0".into(), vec![0; 1 << 20])], CompressionMethod::Stored);
    let (read, peak) = peak_bytes(|| tensors(&file).map(|tensors| tensors.len()).expect("read"));
    assert!(read == 100 && peak < 1 << 20, "{peak}");
}

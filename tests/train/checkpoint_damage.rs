//! Checkpoints that are damaged, foreign or hostile, through the path that `--resume auto` takes.
//! BYOL_SOAK_BYTES says at how many places of each file (`scripts/soak`); BYOL_SEED repeats a run of this test.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::support::CPU;
use crate::support::run::{Random, from_environment};
use byol::byol::Byol;
use byol::checkpoint::{self, Manifest};
use byol::model::{Arch, ModelConfig, Network, Stem};
use byol::optim::{Algorithm, OptimizerConfig};

fn byol(arch: Arch, projection_dim: i64, name: Algorithm, seed: u64) -> Byol {
    tch::set_num_threads(1);
    let config = ModelConfig {
        arch,
        width: 0.25,
        stem: Stem::Cifar,
        projector_hidden: 16,
        projection_dim,
        predictor_hidden: 16,
        ..ModelConfig::default()
    };
    let online = Network::online(&config, CPU, seed);
    let target = Network::target_of(&online, &config, CPU);
    Byol::new(online, target, &OptimizerConfig { name, ..OptimizerConfig::default() })
}

fn small(seed: u64) -> Byol {
    byol(Arch::Resnet18, 8, Algorithm::Sgd, seed)
}

/// A run's folder with whole checkpoints of these steps.
fn saved(steps: &[u64]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    for &step in steps {
        let manifest = Manifest { step, ..Manifest::new(serde_json::json!({})) };
        checkpoint::save(root.path(), &small(step), manifest, Vec::new(), 9).expect("saved");
    }
    root
}

/// What `--resume auto` loads: the step, or why nothing.
fn newest(root: &Path, byol: &Byol) -> Result<u64, String> {
    match checkpoint::load_newest(root, byol, |_| Ok(())) {
        Ok(found) => Ok(found.expect("there are checkpoints").1.step),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// The first weights, by which a checkpoint of [`saved`] is known.
fn first_weights(byol: &Byol) -> Vec<f32> {
    Vec::try_from(byol.online.params.parameters[0].tensor.detach().contiguous().flatten(0, -1)).expect("weights")
}

#[test]
fn whatever_byte_is_flipped_or_cut_off_the_one_before_is_used() {
    let root = saved(&[1, 2]);
    let (loaded, first) = (small(9), first_weights(&small(1)));
    assert_eq!(newest(root.path(), &loaded), Ok(2));
    let places = from_environment("BYOL_SOAK_BYTES", 40);
    let (mut random, start, mut tried) = (Random::new(), Instant::now(), 0);
    for name in ["model.safetensors", "optimizer.safetensors", "manifest.json", "SHA256SUMS"] {
        let path = checkpoint::path_of(root.path(), 2).join(name);
        let good = fs::read(&path).expect("read");
        // Both ends, where the headers are, and anywhere.
        let mut at: Vec<usize> = (0..8.min(places as usize)).flat_map(|i| [i, good.len() - 1 - i]).collect();
        at.extend((0..places).map(|_| (random.next() * good.len() as f64) as usize));
        for at in at {
            let mut flipped = good.clone();
            flipped[at] ^= 1 << (random.next() * 8.0) as u8;
            // The last newline of the sums says nothing.
            let cut = (name != "SHA256SUMS" || at + 1 < good.len()).then(|| good[..at].to_vec());
            for bytes in [Some(flipped), cut].into_iter().flatten() {
                fs::write(&path, bytes).expect("written");
                assert_eq!(newest(root.path(), &loaded), Ok(1), "{name} at {at}: {random:?}");
                assert!(first_weights(&loaded) == first, "{name} at {at}: {random:?}");
                tried += 1;
            }
        }
        fs::write(&path, &good).expect("written");
    }
    assert_eq!(newest(root.path(), &loaded), Ok(2));
    println!("{tried} damaged checkpoints in {:.1} s, none was loaded", start.elapsed().as_secs_f64());
}

/// Replaces a file of a checkpoint and its sum: as someone does who wants it to be believed.
fn forge(folder: &Path, name: &str, bytes: &[u8]) {
    fs::write(folder.join(name), bytes).expect("written");
    let sums = fs::read_to_string(folder.join("SHA256SUMS")).expect("read");
    let line = |line: &str| match line.ends_with(name) {
        true => format!("{}  {name}\n", checkpoint::sha256(bytes)),
        false => format!("{line}\n"),
    };
    fs::write(folder.join("SHA256SUMS"), sums.lines().map(line).collect::<String>()).expect("written");
}

fn refused(folder: &Path, byol: &Byol) -> String {
    let before = first_weights(byol);
    let error = format!("{:#}", checkpoint::load(folder, byol).expect_err("refused"));
    assert!(first_weights(byol) == before && !error.contains('\n'), "{error}");
    error
}

#[test]
fn another_version_or_network_is_refused_with_the_differences() {
    let root = saved(&[1]);
    let folder = checkpoint::path_of(root.path(), 1);
    let error = refused(&folder, &byol(Arch::Resnet34, 8, Algorithm::Sgd, 0));
    assert!(
        error.contains("model.safetensors: ") && error.contains("online.encoder.layer1.2.conv1.weight is missing"),
        "{error}"
    );
    let error = refused(&folder, &byol(Arch::Resnet18, 12, Algorithm::Sgd, 0));
    assert!(error.contains("online.projector.3.weight: found F32 [8, 16], expected F32 [12, 16]"), "{error}");
    let error = refused(&folder, &byol(Arch::Resnet18, 8, Algorithm::Adamw, 0));
    assert!(
        error.contains("optimizer.safetensors: ") && error.contains("exp_avg.encoder.conv1.weight is missing"),
        "{error}"
    );
    assert!(error.contains("differences: "), "{error}");
    // Manifests of a later version, of none, and of no JSON.
    for (manifest, expected) in [
        (r#"{"format": 2, "step": 1}"#, "found format 2, this version reads format 1; use the version that wrote it"),
        (r#"{"step": 1}"#, "found format none"),
        (r#"{"format": 1}"#, "missing field"),
        (&"[".repeat(100_000), "recursion limit exceeded"),
        ("!!python/object/apply:os.system [\"true\"]", "expected value"),
    ] {
        forge(&folder, "manifest.json", manifest.as_bytes());
        let error = refused(&folder, &small(0));
        assert!(error.contains("manifest.json") && error.contains(expected), "{error}");
    }
    assert!(newest(root.path(), &small(0)).is_err_and(|e| e.contains("none of its 1 checkpoints can be used")));
}

#[test]
fn a_file_that_claims_more_than_it_holds_is_refused_without_its_memory() {
    let root = saved(&[1]);
    let folder = checkpoint::path_of(root.path(), 1);
    let good = fs::read(folder.join("model.safetensors")).expect("read");
    let file = |length: u64, header: &str| [&length.to_le_bytes()[..], header.as_bytes()].concat();
    let tensor = |shape: &str, end: &str| {
        let header =
            format!(r#"{{"online.encoder.conv1.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#);
        file(header.len() as u64, &header)
    };
    let own_length = u64::from_le_bytes(good[..8].try_into().expect("eight bytes"));
    let resident = native::resident_bytes();
    for forged in [
        file(u64::MAX, "{}"),
        file(u64::MAX - 7, "{}"),
        file(99_999_999, "{}"),
        file(2, "{}"),
        [&(own_length + 1).to_le_bytes()[..], &good[8..]].concat(),
        tensor("[4611686018427387904,4]", "64"),
        tensor("[4294967296,4294967296,4294967296]", "0"),
        tensor("[1000000000000]", "4000000000000"),
        tensor("[-1]", "4"),
        Vec::new(),
    ] {
        forge(&folder, "model.safetensors", &forged);
        let error = refused(&folder, &small(0));
        assert!(error.contains("model.safetensors: "), "{error}");
    }
    forge(&folder, "model.safetensors", &good);
    // A terabyte of nothing: files of that length cost no room, and must cost no memory.
    for name in ["manifest.json", "SHA256SUMS", "optimizer.safetensors", "model.safetensors"] {
        let path: PathBuf = folder.join(name);
        let good = fs::read(&path).expect("read");
        fs::File::options().write(true).open(&path).and_then(|file| file.set_len(1 << 40)).expect("lengthened");
        let error = refused(&folder, &small(0)); // a terabyte read would show in the memory below, or never end
        assert!(error.contains(name), "{error}");
        fs::write(&path, good).expect("written");
    }
    let grown = native::resident_bytes().saturating_sub(resident);
    assert!(grown < 200 << 20, "{grown} bytes");
    checkpoint::load(&folder, &small(0)).expect("good again");
}

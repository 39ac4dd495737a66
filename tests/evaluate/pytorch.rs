//! Files of `torch.save`, read without Python: against the tensors that PyTorch has in them, and against files that
//! mean harm. Fixtures by `scripts/reference/pytorch.py`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use crate::encoder::{state_dict, write};
use crate::support::damage::{Budget, Tally, damaged};
use crate::support::{CPU, Fixture};
use byol::eval::{Encoder, EncoderOptions, Represent};
use byol::model::{Arch, Stem};
use byol::pytorch::{is_pytorch, to_safetensors};
use byol::rng::{Purpose, Stream};
use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};
use zip::write::FileOptions;
use zip::{CompressionMethod, ZipWriter};

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pytorch").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; see scripts/reference", path.display()))
}

type Contents = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn contents(safetensors: &[u8]) -> Contents {
    let file = SafeTensors::deserialize(safetensors).expect("a safetensors file");
    let content = |(name, view): (String, safetensors::tensor::TensorView)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(content).collect()
}

#[test]
fn tensors_are_those_that_pytorch_saved() {
    for (file, expected) in [
        ("state_dict.pth", "state_dict.safetensors"),
        ("protocol4.pth", "state_dict.safetensors"),
        ("trainer.ckpt", "trainer.safetensors"),
    ] {
        let (bytes, expected) = (fixture(file), fixture(expected));
        assert!(is_pytorch(&bytes) && !is_pytorch(&expected), "{file}");
        assert_eq!(contents(&to_safetensors(&bytes).expect(file)), contents(&expected), "{file}");
    }
}

fn error(bytes: &[u8]) -> String {
    let error = format!("{:#}", to_safetensors(bytes).map(drop).expect_err("refused"));
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn other_files_of_pytorch_are_named() {
    for (file, expected) in [
        (
            "legacy.pth",
            "found a PyTorch file in the format before 1.6, expected the zip format; convert it with: python",
        ),
        ("module.pt", "found a TorchScript module, expected weights: torch.save(model.state_dict(), ...)"),
    ] {
        assert!(is_pytorch(&fixture(file)) && error(&fixture(file)).contains(expected), "{}", error(&fixture(file)));
    }
    // A safetensors header of 0x280 bytes begins as a pickle of protocol 2 does.
    assert!(!is_pytorch(b"\x80\x02\0\0\0\0\0\0{\"a\"") && is_pytorch(b"\x80\x02}q\0X\x05\0\0\0{\"a\""));
}

/// A zip archive as torch.save writes it.
fn archive(pickle: &[u8], storages: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(name, FileOptions::default().compression_method(method)).expect("a member");
        zip.write_all(bytes).expect("written");
    };
    add("archive/data.pkl", pickle);
    storages.iter().for_each(|(key, bytes)| add(&format!("archive/data/{key}"), bytes));
    zip.finish().expect("an archive").into_inner()
}

fn stored(pickle: &[u8]) -> Vec<u8> {
    archive(pickle, &[("0".into(), vec![0; 16])], CompressionMethod::Stored)
}

fn join(parts: &[&dyn AsRef<[u8]>]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.as_ref().to_vec()).collect()
}

fn text(text: &str) -> Vec<u8> {
    join(&[b"X", &(text.len() as u32).to_le_bytes(), &text])
}

/// The instructions for a tensor, with the class of its storage.
fn tensor(class: &str, key: &str, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let tuple = |values: &[i64]| format!("({}t", values.iter().map(|n| format!("I{n}\n")).collect::<String>());
    let class = format!("ctorch\n{class}\n");
    let storage = join(&[&text("storage"), &class, &text(key), &text("cpu"), b"K\x01tQ"]);
    let view = format!("I{offset}\n{}{}", tuple(shape), tuple(strides));
    join(&[b"ctorch._utils\n_rebuild_tensor_v2\n((", &storage, &view, b"\x89}tR"])
}

/// `{"w": ...}`
fn named(value: &[u8]) -> Vec<u8> {
    join(&[b"\x80\x02}", &text("w"), &value, b"s."])
}

// torch.save({"epoch": 1, "state_dict": {"module.backbone." + k: v for k, v in model.state_dict().items()}}, path)
#[test]
fn an_encoder_in_a_pytorch_file_is_the_one_in_a_safetensors_file() {
    let rule = Fixture::open("encoder.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let state = state_dict(&rule, Arch::Resnet18, 0.25, Stem::Cifar);
    let [safetensors, pytorch] = ["m.safetensors", "m.pth.tar"].map(|name| folder.path().join(name));
    write(&safetensors, &state);
    let mut pickle = join(&[b"\x80\x02}", &text("epoch"), b"K\x01s", &text("state_dict"), b"}("]);
    let mut storages = Vec::new();
    for (name, tensor_) in &state {
        let (class, width) = if tensor_.kind() == Kind::Float { ("FloatStorage", 4) } else { ("LongStorage", 8) };
        let mut bytes = vec![0; tensor_.numel() * width];
        tensor_.contiguous().copy_data_u8(&mut bytes, tensor_.numel());
        let key = storages.len().to_string();
        pickle.extend(text(&format!("module.backbone.{name}")));
        pickle.extend(tensor(class, &key, 0, &tensor_.size(), &tensor_.contiguous().stride()));
        storages.push((key, bytes));
    }
    pickle.extend(b"us.");
    fs::write(&pytorch, archive(&pickle, &storages, CompressionMethod::Stored)).expect("written");
    let open = |path: &PathBuf| Encoder::open(path, &EncoderOptions::default()).expect("opened");
    let [expected, found] = [&safetensors, &pytorch].map(open);
    assert_eq!((found.config, found.batches_tracked), (expected.config, 17));
    let x = Tensor::ones([2, 3, 32, 32], (Kind::Float, CPU));
    assert!(found.represent(&x).expect("features").equal(&expected.represent(&x).expect("features")));
}

#[test]
fn nothing_in_a_pickle_is_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let marker = folder.path().join("it-ran");
    let command = text(&format!("touch {}", marker.display()));
    let weight = tensor("FloatStorage", "0", 0, &[4], &[1]);
    for call in [
        join(&[b"cposix\nsystem\n", &command, b"\x85R"]),
        join(&[b"(", &command, b"iposix\nsystem\n"]),
        join(&[b"(cposix\nsystem\n", &command, b"o"]),
        join(&[&text("posix"), &text("system"), b"\x93", &command, b"\x85R"]),
        join(&[b"cposix\nsystem\n", &command, b"\x85\x81"]),
        join(&[b"cargparse\nNamespace\n)\x81}", &text("__setstate__"), b"cposix\nsystem\nsb"]),
    ] {
        // Beside a tensor, and in the place of one.
        let both = join(&[b"\x80\x02}(", &text("a"), &call, &text("w"), &weight, b"u."]);
        assert_eq!(contents(&to_safetensors(&stored(&both)).expect("the tensor beside it")).len(), 1);
        assert!(error(&stored(&named(&call))).contains("found no tensors in dictionaries"));
    }
    assert!(!marker.exists());
}

#[test]
fn hostile_pickles_end_in_one_line() {
    let deep = 200_000;
    let repeat = |part: &[u8], count: usize| part.repeat(count);
    let doubled = join(&[b"}", &text("a"), b"h\x01s", &text("b"), b"h\x01sq\x01"]);
    let nested = repeat(&join(&[b"}", &text("a")]), deep);
    for (pickle, expected) in [
        (named(b"}q\x01X\x01\0\0\0ah\x01s"), "found no tensors"), // it holds itself
        (join(&[b"N", &repeat(b"\x85", deep), b"."]), "found no tensors"),
        (join(&[&nested, b"N", &repeat(b"s", deep), b"."]), "found no tensors"),
        (join(&[b"}q\x01", &repeat(&doubled, 60), b"."]), "found no tensors"),
        (
            join(&[b"}", &text(&"a".repeat(2000)), &tensor("FloatStorage", "0", 0, &[1], &[1]), b"s."]),
            "found no tensors",
        ),
        (b"Nr\xff\xff\xff\xff.".to_vec(), "found no tensors"), // a memo of 4 billion
        (b"h\x07.".to_vec(), "byte 0: nothing remembered as 7"),
        (b"}0s.".to_vec(), "an empty stack"),
        (b"N(0.".to_vec(), "an item of a group is missing"),
        (b"t.".to_vec(), "a group that never began"),
        (b"\xff.".to_vec(), "unknown instruction 0xff"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.".to_vec(), "it ends too early"),
        (b"cposix".to_vec(), "a line without an end"),
        (Vec::new(), "it ends too early"),
        (named(&tensor("FloatStorage", "0", 0, &[1 << 40], &[0])), "w: shape [1099511627776] is beyond"),
        (named(&tensor("FloatStorage", "0", 0, &[i64::MAX, 8], &[1, 1])), "is beyond what the file holds"),
        (named(&tensor("FloatStorage", "0", 0, &[-1], &[1])), "w: "),
        (named(&tensor("FloatStorage", "0", 3, &[2], &[1])), "w: its values end behind their storage"),
        (named(&tensor("FloatStorage", "0", -1, &[2], &[1])), "its values end behind"),
        (named(&tensor("FloatStorage", "0", 0, &[2, 2], &[i64::MAX, i64::MAX])), "its values end behind"),
        (named(&tensor("FloatStorage", "0", 0, &[2], &[1, 1])), "found shape [2] with strides [1, 1]"),
        (named(&tensor("FloatStorage", "../../../etc/passwd", 0, &[2], &[1])), "reading archive/data/../../../etc/pas"),
    ] {
        let error = error(&stored(&pickle));
        assert!(error.contains(expected), "{expected:?} in {error}");
    }
    let bomb = archive(&named(&repeat(b"N0", 10_000_000)), &[], CompressionMethod::Deflated);
    assert!(bomb.len() < 100_000 && error(&bomb).contains("data.pkl is compressed, which torch.save never does"));
    let (pickle, values) = (named(&tensor("FloatStorage", "0", 0, &[4], &[1])), b"0123456789abcdef");
    let mut whole = archive(&pickle, &[("0".into(), values.to_vec())], CompressionMethod::Stored);
    let at = whole.windows(16).position(|bytes| bytes == values).expect("its values");
    assert_eq!(contents(&to_safetensors(&whole).expect("whole"))["w"].1, [4]);
    whole[at + 5] ^= 1;
    assert!(error(&whole).contains("damaged: archive/data/0 has another checksum than was written"));
}

/// BYOL_FUZZ_INPUTS=200000 for a longer look.
#[test]
fn damaged_files_end_in_tensors_or_in_one_line() {
    let corpus = ["state_dict.pth", "protocol4.pth", "trainer.ckpt", "legacy.pth", "module.pt"];
    let corpus: Vec<(String, Vec<u8>)> = corpus.map(|name| (name.to_string(), fixture(name))).to_vec();
    // The archive's own damage hides that of the pickle: every other input is a damaged pickle in a sound archive.
    let pickle = |bytes: &[u8]| {
        let mut zip = zip::ZipArchive::new(Cursor::new(bytes.to_vec())).ok()?;
        let names: Vec<String> =
            zip.file_names().filter(|name| name.ends_with("/data.pkl")).map(String::from).collect();
        let mut pickle = Vec::new();
        std::io::copy(&mut zip.by_name(names.first()?).ok()?, &mut pickle).ok()?;
        Some(pickle)
    };
    let pickles: Vec<_> = corpus.iter().filter_map(|(name, bytes)| Some((name.clone(), pickle(bytes)?))).collect();
    let storages: Vec<_> = (0..20).map(|key| (key.to_string(), vec![0; 480])).collect();
    let (budget, mut tally, mut tried) = (Budget::new(3), Tally::default(), 0);
    while budget.goes_on(tried) {
        let mut rng = Stream::new(5, Purpose::Synthetic, 0, budget.first + tried, 0);
        let mut draw = |below: usize| rng.below(below.max(1));
        let (kind, bytes) = if tried % 2 == 0 {
            let chosen = draw(corpus.len());
            ("file", damaged(&corpus, chosen, &mut draw))
        } else {
            let chosen = draw(pickles.len());
            ("pickle", archive(&damaged(&pickles, chosen, &mut draw), &storages, CompressionMethod::Stored))
        };
        let read = to_safetensors(&bytes);
        if let Err(error) = &read {
            assert!(!format!("{error:#}").contains('\n'), "input {tried}: {error:#}");
        }
        tally.add(kind, read.is_ok());
        tried += 1;
    }
    println!("{tally}");
    assert!(tally.fewest() * 4 > tried, "{tally}");
}

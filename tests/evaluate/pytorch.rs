//! Files of `torch.save`, read without Python: against the tensors that PyTorch has in them, and against files that
//! mean harm. Fixtures by `scripts/reference/pytorch.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::encoder::{state_dict, write};
use crate::support::pytorch::*;
use crate::support::{CPU, Fixture};
use byol::eval::{Encoder, EncoderOptions, Represent};
use byol::model::{Arch, Stem};
use byol::pytorch::{is_pytorch, tensors};
use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};
use zip::CompressionMethod;

type Contents = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// What the reader finds in a file of torch.save.
fn found(bytes: &[u8]) -> Contents {
    let tensors = tensors(bytes).expect("tensors").into_iter();
    tensors.map(|(name, found)| (name, (found.dtype, found.shape, found.data.into_owned()))).collect()
}

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
        ("odd.pth", "odd.safetensors"),
    ] {
        let (bytes, expected) = (fixture(file), fixture(expected));
        assert!(is_pytorch(&bytes) && !is_pytorch(&expected), "{file}");
        assert_eq!(found(&bytes), contents(&expected), "{file}");
    }
}

fn error(bytes: &[u8]) -> String {
    let error = format!("{:#}", tensors(bytes).map(drop).expect_err("refused"));
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
        (
            "negative.pth",
            "weight: found a tensor that is stored as its negative or conjugate, expected its values; save",
        ),
        ("module.pt", "found a TorchScript module, expected weights: torch.save(model.state_dict(), ...)"),
    ] {
        assert!(is_pytorch(&fixture(file)) && error(&fixture(file)).contains(expected), "{}", error(&fixture(file)));
    }
    // A safetensors header of 0x280 bytes begins as a pickle of protocol 2 does.
    assert!(!is_pytorch(b"\x80\x02\0\0\0\0\0\0{\"a\"") && is_pytorch(b"\x80\x02}q\0X\x05\0\0\0{\"a\""));
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
        assert_eq!(found(&stored(&both)).len(), 1, "the tensor beside it");
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
    assert_eq!(found(&whole)["w"].1, [4]);
    whole[at + 5] ^= 1;
    assert!(error(&whole).contains("damaged: archive/data/0 has another checksum than was written"));
}

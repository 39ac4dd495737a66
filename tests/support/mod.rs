//! Reading the fixtures that `scripts/reference` makes, and filling tensors by the rule both sides share.
#![allow(dead_code, unused_imports)] // each test binary uses its part

pub mod damage;
pub mod pytorch;
pub mod ranks;
pub mod run;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use byol::model::{Named, Params};
use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};

/// Where a fixture file is: committed, or in the folder that BYOL_GOLDEN names.
pub fn golden(name: &str) -> PathBuf {
    let committed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::var_os("BYOL_GOLDEN").map_or_else(committed, PathBuf::from).join(name)
}

/// A fixture file: its tensors by name, the seed and the precision it was made with.
pub struct Fixture {
    tensors: HashMap<String, Tensor>,
    pub seed: u64,
    /// Double, or Float where the reference was computed in fp32 on this very machine.
    pub kind: Kind,
}

impl Fixture {
    pub fn open(name: &str) -> Self {
        tch::set_num_threads(1);
        let path = golden(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; see scripts/reference", path.display()));
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensor = |view: safetensors::tensor::TensorView| {
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::F64 => Kind::Double,
                Dtype::I64 => Kind::Int64,
                other => panic!("fixture of {other:?}"),
            };
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            Tensor::from_data_size(view.data(), &shape, kind)
        };
        let tensors: HashMap<String, Tensor> = file.tensors().into_iter().map(|(n, v)| (n, tensor(v))).collect();
        let seed = tensors["seed"].int64_value(&[]) as u64;
        let kind = if tensors["fp32"].int64_value(&[]) == 1 { Kind::Float } else { Kind::Double };
        Self { tensors, seed, kind }
    }

    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the fixture has no {name}"))
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// A list of f64 values.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        Vec::<f64>::try_from(self.get(name).to_kind(Kind::Double).flatten(0, -1)).expect("numbers")
    }

    /// Largest relative difference allowed: what storing in f32 costs, or the promise for fp32 arithmetic.
    pub fn tolerance(&self) -> f64 {
        if self.kind == Kind::Double { 1e-6 } else { 1e-4 }
    }

    /// The tensor that `name` stands for, filled by the shared rule.
    pub fn fill(&self, name: &str, shape: &[i64]) -> Tensor {
        let matrix = shape.len() >= 2;
        let (offset, scale) = if name.ends_with("running_var") {
            (1.0, 0.5)
        } else if name.starts_with("input.") || name.starts_with("grad.") || name.contains(".view") {
            (0.0, 1.0)
        } else if matrix {
            (0.0, (6.0 / shape[1..].iter().product::<i64>() as f64).sqrt())
        } else if name.ends_with(".weight") {
            (1.0, 0.2)
        } else {
            (0.0, 0.1)
        };
        const G: u64 = 0x9E37_79B9_7F4A_7C15;
        let name_hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
        let start = name_hash.wrapping_add(self.seed.wrapping_mul(G));
        let values: Vec<f32> = (0..shape.iter().product::<i64>() as u64)
            .map(|i| {
                let x = start.wrapping_add(i).wrapping_add(G);
                let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
                let u = ((x ^ x >> 31) >> 40) as f64 / (1u64 << 24) as f64;
                (offset + scale * (2.0 * u - 1.0)) as f32
            })
            .collect();
        Tensor::from_slice(&values).reshape(shape).to_kind(self.kind)
    }

    /// Fills a network's parameters and buffers, named `prefix` and their own name, in the fixture's precision.
    pub fn fill_params(&self, prefix: &str, params: &mut Params) {
        params.to_kind(self.kind);
        let _no_grad = tch::no_grad_guard();
        for Named { name, tensor } in params.parameters.iter_mut().chain(&mut params.buffers) {
            tensor.copy_(&self.fill(&format!("{prefix}{name}"), &tensor.size()));
        }
    }

    /// Compares a tensor's sample and norm with `name.sample` and `name.norm`; `row` picks one of several stored.
    pub fn check(&self, name: &str, row: Option<i64>, found: &Tensor) {
        let pick = |t: &Tensor| row.map_or(t.shallow_clone(), |r| t.get(r)).to_kind(Kind::Double);
        let sample = pick(self.get(&format!("{name}.sample")));
        let norm = pick(self.get(&format!("{name}.norm"))).double_value(&[]);
        let found = found.detach().to_kind(Kind::Double).contiguous().flatten(0, -1);
        let (n, m) = (found.numel() as i64, sample.numel() as i64);
        let index: Vec<i64> = (0..m).map(|j| j * (n - 1) / (m - 1).max(1)).collect();
        self.close(name, &found.index_select(0, &Tensor::from_slice(&index)), &sample);
        let found_norm = found.norm().double_value(&[]);
        assert!((found_norm - norm).abs() <= self.tolerance() * norm, "{name}: norm {found_norm}, expected {norm}");
    }

    /// Compares whole tensors: the length of the difference over the length of what is expected.
    pub fn close(&self, name: &str, found: &Tensor, expected: &Tensor) {
        let (found, expected) = (found.detach().to_kind(Kind::Double), expected.to_kind(Kind::Double));
        assert_eq!(found.size(), expected.size(), "{name}");
        let length = expected.norm().double_value(&[]);
        let error = (&found - &expected).norm().double_value(&[]) / length.max(1e-30);
        assert!(length < 1e-12 || error <= self.tolerance(), "{name}: relative error {error:.2e}");
    }
}

/// Where every test runs.
pub const CPU: Device = Device::Cpu;

/// A run of a few steps in a folder of its own: 64 drawn images of 16 px, a ResNet-18 of a quarter of the width.
pub struct TinyRun {
    folder: PathBuf,
    _removed_at_the_end: Option<tempfile::TempDir>,
}

impl TinyRun {
    pub const CONFIG: &str = "
data:
  format: synthetic
  workers: 1
  synthetic: {images: 64, eval_images: 30, classes: 5, size: 16}
augment:
  size: 16
  mean: [0.5, 0.4, 0.3]
  std: [0.25, 0.3, 0.2]
  view1: {blur_sigma: [0.1, 0.5]}
  view2: {blur_sigma: [0.1, 0.5]}
model: {arch: resnet18, width: 0.25, stem: cifar, projector_hidden: 32, projection_dim: 16, predictor_hidden: 32}
optimizer: {name: sgd, base_lr: 0.5}
schedule: {epochs: 3, warmup_epochs: 0}
ema: {base_tau: 0.9}
train: {batch_size: 16, precision: fp32, device: cpu, threads: 1, seed: 7}
monitor: {knn_every: 0}
";

    /// Trains with these overrides.
    pub fn train(overrides: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder: folder.path().into(), _removed_at_the_end: Some(folder) }.trained(overrides)
    }

    /// The same for a static, which is never dropped: in a folder below `target` that the next one of this name
    /// replaces.
    pub fn train_shared(name: &str, overrides: &[&str]) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&folder); // not there the first time
        std::fs::create_dir_all(&folder).expect("a folder");
        Self { folder, _removed_at_the_end: None }.trained(overrides)
    }

    fn trained(self, overrides: &[&str]) -> Self {
        let run = self;
        std::fs::write(run.config(), Self::CONFIG).expect("written");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_byol"));
        command.arg("train").arg("--config").arg(run.config());
        command.arg("--set").arg(format!("output.dir={}", run.dir().display()));
        let output = command.args(overrides.iter().flat_map(|text| ["--set", text])).output().expect("byol runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        run
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    pub fn dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.dir().join(format!("checkpoints/step-{step:08}"))
    }
}

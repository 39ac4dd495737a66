//! What a step asks of libtorch, which a GPU would have to run: no wait for a value, no pass that need not be.

use anyhow::Result;
use native::observer::observe;
use tch::{Device, Kind, Tensor};

use super::{Byol, Rates, Views};
use crate::model::Named;
use crate::optim::{Algorithm, OptimizerConfig};

const RATES: Rates = Rates { lr: 0.1, tau: 0.5, step: 0 };

fn byol(optimizer: &OptimizerConfig, bf16: bool) -> Byol {
    let Byol { mut online, mut target, .. } = Byol::tiny();
    online.params.to_channels_last();
    target.params.to_channels_last();
    Byol { bf16, ..Byol::new(online, target, optimizer) }
}

fn views(bf16: bool) -> Views {
    let kind = if bf16 { Kind::BFloat16 } else { Kind::Float };
    [0.3, 0.7].map(|at| {
        let pixels = (Tensor::arange(4 * 3 * 8 * 8, (Kind::Float, Device::Cpu)) * at).sin();
        native::channels_last(&pixels.view([4, 3, 8, 8]).to_kind(kind))
    })
}

/// Reading a value on the host waits for all of a GPU's work, and cannot be captured in a CUDA graph.
#[test]
fn no_step_reads_a_value() -> Result<()> {
    let reading = ["aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"];
    for (name, clip_grad_norm, clip_lr, parts, bf16) in [
        (Algorithm::Lars, None, false, 1, false),
        (Algorithm::Lars, Some(1.0), true, 2, true),
        (Algorithm::Sgd, Some(1.0), false, 1, true),
        (Algorithm::Sgd, None, false, 2, false),
        (Algorithm::Adamw, Some(1.0), false, 2, false),
        (Algorithm::Adamw, None, false, 1, true),
    ] {
        let config = OptimizerConfig { name, clip_grad_norm, clip_lr, ..OptimizerConfig::default() };
        let mut byol = byol(&config, bf16);
        let views: Vec<Views> = (0..parts).map(|_| views(bf16)).collect();
        byol.set_rates(RATES)?;
        let (_, operators) = observe(|| byol.run(views.into_iter().map(Ok)))?;
        let reads = operators.iter().filter(|operator| reading.contains(&operator.name()));
        // Of the CPU's fused optimizers, which read the rate. On a GPU it is a tensor for the kernels.
        let reads = reads.filter(|operator| !operator.path[0].starts_with("aten::_fused_"));
        let reads: Vec<_> = reads.map(|operator| (operator.path.join(">"), operator.count)).collect();
        // The same of the CPU's moving average.
        let expected = ["aten::item", "aten::item>aten::_local_scalar_dense"].map(|path| (path.to_string(), 1));
        assert_eq!(reads, expected, "{name:?}, {parts} micro-batches, clipped to {clip_grad_norm:?}, bf16 {bf16}");
    }
    Ok(())
}

/// Those of each network, for both views together. Another thread that leaves autocast clears what it has kept for all of
/// them, so one step of many has to show it.
#[test]
fn weights_are_cast_to_bf16_once() -> Result<()> {
    let mut byol = byol(&OptimizerConfig::default(), true);
    let convolutions = byol.target.params.parameters.iter().filter(|named| named.tensor.dim() == 4).count() as u64;
    let mut found = Vec::new();
    for _ in 0..100 {
        byol.set_rates(RATES)?;
        let (_, operators) = observe(|| byol.run([Ok(views(true))].into_iter()))?;
        let casts = |within: &str| -> u64 {
            let casts = operators.iter().filter(|operator| operator.name() == "aten::_to_copy");
            casts.filter(|operator| operator.path[0].starts_with(within)).map(|operator| operator.count).sum()
        };
        // The rest are of the heads' weights, the gradients of all weights, and scalars of the loss.
        found.push((casts("aten::conv2d"), casts("")));
        if found.last().is_some_and(|(weights, all)| *weights == 2 * convolutions && *all <= 122) {
            return Ok(());
        }
    }
    panic!("casts of {convolutions} convolutions' weights, and all: {found:?}");
}

/// CUDA's fused optimizers and moving average demand it; the CPU's do not.
#[test]
fn weights_gradients_and_momenta_lie_alike() -> Result<()> {
    for bf16 in [false, true] {
        let mut byol = byol(&OptimizerConfig::default(), bf16);
        byol.step([Ok(views(bf16))].into_iter(), RATES)?;
        let strides = |tensor: &Tensor| -> Vec<(i64, i64)> {
            tensor.size().into_iter().zip(tensor.stride()).filter(|(size, _)| *size != 1).collect()
        };
        let momenta = byol.optimizer.state();
        for (at, Named { name, tensor }) in byol.online.params.parameters.iter().enumerate() {
            let momentum = momenta.iter().find(|found| found.name == format!("momentum.{name}")).expect("a momentum");
            let target = byol.target.params.parameters.get(at).map(|named| &named.tensor); // none of the predictor
            for other in [&tensor.grad(), &momentum.tensor].into_iter().chain(target) {
                assert_eq!(strides(other), strides(tensor), "{name}, bf16 {bf16}");
            }
        }
    }
    Ok(())
}

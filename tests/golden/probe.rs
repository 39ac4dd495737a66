//! Linear classifiers and nearest neighbors against PyTorch, scikit-learn and numpy; fixtures by
//! `scripts/reference/probe.py` and `logistic.py`.

use crate::support::{CPU, Fixture};
use byol::data::loader::sampler::Sampler;
use byol::eval::{Features, LinearEvalConfig, Logistic, Probes, Tally, knn};
use byol::optim::learning_rate;
use tch::{Kind, Tensor};

fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let expected = expected.to_kind(Kind::Double);
    (found.to_kind(Kind::Double) - &expected).norm().double_value(&[]) / expected.norm().double_value(&[])
}

#[test]
fn classifiers_side_by_side_are_pytorchs_one_by_one() {
    let fixture = Fixture::open("probe.safetensors");
    let (x, y, batches) = (fixture.get("x"), fixture.get("y"), fixture.get("batches"));
    let rates = fixture.numbers("rates");
    let mut probes = Probes::new(16, 5, &rates, &LinearEvalConfig::default(), CPU);
    let steps = batches.size()[0];
    for step in 0..steps {
        let rows = batches.get(step);
        let factor = learning_rate(step as u64, 0, steps as u64, 1.0, 0.0);
        probes.step(&x.index_select(0, &rows), &y.index_select(0, &rows), factor).expect("a step");
    }
    for (l, rate) in rates.iter().enumerate() {
        let (weight, bias) = probes.parameters(l);
        // fp32 against f64.
        assert!(relative(&weight, fixture.get(&format!("weight.{l}"))) < 1e-5, "rate {rate}");
        assert!(relative(&bias, fixture.get(&format!("bias.{l}"))) < 1e-5, "rate {rate}");
    }
}

#[test]
fn the_papers_protocol_ends_within_a_point_of_scikit_learn() {
    let fixture = Fixture::open("probe.safetensors");
    let (x, y) = (fixture.get("x"), fixture.get("y"));
    let config = LinearEvalConfig { batch_size: 128, ..LinearEvalConfig::default() };
    let rates: Vec<f64> = config.learning_rates.iter().map(|&r| LinearEvalConfig::scaled(r, 128)).collect();
    let mut probes = Probes::new(16, 5, &rates, &config, CPU);
    let sampler = Sampler::new(1000, 128, 1, 0).expect("a sampler");
    let total = config.epochs * 7;
    for step in 0..total {
        let (epoch, batch) = sampler.position(step);
        let order = sampler.epoch_order(epoch);
        let rows: Vec<i64> = sampler.batch(&order, batch).iter().map(|&i| i.into()).collect();
        let rows = Tensor::from_slice(&rows);
        let factor = learning_rate(step, 0, total, 1.0, 0.0);
        probes.step(&x.index_select(0, &rows), &y.index_select(0, &rows), factor).expect("a step");
    }
    let mut tally = Tally::new(5, rates.len() as i64, CPU);
    let scores = probes.scores(&x.narrow(0, 1000, 500)).expect("scores");
    tally.add(&scores, &y.narrow(0, 1000, 500)).expect("counted");
    let expected = fixture.numbers("sklearn_top1")[0];
    // The smaller rates have not arrived after 560 steps.
    for (rate, found) in rates.iter().take(3).zip(tally.accuracies().expect("accuracies")) {
        assert!((found.top1 - expected).abs() < 0.01, "rate {rate}: {}, scikit-learn {expected}", found.top1);
    }
}

#[test]
fn neighbors_are_numpys_exactly() {
    let fixture = Fixture::open("probe.safetensors");
    let (x, y) = (fixture.get("x"), fixture.get("y"));
    let part = |start, length| Features {
        values: x.narrow(0, start, length),
        labels: Vec::<i64>::try_from(y.narrow(0, start, length)).expect("labels"),
    };
    let found =
        knn(&part(0, 1000), Some(&part(1000, 500)), &[1, 20, 200], 0.1, None, &mut |_| Ok(())).expect("neighbors");
    assert_eq!(found.iter().map(|f| f.top1).collect::<Vec<_>>(), fixture.numbers("knn_top1"));
}

/// `LogisticRegression(C=1 / penalty)`, with and without `class_weight="balanced"`.
#[test]
fn logistic_regression_is_scikit_learns_at_every_penalty() {
    let fixture = Fixture::open("logistic.safetensors");
    let (x, y) = (fixture.get("x"), fixture.get("y"));
    let (train_x, train_y) = (x.narrow(0, 0, 400), y.narrow(0, 0, 400));
    let counts = train_y.bincount::<Tensor>(None, 5).to_kind(Kind::Double);
    let balanced: Tensor = 80.0 / counts; // images / (classes * images of the class)
    let balanced = balanced.index_select(0, &train_y);
    for (name, weights) in [("none", None), ("balanced", Some(balanced))] {
        let mut problem = Logistic::new(&train_x, &train_y, weights.as_ref(), 5, 2).expect("a problem");
        let mut fit = problem.start();
        for (at, penalty) in fixture.numbers("penalties").into_iter().enumerate() {
            fit = problem.fit(penalty, &fit, 1e-7, &mut || Ok(())).expect("a fit");
            assert!(fit.converged, "{name}, penalty {penalty}");
            let found = problem.classifier(&fit);
            let expected = |part: &str| fixture.get(&format!("{name}.{part}")).get(at as i64);
            let errors = [relative(&found.weight, &expected("weight")), relative(&found.bias, &expected("bias"))];
            assert!(errors.iter().all(|&error| error < 1e-5), "{name}, penalty {penalty}: {errors:?}");
            let scores = found.scores(&x.narrow(0, 400, 300)).expect("scores").squeeze_dim(1);
            let right = scores.argmax(1, false).eq_tensor(&y.narrow(0, 400, 300)).to_kind(Kind::Double);
            let top1 = right.mean(Kind::Double).double_value(&[]);
            assert!((top1 - expected("top1").double_value(&[])).abs() < 0.001, "{name}, penalty {penalty}: {top1}");
        }
    }
}

//! The page: everything that the template shows, as text and images.

use anyhow::{Context, Result, ensure};
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use super::charts::{self, Line, RUNS};
use super::facts::{self, Command, Difference, Fact};
use super::follow::spearman;
use super::looks::Looks;
use super::run_files::RunFiles;
use crate::logging::one_line;

/// Most bytes of a page.
const MAX_BYTES: usize = 10_000_000;

/// What an encoder makes of its images, or why that is not known.
pub type Look = Result<Looks, String>;

/// A number that is drawn over the epochs: its key, the factor for what is shown, title, and what it means.
struct Curve(&'static str, f64, &'static str, &'static str);

/// The numbers that judge the encoder.
const QUALITY: [Curve; 8] = [
    Curve("knn_top1", 100.0, "k-NN top-1 (%)", "accuracy by nearest neighbors; needs labels"),
    Curve("view_retrieval", 100.0, "View retrieval (%)", "images whose two views find each other"),
    Curve("effective_rank", 1.0, "Effective rank", "dimensions that the representations use"),
    Curve("projection_rank", 1.0, "Rank of projections", "dimensions that the projections use"),
    Curve("alignment", 1.0, "Alignment", "distance between views of an image; lower is better"),
    Curve("uniformity", 1.0, "Uniformity", "how evenly images spread; lower is better"),
    Curve("random_cosine", 1.0, "Cosine of random pairs", "near 1: images look alike to the encoder"),
    Curve("target_distance", 1.0, "Target distance", "between online and target projections"),
];
/// The numbers that judge the training.
const TRAINING: [Curve; 6] = [
    Curve("loss", 1.0, "Loss", "0 to 8, symmetric"),
    Curve("lr", 1.0, "Learning rate", "of the optimizer"),
    Curve("tau", 1.0, "Tau", "moving average of the target"),
    Curve("images_per_second", 1.0, "Images per second", "waiting for data included"),
    Curve("z_std", 1.0, "Spread of projections", "near 0: collapsed"),
    Curve("grad_norm", 1.0, "Gradient norm", "before clipping"),
];

/// A chart with its title.
#[derive(Serialize)]
struct Chart {
    title: &'static str,
    about: &'static str,
    svg: String,
}

/// A number as text and for sorting.
#[derive(Serialize)]
struct Cell {
    text: String,
    value: Option<f64>,
}

/// How a number follows k-NN accuracy, in each run.
#[derive(Serialize)]
struct Follow {
    title: &'static str,
    cells: Vec<Cell>,
}

/// A run on the page.
#[derive(Serialize)]
struct RunView {
    id: usize,
    name: String,
    color: usize,
    status: String,
    epochs: Cell,
    knn: Cell,
    knn_random: String,
    rank: Cell,
    rank_of: String,
    retrieval: Cell,
    loss: Cell,
    speed: Cell,
    time: Cell,
    facts: Vec<Fact>,
    yaml: String,
    repeat: String,
    next: Vec<Command>,
    warnings: Vec<String>,
    looks: Option<Looks>,
    no_looks: String,
}

#[derive(Serialize)]
struct Page {
    title: String,
    version: &'static str,
    style: &'static str,
    script: &'static str,
    runs: Vec<RunView>,
    quality: Vec<Chart>,
    training: Vec<Chart>,
    resumed: bool,
    follow: Vec<Follow>,
    differences: Vec<Difference>,
}

/// The page of these runs, each with its look.
/// # Errors
/// It would be larger than 10 MB.
pub fn page(runs: Vec<RunFiles>, looks: Vec<Look>) -> Result<String> {
    let [quality, training] = [charts_of(&QUALITY, &runs)?, charts_of(&TRAINING, &runs)?];
    let title = match &runs[..] {
        [run] => one_line(&run.name),
        runs => format!("{} runs", runs.len()),
    };
    let page = Page {
        title,
        version: env!("CARGO_PKG_VERSION"),
        style: include_str!("style.css"),
        script: include_str!("script.js"),
        quality,
        training,
        resumed: runs.iter().any(|run| !run.resumed().is_empty()),
        follow: follow(&runs),
        differences: facts::differences(&runs),
        runs: runs.iter().zip(looks).enumerate().map(|(at, (run, look))| RunView::new(at, run, look)).collect(),
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_template("page.html", include_str!("page.html")).context("the report's template")?;
    let template = environment.get_template("page.html").context("the report's template")?;
    let html = template.render(Serde(&page)).context("the report's template")?;
    ensure!(
        html.len() < MAX_BYTES,
        "the report would have {:.1} MB, expected under 10; give fewer runs, or a lower --images",
        html.len() as f64 / 1e6
    );
    Ok(html)
}

/// The charts for which there are numbers.
fn charts_of(curves: &[Curve], runs: &[RunFiles]) -> Result<Vec<Chart>> {
    let epochs = |run: &RunFiles| run.records.iter().filter_map(|record| record["epoch"].as_f64()).fold(0.0, f64::max);
    let epochs = runs.iter().map(epochs).fold(0.0, f64::max);
    let mut charts = Vec::new();
    for &Curve(key, factor, title, about) in curves {
        let line = |(color, run): (usize, &RunFiles)| Line {
            color,
            points: run.series(key).into_iter().map(|(epoch, value)| (epoch, value * factor)).collect(),
            marks: run.resumed(),
        };
        let lines: Vec<Line> = runs.iter().enumerate().map(line).collect();
        if lines.iter().any(|line| !line.points.is_empty()) {
            charts.push(Chart { title, about, svg: charts::lines(&lines, epochs)? });
        }
    }
    Ok(charts)
}

/// Correlations with k-NN accuracy; none without labels.
fn follow(runs: &[RunFiles]) -> Vec<Follow> {
    if runs.iter().all(|run| run.pairs("effective_rank", "knn_top1").is_empty()) {
        return Vec::new();
    }
    let cell = |run: &RunFiles, key: &str| {
        let pairs = run.pairs(key, "knn_top1");
        let value = spearman(&pairs);
        let text = value.map_or(format!("too few evaluations ({})", pairs.len()), |value| format!("{value:+.2}"));
        Cell { text, value }
    };
    let row = |&Curve(key, _, title, _): &Curve| Follow {
        title: title.trim_end_matches(" (%)"),
        cells: runs.iter().map(|run| cell(run, key)).collect(),
    };
    QUALITY[1..].iter().map(row).collect()
}

impl RunView {
    fn new(id: usize, run: &RunFiles, look: Look) -> Self {
        let (summary, manifest) = (&run.summary, &run.manifest);
        // A run that was killed, or runs still, has not written its last numbers.
        let last = |key: &str| run.series(key).last().map(|(_, value)| *value);
        let number = |key: &str| summary[key].as_f64().or_else(|| last(key));
        let quality = run.quality().pop().map(|(_, quality)| quality);
        let cell = |value: Option<f64>, text: &dyn Fn(f64) -> String| Cell {
            text: value.map_or("-".to_string(), text),
            value,
        };
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let random = summary["knn_top1_random"].as_f64().or(manifest["knn_random"].as_f64());
        let epochs = run.records.iter().filter_map(|record| record["epoch"].as_f64()).fold(0.0, f64::max);
        let (looks, no_looks) = match look {
            Ok(looks) => (Some(looks), String::new()),
            Err(why) => (None, one_line(&why)),
        };
        Self {
            id,
            name: one_line(&run.name),
            color: id % RUNS.len(),
            status: status(summary),
            epochs: cell(Some(epochs), &|epochs| format!("{epochs:.1}").trim_end_matches(".0").to_string()),
            knn: cell(number("knn_top1"), &percent),
            knn_random: random.map_or(String::new(), |share| format!("untrained {}", percent(share))),
            rank: cell(quality.as_ref().map(|quality| quality.effective_rank), &|rank| format!("{rank:.1}")),
            rank_of: quality.as_ref().map_or(String::new(), |quality| format!("of at most {}", quality.max_rank())),
            retrieval: cell(quality.map(|quality| quality.view_retrieval), &percent),
            loss: cell(number("loss"), &|loss| format!("{loss:.3}")),
            speed: cell(number("images_per_second"), &|speed| format!("{speed:.0}")),
            time: cell(summary["seconds"].as_f64().filter(|seconds| *seconds > 0.0), &duration),
            facts: facts::facts(run),
            yaml: run.yaml.lines().map(one_line).collect::<Vec<_>>().join("\n"),
            repeat: facts::repeat(run),
            next: facts::next(run),
            warnings: facts::warnings(run),
            looks,
            no_looks,
        }
    }
}

fn status(summary: &serde_json::Value) -> String {
    match summary["ending"].as_str() {
        Some("finished") => "finished".into(),
        Some("max_steps") => "stopped at train.max_steps".into(),
        Some("signal") => "stopped by a signal".into(),
        Some("failed") => "failed".into(),
        Some("running") => "running, or killed".into(),
        _ => "unknown".into(),
    }
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min {:02} s", seconds % 60),
        _ => format!("{hours} h {minutes:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOSTILE: &str = "</script><script>alert('\"x\"')</script>\u{202e}gnp\n{{ 7 * 7 }}";

    fn run(name: &str) -> RunFiles {
        let record = |step: u64| {
            json!({"step": step, "epoch": step as f64 / 4.0, "knn_top1": 0.1 * step as f64,
            "effective_rank": step as f64, "projection_rank": 2.0, "view_retrieval": 0.5, "loss": 1.0})
        };
        RunFiles {
            folder: name.into(),
            name: name.into(),
            yaml: format!("name: {name}"),
            config: json!({"data": {"path": name}}),
            manifest: json!({"steps_per_epoch": 4, "images": 9}),
            summary: json!({"ending": "failed", "error": name, "resumed_at": [6], "warnings": [name]}),
            records: (0..5).map(record).collect(),
        }
    }

    #[test]
    fn every_text_is_escaped() -> Result<()> {
        let html = page(vec![run(HOSTILE), run("b")], vec![Err(HOSTILE.into()), Err("why".into())])?;
        assert_eq!(html.matches("<script").count(), 1, "only the page's own"); // and no JSON without looks
        assert!(!html.contains("alert('") && !html.contains('\u{202e}') && html.contains("{{ 7 * 7 }}"));
        assert!(html.contains("&lt;script&gt;") && html.contains(r"\u{202e}"));
        for elsewhere in ["src=\"http", "href=\"http", "url(http", "@import"] {
            assert!(!html.contains(elsewhere), "{elsewhere}");
        }
        Ok(())
    }

    #[test]
    fn durations_are_short() {
        assert_eq!([0.4, 75.0, 7380.0].map(duration), ["0 s", "1 min 15 s", "2 h 03 min"]);
    }
}

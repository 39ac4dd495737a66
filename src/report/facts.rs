//! What was run, in words: facts of a run, differences between configs, commands to repeat it and to go on.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::run_files::RunFiles;
use crate::checkpoint::UNKNOWN_STEPS;
use crate::logging::one_line;
use crate::train::trend;

/// A name and a value.
#[derive(Serialize)]
pub struct Fact {
    name: String,
    value: String,
}

/// A key that differs between configs, with its value in each.
#[derive(Serialize)]
pub struct Difference {
    key: String,
    values: Vec<String>,
}

/// A command and what it does.
#[derive(Serialize)]
pub struct Command {
    about: &'static str,
    line: String,
}

/// Data, model, machine and versions of a run. Long, because it is the list of these rows.
pub fn facts(run: &RunFiles) -> Vec<Fact> {
    let (config, manifest) = (&run.config, &run.manifest);
    let short = |value: &Value| value.as_str().map(|text| text.chars().take(12).collect::<String>());
    let fact = |name: &str, parts: &[Option<String>]| {
        let parts: Vec<&str> = parts.iter().flatten().map(String::as_str).collect();
        (!parts.is_empty()).then(|| Fact { name: name.into(), value: one_line(&parts.join(", ")) })
    };
    let text = |value: &Value| (!value.is_null()).then(|| shown(value));
    let counted = |value: &Value, what: &str| value.as_u64().map(|count| format!("{count} {what}"));
    let optimizer = &config["optimizer"];
    [
        fact("Folder", &[Some(run.folder.display().to_string())]),
        fact(
            "Data",
            &[text(&config["data"]["format"]), text(&config["data"]["path"]), counted(&manifest["images"], "images")],
        ),
        fact(
            "Encoder",
            &[
                text(&config["model"]["arch"]),
                text(&config["model"]["width"]).map(|width| format!("width {width}")),
                text(&config["model"]["stem"]).map(|stem| format!("stem {stem}")),
            ],
        ),
        fact(
            "Optimizer",
            &[
                text(&optimizer["name"]),
                text(&optimizer["base_lr"]).map(|lr| format!("base_lr {lr}")),
                counted(&config["train"]["batch_size"], "images a step"),
            ],
        ),
        fact(
            "Schedule",
            &[
                counted(&config["schedule"]["epochs"], "epochs"),
                counted(&manifest["total_steps"], "steps")
                    .filter(|_| manifest["total_steps"].as_u64() < Some(UNKNOWN_STEPS)),
                text(&config["ema"]["base_tau"]).map(|tau| format!("base_tau {tau}")),
            ],
        ),
        fact(
            "Machine",
            &[
                text(&manifest["device"]),
                text(&manifest["precision"]),
                counted(&manifest["threads"], "threads").filter(|_| manifest["device"] == "cpu"),
            ],
        ),
        fact("Processes", &[text(&manifest["processes"])]),
        fact("Seed", &[text(&manifest["seed"])]),
        fact(
            "Version",
            &[
                short(&manifest["byol"]).map(|version| format!("byol {version}")),
                short(&manifest["commit"]),
                short(&manifest["libtorch"]).map(|version| format!("libtorch {version}")),
            ],
        ),
        fact(
            "Fingerprints",
            &[
                short(&manifest["config_sha256"]).map(|sum| format!("config {sum}")),
                short(&manifest["data"]).map(|sum| format!("data {sum}")),
            ],
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Keys whose values differ.
pub fn differences(runs: &[RunFiles]) -> Vec<Difference> {
    let flat: Vec<Vec<(String, String)>> = runs.iter().map(|run| flattened("", &run.config)).collect();
    let mut keys: Vec<&String> = flat.iter().flatten().map(|(key, _)| key).collect();
    keys.sort_unstable();
    keys.dedup();
    let value = |of: &[(String, String)], key: &str| {
        of.iter().find(|(own, _)| own == key).map_or("-".to_string(), |(_, value)| one_line(value))
    };
    let row = |key: &String| Difference { key: one_line(key), values: flat.iter().map(|of| value(of, key)).collect() };
    let differs = |row: &Difference| row.values.iter().any(|value| *value != row.values[0]);
    keys.into_iter().map(row).filter(differs).collect()
}

/// Every key path with its value.
fn flattened(path: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(map) => {
            let below = |key: &String| if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            map.iter().flat_map(|(key, value)| flattened(&below(key), value)).collect()
        }
        value => vec![(path.to_string(), shown(value))],
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// The command that repeats a run, in another folder.
pub fn repeat(run: &RunFiles) -> String {
    let config = run.folder.join("config.yaml");
    let again =
        run.folder.with_file_name(format!("{}-again", run.folder.file_name().unwrap_or_default().to_string_lossy()));
    let again = format!("output.dir={}", again.display());
    format!("byol train --config {} --set {}", quoted(&config.to_string_lossy()), quoted(&again))
}

/// What to do with a run next.
pub fn next(run: &RunFiles) -> Vec<Command> {
    let folder = path(&run.folder);
    let finished = run.summary["ending"] == "finished";
    let resume = Command {
        about: "Continue the run",
        line: format!("byol train --config {} --resume auto", path(&run.folder.join("config.yaml"))),
    };
    let command = |about, line: String| Command { about, line };
    let mut commands: Vec<Command> = (!finished).then_some(resume).into_iter().collect();
    commands.extend([
        command("Linear evaluation, where there are labels", format!("byol linear-eval --checkpoint {folder}")),
        command("Similar images", format!("byol neighbors --checkpoint {folder} --sample 8 --output neighbors.png")),
        command("Near-identical images", format!("byol duplicates --checkpoint {folder} --output duplicates.png")),
        command(
            "The encoder for PyTorch",
            format!("byol export-encoder --checkpoint {folder} --format safetensors --output encoder.safetensors"),
        ),
    ]);
    commands
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A text as a word of a shell, on one line.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,+@%".contains(c);
    let text = one_line(text);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// What went wrong or may go wrong, in sentences.
pub fn warnings(run: &RunFiles) -> Vec<String> {
    let summary = &run.summary;
    let mut found = Vec::new();
    if let Some(error) = summary["error"].as_str() {
        found.push(format!("the run failed: {error}"));
    }
    if summary["collapsed"] == true {
        found.push("the projections of different images became nearly the same (z_std): the run collapsed".into());
    }
    for (key, what) in [
        ("images_skipped", "unreadable images were skipped"),
        ("steps_skipped", "steps were skipped because of NaN or Inf"),
    ] {
        if let Some(count) = summary[key].as_u64().filter(|count| *count > 0) {
            found.push(format!("{count} {what}"));
        }
    }
    let said = summary["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string);
    found.extend(said);
    // Those of a run that was killed, or runs still.
    if found.is_empty() {
        found.extend(trend::warnings(&run.quality()));
    }
    found.iter().map(|text| one_line(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(config: Value) -> RunFiles {
        let (yaml, records) = (String::new(), Vec::new());
        let (folder, name) = ("runs/it's <b>".into(), "a".into());
        RunFiles { folder, name, yaml, config, manifest: Value::Null, summary: Value::Null, records }
    }

    #[test]
    fn only_keys_that_differ_are_differences() {
        let runs = [json!({"a": {"b": 1, "c": [1, 2]}}), json!({"a": {"b": 2, "c": [1, 2], "d": "x\n"}})].map(run);
        let found: Vec<(String, Vec<String>)> = differences(&runs).into_iter().map(|d| (d.key, d.values)).collect();
        let expected = [("a.b", ["1", "2"]), ("a.d", ["-", "x\\n"])];
        assert_eq!(found, expected.map(|(key, values)| (key.to_string(), values.map(str::to_string).to_vec())));
    }

    #[test]
    fn commands_are_words_of_a_shell() {
        let repeat = repeat(&run(json!({})));
        assert_eq!(
            repeat,
            r"byol train --config 'runs/it'\''s <b>/config.yaml' --set 'output.dir=runs/it'\''s <b>-again'"
        );
        assert!(next(&run(json!({})))[0].line.ends_with("--resume auto"));
    }
}

//! Examples at the end of every command's `--help`, which a test runs. `photos` there is a folder of images and
//! `runs/photos` a run.

/// Examples of each command, by its path.
pub const ALL: &[(&str, &[&str])] = &[
    ("byol", &["byol train photos", "byol train --config quickstart", "byol linear-eval --checkpoint runs/photos"]),
    (
        "byol train",
        &[
            "byol train photos --epochs 100",
            "byol train photos --hours 8 --dry-run",
            "byol train --config quickstart --set output.dir=runs/try --set train.seed=1",
        ],
    ),
    (
        "byol check",
        &["byol check --config quickstart", "byol check --config runs/photos/config.yaml --resume --steps 2"],
    ),
    (
        "byol data",
        &["byol data photos", "byol data photos --clean-list clean.txt", "byol data --config quickstart --json"],
    ),
    (
        "byol bench",
        &["byol bench loader --config quickstart --seconds 5", "byol bench step --config quickstart --steps 5"],
    ),
    (
        "byol bench loader",
        &[
            "byol bench loader --config quickstart --seconds 5",
            "byol bench loader --config runs/photos/config.yaml --workers 1 --seconds 5",
        ],
    ),
    (
        "byol bench step",
        &[
            "byol bench step --config quickstart --steps 5",
            "byol bench step --config quickstart --synthetic --steps 5 --set train.batch_size=128",
        ],
    ),
    (
        "byol linear-eval",
        &[
            "byol linear-eval --checkpoint runs/photos",
            "byol linear-eval --checkpoint runs/photos --random-baseline --json",
        ],
    ),
    (
        "byol knn-eval",
        &["byol knn-eval --checkpoint runs/photos --k 5,10", "byol knn-eval --checkpoint runs/photos --k 5 --json"],
    ),
    (
        "byol extract-features",
        &[
            "byol extract-features --checkpoint runs/photos --output features.safetensors",
            "byol extract-features --checkpoint runs/photos --output features",
        ],
    ),
    (
        "byol neighbors",
        &[
            "byol neighbors --checkpoint runs/photos --index 0 --top 3",
            "byol neighbors --checkpoint runs/photos --sample 2 --top 3 --output sheet.png",
        ],
    ),
    (
        "byol duplicates",
        &[
            "byol duplicates --checkpoint runs/photos",
            "byol duplicates --checkpoint runs/photos --threshold 0.99 --json",
        ],
    ),
    (
        "byol report",
        &["byol report runs/photos --output report.html", "byol report runs/photos --curves-only --output curves.html"],
    ),
    (
        "byol export-encoder",
        &[
            "byol export-encoder --checkpoint runs/photos --format onnx --output encoder.onnx",
            "byol export-encoder --checkpoint runs/photos --format safetensors --output encoder.safetensors",
        ],
    ),
    (
        "byol preview",
        &[
            "byol preview --config runs/photos/config.yaml --output views.png",
            "byol preview --config quickstart --output drawn.png --images 4 --draws 2",
        ],
    ),
    (
        "byol pack",
        &[
            "byol pack --config runs/photos/config.yaml --output packed",
            "byol pack --config runs/photos/config.yaml --output small --short-side 512 --quality 95",
            "byol pack --config quickstart --output drawn --set data.limit=100",
        ],
    ),
    ("byol configs", &["byol configs", "byol configs copy photos_resnet18 my.yaml"]),
    ("byol configs show", &["byol configs show quickstart", "byol configs show photos_resnet18"]),
    ("byol configs copy", &["byol configs copy quickstart small.yaml", "byol configs copy photos_resnet50 large.yaml"]),
    ("byol config", &["byol config explain train", "byol config schema"]),
    ("byol config schema", &["byol config schema", "byol config schema > config.schema.json"]),
    ("byol config reference", &["byol config reference", "byol config reference > keys.md"]),
    ("byol config explain", &["byol config explain train.batch_size", "byol config explain augment.view1"]),
    ("byol completions", &["byol completions bash > byol.bash", "byol completions zsh > _byol"]),
    ("byol man", &["byol man man1", "byol man ~/.local/share/man/man1"]),
];

/// The command with its examples, and its subcommands with theirs.
pub(super) fn add(command: clap::Command) -> clap::Command {
    let name = command.get_name().to_string();
    below(command, &name)
}

fn below(mut command: clap::Command, path: &str) -> clap::Command {
    if let Some((_, examples)) = ALL.iter().find(|(of, _)| *of == path) {
        command = command.after_help(format!("Examples:\n  {}", examples.join("\n  ")));
    }
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_string()).collect();
    for name in names {
        let inner = format!("{path} {name}");
        command = command.mut_subcommand(name, |sub| below(sub, &inner));
    }
    command
}

//! The wheel of `scripts/wheel`: installed by pip, its command runs with the torch beside it, and names both versions
//! where that torch does not fit.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// The Python of the private environment of `scripts/libtorch.sh`, and its torch.
fn private_environment() -> Option<(PathBuf, PathBuf)> {
    let torch = PathBuf::from(std::env::var_os("LIBTORCH")?);
    let python = torch.ancestors().nth(4)?.join("bin/python");
    python.exists().then_some((python, torch))
}

#[test]
fn an_installed_wheel_runs_with_the_torch_beside_it() {
    let Some((python, torch)) = private_environment() else {
        return println!(
            "skipped: LIBTORCH is not the private environment of scripts/libtorch.sh, whose pip is needed"
        );
    };
    let folder = tempfile::tempdir().expect("a folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut build = Command::new(root.join("scripts/wheel"));
    build.args(["--binary", env!("CARGO_BIN_EXE_byol"), "--output"]).arg(folder.path().join("wheels"));
    let built = run(&mut build);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let wheel = String::from_utf8(built.stdout).expect("a path");
    let environment = folder.path().join("an environment");
    let mut install = Command::new(python);
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        "--prefix",
    ]);
    let installed = run(install.arg(&environment).arg(wheel.trim()));
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));

    let site = fs::read_dir(environment.join("lib")).expect("lib").next().expect("python3.N").expect("an entry").path();
    let site = site.join("site-packages");
    let binary = fs::read(site.join("byol/byol")).expect("the binary");
    let build_path = b"$ORIGIN/../torch/lib:";
    assert!(
        !binary.windows(build_path.len()).any(|part| part == build_path),
        "the run path leads to the build's libtorch"
    );

    let byol =
        || run(Command::new(environment.join("bin/byol")).arg("--version").env_clear().env("PATH", "/usr/bin:/bin"));
    let fails = |expected: &str| {
        let Output { status, stderr, .. } = byol();
        let line = String::from_utf8(stderr).expect("text");
        assert_eq!(status.code(), Some(1), "{line}");
        assert!(line.starts_with(expected) && line.lines().count() == 1 && line.contains("torch==2.11.*"), "{line}");
    };
    fails("byol: found no torch in ");
    fs::create_dir(site.join("torch")).expect("a folder");
    fs::write(site.join("torch/version.py"), "__version__ = '2.10.1+cpu'\n").expect("a file");
    fails("byol: found torch 2.10.1 in ");
    fs::remove_dir_all(site.join("torch")).expect("removed");
    symlink(&torch, site.join("torch")).expect("a link");
    let Output { status, stdout, stderr } = byol();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    assert!(String::from_utf8_lossy(&stdout).starts_with(concat!("byol ", env!("CARGO_PKG_VERSION"))));
}
